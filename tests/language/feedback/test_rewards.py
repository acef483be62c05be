"""Policy gradients: unbiased on a toy that can be enumerated, silent where nothing differs, and
drawn apart from all else.
"""

import copy
import itertools
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from tests.language.conftest import CONFIGS, tiny_learner
from vpretrain.language.data.rows import Document, Row
from vpretrain.language.feedback.checkers import (
    CHECKERS,
    DEFAULT_PATTERNS,
    CheckerFault,
    Contains,
    EqualNumber,
    ExactAnswer,
)
from vpretrain.language.feedback.likelihood import parted
from vpretrain.language.feedback.rewards import (
    Rewards,
    Sampling,
    group_normalised,
    leave_one_out,
    sample,
)
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.system.errors import UserError, user_error

EOS = 1


class Ids:
    """A tokenizer whose text is the ids."""

    eos_token_id = EOS

    def batch_decode(self, answers, skip_special_tokens):
        return [" ".join(str(token) for token in answer if token != EOS) for answer in answers]


def toy(vocabulary=7):
    """A learner whose every answer of one token can be counted out."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **{**CONFIGS["gpt2"], "vocab_size": vocabulary}, initializer_range=0.3
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    return CausalLearner(model, aligned_parameters(model, Anatomy.of(model), blocks=1, patterns=[]))


def prompts(count=2, length=3, vocabulary=7):
    generator = torch.Generator().manual_seed(5)
    result = []
    for at in range(count):
        ids = torch.randint(2, vocabulary, (length + at,), generator=generator).tolist()
        result.append(Document([*ids, 2, EOS], [False] * len(ids) + [True] * 2, f"r:{at}", "r"))
    return result


def feedback_on(documents, checker, batches=1, baseline="leave_one_out", seed=0, **sampling):
    rows = {d.origin: Row("prompt", "2", d.origin, "r") for d in documents}
    samplers = parted(documents, batches, batch_size=len(documents) // batches, seed=0, pad_id=0)
    sampling = Sampling(**{"answers": 2, "temperature": 0.8, "new_tokens": 1, **sampling})
    return Rewards(samplers, rows, Ids(), checker, sampling=sampling, baseline=baseline, seed=seed)


def worth(row, text):
    """Another reward for every token, so that no advantage is zero by chance."""
    return sum((int(token) - 2) ** 2 for token in text.split()) / 5 if text else 0.3


def policies(learner, documents, temperature):
    """[P, V]: the probability of each first token, with its graph."""
    rows = []
    for document in documents:
        ids = torch.tensor([document.ids[: document.predicted.index(True)]])
        rows.append(torch.softmax(learner.model(input_ids=ids).logits[0, -1] / temperature, dim=0))
    return torch.stack(rows)


def exact_gradient(learner, documents, temperature):
    p = policies(learner, documents, temperature)
    rewards = torch.tensor(
        [worth(None, "" if v == EOS else str(v)) for v in range(p.shape[1])], dtype=p.dtype
    )
    return torch.autograd.grad(-(p @ rewards).mean(), list(learner.aligned.values()))


def test_the_expected_policy_gradient_is_the_gradient_of_expected_reward(monkeypatch):
    """Every pair of one-token answers, weighed by its probability: no sampling error."""
    learner, documents = toy(), prompts(1)
    feedback = feedback_on(documents, worth)
    p = policies(learner, documents, 0.8)[0].detach()
    total = {name: torch.zeros_like(parameter) for name, parameter in learner.aligned.items()}
    for a, b in itertools.product(range(len(p)), repeat=2):
        monkeypatch.setattr(feedback, "_answers", lambda *_, pair=(a, b): [[pair[0]], [pair[1]]])
        (result,) = feedback.gradients(learner)
        for name, piece in result.items():
            total[name] += p[a] * p[b] * piece
    for got, want in zip(total.values(), exact_gradient(learner, documents, 0.8), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_what_is_drawn_follows_the_policy():
    """Monte Carlo through the real draws: along the exact gradient, within four standard errors."""
    learner, documents = toy(), prompts(2)
    exact = exact_gradient(learner, documents, 0.8)
    feedback = feedback_on(documents, worth, answers=64)
    along = []
    for _ in range(24):
        (result,) = feedback.gradients(learner)
        along.append(float(sum((g * e).sum() for g, e in zip(result.values(), exact, strict=True))))
    along = torch.tensor(along)
    expected = float(sum((e * e).sum() for e in exact))
    assert abs(along.mean() - expected) < 4 * along.std() / len(along) ** 0.5
    assert (
        along.std() / len(along) ** 0.5 < 0.2 * expected
    )  # or the bound above would hold for anything


def test_a_step_against_the_gradient_earns_more():
    learner, documents = toy(), prompts(2)
    feedback = feedback_on(documents, lambda row, text: float(text == row.text), answers=32)
    before = policies(learner, documents, 1.0)[:, 2].mean()
    for _ in range(5):
        (gradient,) = feedback.gradients(learner)
        with torch.no_grad():
            for name, parameter in learner.aligned.items():
                parameter -= 0.3 * gradient[name]
    assert policies(learner, documents, 1.0)[:, 2].mean() > before + 0.05


@pytest.mark.parametrize("baseline", ["leave_one_out", "group_normalised"])
def test_equal_rewards_say_nothing(baseline):
    learner, documents = toy(), prompts(2)
    feedback = feedback_on(documents, lambda row, text: 0.1, baseline=baseline, answers=3)
    (result,) = feedback.gradients(learner)
    assert all((piece == 0).all() for piece in result.values())
    assert feedback.metrics() == {"reward": pytest.approx(0.1), "informative": 0.0}


def test_baselines_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.1, 0.1, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(
        leave_one_out(rewards)[0], torch.tensor([1.0, -0.5, -0.5], dtype=torch.float64)
    )
    normal = group_normalised(rewards)
    torch.testing.assert_close(normal[0], torch.tensor([2, -1, -1], dtype=torch.float64) / 2**0.5)
    for advantages in (leave_one_out(rewards), normal):
        assert torch.isfinite(advantages).all() and (advantages[1] == 0).all()


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_prompts_of_all_lengths_are_answered_as_if_alone(family):
    """Left padding and cache against the plain model, cold enough to be greedy, and the
    checkpoint's settings ignored.
    """
    learner = tiny_learner(family, dtype=torch.float64)
    learner.model.generation_config = GenerationConfig(top_k=1, repetition_penalty=9.0)
    generator = torch.Generator().manual_seed(2)
    asked = [torch.randint(3, 40, (size,), generator=generator).tolist() for size in (2, 7, 4)]
    result = sample(
        learner,
        asked,
        torch.Generator().manual_seed(0),
        temperature=1e-6,
        new_tokens=6,
        end_ids=[EOS],
        pad_id=0,
    )
    for prompt, answer in zip(asked, result, strict=True):
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(learner.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == EOS:
                break
        assert answer == ids[len(prompt) :]


def test_answers_end_with_their_end_token():
    learner = toy()
    drawn = sample(
        learner,
        [[3, 4]] * 200,
        torch.Generator().manual_seed(0),
        temperature=1.0,
        new_tokens=12,
        end_ids=[EOS],
        pad_id=0,
    )
    assert all(EOS not in answer[:-1] for answer in drawn)
    assert any(answer[-1] == EOS and len(answer) < 12 for answer in drawn)
    assert all(len(answer) == 12 or answer[-1] == EOS for answer in drawn)


def test_an_answer_also_ends_where_the_checkpoint_ends_a_turn():
    """As Gemma and Phi do by a token that is not the tokenizer's end token."""
    learner, documents, seen = toy(), prompts(1), []
    learner.model.generation_config = GenerationConfig(eos_token_id=[EOS, 3])
    feedback = feedback_on(
        documents, lambda row, text: seen.append(text.split()) or 0.0, answers=64, new_tokens=8
    )
    feedback.gradients(learner)
    assert all("3" not in tokens[:-1] for tokens in seen)
    assert any(tokens[-1:] == ["3"] and len(tokens) < 8 for tokens in seen)


