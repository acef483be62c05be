"""Scores: known ones from a rigged model, and what a real one is asked to write."""

import json
import math

import pytest
import torch

pytest.importorskip("lm_eval", reason="the eval extra is not installed")
from lm_eval.api.model import LM

from tests.language.evaluation.harness_models import GOLD, ROWS, byte_tokenizer, tiny_model
from vpretrain.language.data.layout import Layout
from vpretrain.language.data.rows import Row, encode
from vpretrain.language.evaluation.benchmarks import BENCHMARKS, own
from vpretrain.language.evaluation.held_out import negative_log_likelihood
from vpretrain.language.evaluation.scoring import Sampling, score, score_learner, score_model
from vpretrain.language.evaluation.wording import Wording
from vpretrain.language.learner import lora
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.language.recipe.learner import Lora
from vpretrain.language.recipe.rows import Table


class Rigged(LM):
    """Answers each prompt with the next of the given texts."""

    def __init__(self, answers):
        super().__init__()
        self.answers = {prompt: list(texts) for prompt, texts in answers.items()}
        self.asked = []

    def generate_until(self, requests):
        self.asked += [request.args for request in requests]
        return [self.answers[request.args[0]].pop(0) for request in requests]

    def loglikelihood(self, requests):
        return [
            (0.0 if request.args[1] in self.answers[request.args[0]] else -1.0, False)
            for request in requests
        ]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


def items(name, rows=None):
    task = BENCHMARKS[name]
    return task, [task.item(row, f"{name}:{at}") for at, row in enumerate(rows or ROWS[name], 1)]


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_gold_scores_one_and_nonsense_zero(name, runs_programs):
    task, result = items(name)
    for texts, expected in (
        ([GOLD[name](row) for row in ROWS[name]], 1.0),
        (["Z" for _ in result], 0.0),
    ):
        answers = {item.prompt: [text] for item, text in zip(result, texts, strict=True)}
        if name == "mmlu" and expected == 0.0:  # a likeliest letter there is always
            answers = {item.prompt: [" B"] for item in result}
        outcome = score(Rigged(answers), {name: (task, result)}, Sampling())[name]
        metrics = {"accuracy"} if name == "mmlu" else {"strict/pass@1", "flexible/pass@1"}
        assert set(outcome.scores) == metrics
        for each in outcome.scores.values():
            assert (each.value, each.stderr, each.n) == (expected, 0.0, len(result))
        assert len(outcome.generations) == len(result)


def test_scores_errors_and_generations_of_a_model_that_is_right_now_and_then():
    task, result = items("gsm8k")
    right = [f" well\n#### {item.expected}" for item in result]
    texts = [
        [right[0], "no"],
        ["#### 7", "#### 8"],
        [right[2], right[2]],
        [f"it is {result[3].expected}", "none"],
    ]
    lm = Rigged(dict(zip((item.prompt for item in result), texts, strict=True)))
    outcome = score(lm, {"gsm8k": (task, result)}, Sampling(samples=2, temperature=0.7))["gsm8k"]
    at = {name: outcome.scores[name] for name in outcome.scores}
    assert set(at) == {"strict/pass@1", "strict/pass@2", "flexible/pass@1", "flexible/pass@2"}
    assert at["strict/pass@1"].items == (0.5, 0.0, 1.0, 0.0)
    assert at["flexible/pass@1"].items == (0.5, 0.0, 1.0, 0.5)
    assert at["flexible/pass@2"].items == (1.0, 0.0, 1.0, 1.0)
    assert at["strict/pass@1"].value == pytest.approx(0.375)
    spread = torch.tensor(at["strict/pass@1"].items).std().item()
    assert at["strict/pass@1"].stderr == pytest.approx(spread / 2), (
        "over problems, not over samples"
    )
    assert at["strict/pass@1"].n == 4
    rows = outcome.generations
    assert [(row["item"], row["sample"], row["completion"]) for row in rows] == [
        (item, sample, texts[item][sample]) for item in range(4) for sample in range(2)
    ]
    assert rows[6]["strict"] == {"extracted": None, "correct": False}
    assert rows[6]["flexible"] == {"extracted": "1,004", "correct": True}
    json.dumps(rows)
    options = lm.asked[0][1]
    assert (options["do_sample"], options["temperature"], options["max_gen_toks"]) == (
        True,
        0.7,
        256,
    )


def test_a_single_problem_has_no_standard_error():
    task, result = items("omega", ROWS["omega"][:1])
    outcome = score(Rigged({result[0].prompt: ["2"]}), {"omega": (task, result)}, Sampling())[
        "omega"
    ]
    assert (
        math.isnan(outcome.scores["flexible/pass@1"].stderr)
        and outcome.scores["flexible/pass@1"].value == 1.0
    )


MODEL, TOKENIZER = tiny_model(), byte_tokenizer()
OWN = own("mine", prompt="q", solution="a", answer=None)
QUESTIONS = [{"q": "What is " + "really " * n + f"{n}?", "a": f"It is {n}."} for n in range(5)]
MINE = [OWN.item(row, f"mine:{at}") for at, row in enumerate(QUESTIONS, 1)]


def completions(model=MODEL, **sampling):
    outcome = score_model(
        model, TOKENIZER, {"mine": (OWN, MINE)}, Sampling(new_tokens=12, **sampling)
    )["mine"]
    return [row["completion"] for row in outcome.generations]


def test_left_padded_batches_write_what_each_prompt_alone_does():
    batched = completions(batch_size=5)
    assert batched == completions(batch_size=1)
    for item, text in zip(MINE, batched, strict=True):
        ids = TOKENIZER(item.prompt, return_tensors="pt")
        out = MODEL.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert text == TOKENIZER.decode(
            out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True
        )


def test_the_checkpoints_own_generation_settings_do_not_change_the_protocol():
    plain = completions()
    penalised = tiny_model()
    penalised.generation_config.repetition_penalty = 5.0
    penalised.generation_config.temperature = 0.1
    kept = penalised.generation_config
    assert completions(penalised) == plain
    assert penalised.generation_config is kept


def test_samples_follow_the_seed_and_leave_the_callers_state_alone():
    state = torch.get_rng_state()
    first = completions(samples=3, temperature=1.0, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == completions(samples=3, temperature=1.0, seed=1)
    assert first != completions(samples=3, temperature=1.0, seed=2)
    assert len(first) == 15


def test_the_whole_distribution_is_sampled():
    """At a high temperature nearly every one of 258 tokens comes up; transformers' own top_k would
    leave 50.
    """
    item = OWN.item({"q": "?", "a": "1"}, "mine:1")
    sampling = Sampling(samples=16, temperature=1e4, new_tokens=64, batch_size=16)
    outcome = score_model(MODEL, TOKENIZER, {"mine": (OWN, [item])}, sampling)["mine"]
    seen = {byte for row in outcome.generations for byte in row["completion"].encode()}
    assert len(seen) > 100


def test_the_model_and_its_tokenizer_are_left_as_they_were():
    model, tokenizer = tiny_model().train(), byte_tokenizer()
    tokenizer.pad_token = None
    side = tokenizer.padding_side
    score_model(model, tokenizer, {"mine": (OWN, MINE)}, Sampling(new_tokens=2))
    assert all(module.training for module in model.modules())
    assert tokenizer.pad_token is None and tokenizer.padding_side == side
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
    )


def test_the_likelihood_is_the_one_of_training():
    outcome = score_model(
        MODEL, TOKENIZER, {"mine": (OWN, MINE)}, Sampling(new_tokens=2, batch_size=3)
    )["mine"]
    documents, _ = encode([Row(f"{row['q']}\n", row["a"], "", "") for row in QUESTIONS], TOKENIZER)
    aligned = aligned_parameters(MODEL, Anatomy.of(MODEL), blocks=1, patterns=[])
    learner = CausalLearner(MODEL, aligned)
    expected = negative_log_likelihood(learner, documents, batch_size=2, pad_id=0)
    result = outcome.scores["nll"]
    assert result.value == pytest.approx(expected.value, rel=1e-5)
    assert result.stderr == pytest.approx(expected.stderr, rel=1e-4)
    assert result.n == expected.n and result.items == pytest.approx(expected.items, rel=1e-4)