def test_learner_random_numbers_and_gradients_are_left_alone():
    learner = toy()
    learner.model.train()
    documents = prompts(4)
    torch.manual_seed(11)
    before, state = torch.get_rng_state(), copy.deepcopy(learner.model.state_dict())
    assert len(feedback_on(documents, worth, batches=2, new_tokens=4).gradients(learner)) == 2
    assert torch.equal(torch.get_rng_state(), before) and learner.model.training
    assert all(p.grad is None and p.requires_grad for p in learner.model.parameters())
    assert all(
        torch.equal(value, state[name]) for name, value in learner.model.state_dict().items()
    )


def test_draws_are_a_function_of_the_seed_and_go_on_after_a_resume():
    learner, documents = toy(), prompts(4)
    make = lambda seed: feedback_on(documents, worth, batches=2, seed=seed, answers=4)  # noqa: E731
    straight, again, other = make(0), make(0), make(1)
    first, same, different = (each.gradients(learner) for each in (straight, again, other))
    assert all(torch.equal(first[0][name], same[0][name]) for name in first[0])
    assert any(not torch.equal(first[0][name], different[0][name]) for name in first[0])
    resumed = make(0)
    resumed.load_state_dict(straight.state_dict())
    then, later = straight.gradients(learner), resumed.gradients(learner)
    assert all(torch.equal(then[1][name], later[1][name]) for name in then[1])
    assert any(not torch.equal(first[0][name], then[0][name]) for name in then[0])


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(UserError, match=r"data\.feedback\.checker.*r:0"):
        feedback_on(prompts(1), lambda row, text: float("nan")).gradients(toy())