def test_conversations_of_ones_own_are_written_by_the_chat_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<eos>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<eos>assistant: {% endif %}"
    )
    chat = Wording(table=Table(format="chat", prompt="problem", solution="work"))
    task = own("mine", prompt="q", solution="a", answer=None, wording=chat)
    result = [task.item(row, f"mine:{at}") for at, row in enumerate(QUESTIONS, 1)]
    rows = [item.row for item in result]
    sampling = Sampling(new_tokens=12, batch_size=2)
    outcome = score_model(MODEL, tokenizer, {"mine": (task, result)}, sampling)["mine"]
    prompts = Layout(tokenizer).prompts(rows)
    assert all(ids[0] == tokenizer.eos_token_id for ids in prompts)
    for ids, written in zip(prompts, outcome.generations, strict=True):
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        out = MODEL.generate(torch.tensor([ids]), **options)[0, len(ids) :]
        assert written["completion"] == tokenizer.decode(out, skip_special_tokens=True)
    documents, _ = encode(rows, tokenizer)
    learner = CausalLearner(
        MODEL, aligned_parameters(MODEL, Anatomy.of(MODEL), blocks=1, patterns=[])
    )
    expected = negative_log_likelihood(learner, documents, batch_size=2, pad_id=0)
    assert outcome.scores["nll"].value == pytest.approx(expected.value, rel=1e-5)


def test_a_learner_with_adapters_is_scored_in_the_midst_of_training():
    model = tiny_model()
    lora.attach(model, Lora(r=2), base=None, seed=0)
    aligned = aligned_parameters(model, Anatomy.of(model), blocks=1, patterns=[])
    learner = CausalLearner(model.train(), aligned, autocast=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = score_learner(
        learner,
        TOKENIZER,
        {name: items(name) for name in ("gsm8k", "mmlu")},
        Sampling(new_tokens=2),
    )
    assert {name: each.n for name, each in scores.items()} == {
        "gsm8k/strict/pass@1": 4,
        "gsm8k/flexible/pass@1": 4,
        "mmlu/accuracy": 3,
    }
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_prompts_that_do_not_fit_are_counted():
    task, result = items("gsm8k")
    short = tiny_model(positions=120)
    outcome = score_model(short, TOKENIZER, {"gsm8k": (task, result)}, Sampling(new_tokens=8))[
        "gsm8k"
    ]
    assert outcome.cut_prompts == 4


@pytest.mark.data
def test_every_gold_solution_of_gsm8k_is_right(shared_data):
    task = BENCHMARKS["gsm8k"]
    rows = [
        json.loads(line)
        for line in (shared_data / "gsm8k" / "test.jsonl").read_text("utf-8").splitlines()
    ]
    assert len(rows) == 1319
    for row in rows:
        item = task.item(row, "")
        for find in task.extract.values():
            assert task.judge(item.expected, find(row["answer"]))


def test_the_likelihood_is_summed_in_float32_and_of_as_many_tokens_as_in_training():
    model = tiny_model().bfloat16()
    aligned = aligned_parameters(model, Anatomy.of(model), blocks=1, patterns=[])
    rows = [Row(f"{row['q']}\n", row["a"], "", "") for row in QUESTIONS]
    cut = own("mine", prompt="q", solution="a", answer=None, wording=Wording(max_tokens=30))
    for task, longest in ((OWN, None), (cut, 30)):
        documents, _ = encode(rows[:2], TOKENIZER, max_tokens=longest)
        expected = negative_log_likelihood(
            CausalLearner(model, aligned), documents, batch_size=2, pad_id=0
        )
        items = [task.item(row, f"mine:{at}") for at, row in enumerate(QUESTIONS[:2], 1)]
        outcome = score_model(model, TOKENIZER, {"mine": (task, items)}, Sampling(new_tokens=2))
        result = outcome["mine"].scores["nll"]
        assert result.items == pytest.approx(expected.items, rel=2e-3) and result.n == expected.n