def test_a_reward_that_is_no_number_on_another_process_is_refused_here_too(monkeypatch):
    """Otherwise this process would wait for one that is gone."""
    theirs = user_error("data.feedback.checker", "not finite", value="nan")
    monkeypatch.setattr("vpretrain.system.distributed.all_gather_object", lambda own: [own, theirs])
    with pytest.raises(UserError, match="not finite"):
        feedback_on(prompts(1), lambda row, text: 1.0).gradients(toy())


def test_what_costs_a_batch_gives_way_to_what_ends_the_run(monkeypatch):
    """Otherwise this process would skip the batch and wait for one that is gone."""
    theirs = user_error("data.feedback.checker", "not finite", value="nan")
    monkeypatch.setattr("vpretrain.system.distributed.all_gather_object", lambda own: [own, theirs])
    with pytest.raises(UserError, match="not finite"):
        feedback_on(prompts(1), lambda row, text: 1 / 0).gradients(toy())


def test_answers_beyond_the_positions_are_refused_before_the_first_step():
    """With value.start_step the first gradient may be hours away."""
    learner = toy()
    positions = learner.model.config.max_position_embeddings
    feedback = feedback_on(prompts(1), lambda row, text: 1.0, new_tokens=positions)
    with pytest.raises(UserError, match="new_tokens"):
        feedback.prepare(learner)


def endless(row, text):
    while True:
        pass


@pytest.mark.parametrize(
    ("checker", "said"),
    [
        (endless, r"longer than 0\.2 seconds on r:0"),
        (lambda row, text: 1 / 0, r"ZeroDivisionError.* on r:0"),
        (lambda row, text: sys.exit(0), r"SystemExit\(0\) on r:0"),
        (lambda row, text: "much", r"ValueError.* on r:0"),
    ],
    ids=["never returns", "raises", "leaves", "no number"],
)
def test_a_checker_that_fails_names_the_row(checker, said):
    feedback = feedback_on(prompts(1), checker)
    feedback.checker_seconds = 0.2
    with pytest.raises(CheckerFault, match=rf"data\.feedback\.checker: .*{said}"):
        feedback.gradients(toy())


@pytest.mark.parametrize(
    ("checker", "reference", "completion", "reward"),
    [
        (ExactAnswer(r"####\s*(.+)"), "so\n#### New  York", "I say #### Rome\n#### new york ", 1),
        (ExactAnswer(r"####\s*(.+)"), "so\n#### 4", "4", 0),
        (ExactAnswer(r"####\s*(.+)"), "no answer", "no answer", 0),
        (EqualNumber(), "that is 1,234", "1 + 2 = $1234.00", 1),
        (EqualNumber(), "that is 1,234", "1234 or 1235", 0),
        (EqualNumber(), "#### -3", "minus 3", 0),
        (EqualNumber(), "#### -3", "x = -3.", 1),
        (EqualNumber(), "#### 0.1", "0.10000001", 1),
        (EqualNumber(), "none", "none", 0),
        (EqualNumber(), "it is 1/3", "it is 2/3", 0),
        (EqualNumber(), r"so $\boxed{\frac{1}{2}}$", r"so $\boxed{\frac{3}{2}}$", 0),
        (EqualNumber(r"\\boxed\{(.+)\}"), r"$\boxed{\frac{1}{2}}$", r"$\boxed{0.5}$", 1),
        (EqualNumber(), "3 or more", "the numbers are 1,2,3", 1),
        (EqualNumber(), "5", "between 3-5", 1),
        (EqualNumber(), "9" * 400, "9" * 400, 1),
        (EqualNumber(r"####\s*(.+)"), "12 = 5 + 7\n#### 12 pens", "#### 12\nbut 99 is prime", 1),
        (Contains(), " Paris ", "the capital is PARIS, of course", 1),
        (Contains(), "Paris", "Par is", 0),
        (Contains(r"####\s*(.+)"), "because\n#### Paris", "Paris", 1),
    ],
)
def test_checkers(checker, reference, completion, reward):
    assert checker(Row("q", reference, "o", "s"), completion) == reward


def test_every_checker_pays_for_the_solution_itself():
    row = Row("q", "2 + 2 = 4\n#### 4", "o", "s")
    assert set(DEFAULT_PATTERNS) <= set(CHECKERS)
    assert all(
        CHECKERS[name](pattern)(row, row.text) == 1 for name, pattern in DEFAULT_PATTERNS.items()
    )
