"""Rows as a pretrained model knows text: tokenised as a whole, begun as the tokenizer begins it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import PreTrainedTokenizerFast

from vpretrain.language.data.formats import conversation
from vpretrain.language.data.layout import Layout
from vpretrain.language.data.row_store import StoredRows
from vpretrain.language.data.rows import Row, encode
from vpretrain.language.data.stream import Source, Stream
from vpretrain.system.errors import UserError

CORPUS = [
    "Natalia sold 48 clips in April, and half as many in May. How many in all?",
    "Weng earns $12 an hour for babysitting. Yesterday, she did 50 minutes:\n\tnothing!",
    "def f(x):\n    return x + 1\n\n\nAnswer: 72\nQuestion: What's 3 times 4?",
] * 20
CONTROLS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(*, prefix_space=False, digits=False, bos=False, trim=True):
    """As GPT-2, SmolLM2 (digits one by one) or Llama 3 (a BOS by its post-processor)."""
    backend = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
        if digits
        else level
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    steps = [processors.ByteLevel(trim_offsets=trim)]
    if bos:
        steps.append(processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)]))
    backend.post_processor = processors.Sequence(steps)
    return wrapped(backend)


def metaspace(model, trainer, *, legacy=False, bos=True):
    """As sentencepiece models: words begin with a metaspace, unknown characters fall to bytes."""
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(CORPUS, trainer)
    if legacy:
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            "<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    state = json.loads(backend.to_str())  # bytes are ordinary tokens once they are trained with
    state["added_tokens"] = [t for t in state["added_tokens"] if "<0x" not in t["content"]]
    return wrapped(Tokenizer.from_str(json.dumps(state)))


def unigram():
    trainer = UnigramTrainer(
        vocab_size=160, special_tokens=["<unk>", *CONTROLS], unk_token="<unk>", show_progress=False
    )
    return metaspace(models.Unigram(), trainer)


def byte_fallback(*, legacy):
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", *CONTROLS, *fallback], show_progress=False
    )
    tokenizer = metaspace(models.BPE(unk_token="<unk>", byte_fallback=True), trainer, legacy=legacy)
    return tokenizer


def wrapped(backend):
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>" if backend.token_to_id("<unk>") is not None else None,
        additional_special_tokens=CONTROLS[2:],
    )


TOKENIZERS = {
    "byte-level": byte_level(),
    "byte-level, prefix space": byte_level(prefix_space=True),
    "byte-level, digits": byte_level(digits=True),
    "byte-level, offsets of spaces, BOS": byte_level(bos=True, trim=False),
    "byte-level, BOS": byte_level(digits=True, bos=True),
    "unigram": unigram(),
    "byte fallback": byte_fallback(legacy=False),
    "byte fallback, normalizer": byte_fallback(legacy=True),
}
ROWS = [
    ("How many in all?", "72"),
    ("How many in all?", "Natalia sold 48."),
    ("Question: What's 3 times 4?", "  12\n"),
    ("Über é 日本:", "日 é"),
    ("def f(x):", "    return x + 1"),
    ("Answer:", "(72)"),
    ("Ends in spaces  ", "clips"),
]
SEPARATORS = ["\n", " ", "\n\n", "", "\nAnswer: ", "\t"]


@pytest.fixture(params=TOKENIZERS.values(), ids=list(TOKENIZERS))
def tokenizer(request):
    return request.param


class Slow:
    """A tokenizer without offsets."""

    is_fast = False

    def __init__(self, fast):
        self._fast = fast

    def __getattr__(self, name):
        return getattr(self._fast, name)

    def __call__(self, *texts, **options):
        return {"input_ids": self._fast(*texts, **options)["input_ids"]}


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("slow", [False, True], ids=["fast", "slow"])
def test_the_ids_are_those_of_the_whole_text_tokenised_once(tokenizer, separator, slow):
    rows = [Row(prompt + separator, text, "f:1", "f") for prompt, text in ROWS]
    documents, _ = encode(rows, Slow(tokenizer) if slow else tokenizer)
    for row, document in zip(rows, documents, strict=True):
        whole = tokenizer(row.prompt + row.text)["input_ids"]
        assert document.ids == [*whole, tokenizer.eos_token_id]


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("slow", [False, True], ids=["fast", "slow"])
def test_a_prompt_to_generate_from_ends_as_prompts_end_in_training(tokenizer, separator, slow):
    layout = Layout(Slow(tokenizer) if slow else tokenizer)
    rows = [Row(prompt + separator, "Natalia sold 48.", "f:1", "f") for prompt, _ in ROWS]
    for prompt, (_, ids, given, natural) in zip(
        layout.prompts(rows), layout.documents(rows), strict=True
    ):
        if separator:  # without any, a word may go on from the prompt's last
            assert natural
            assert ids[:given] == prompt
        # What is given holds nothing of the text, and all of the prompt but white space.
        text = tokenizer.decode(ids[given:]).lstrip()
        assert text.endswith("Natalia sold 48.")
        if separator:
            assert text.startswith("Natalia") or "Answer" not in text


def test_texts_that_begin_otherwise_share_the_prompt(tokenizer):
    """Numbers, words and brackets after a line break: the same prompt, whatever follows."""
    layout = Layout(tokenizer)
    rows = [Row("How many?\n", text, "f:1", "f") for text in ("72", "Weng", "(a)", "日本", "$12")]
    (prompt,) = {tuple(ids) for ids in layout.prompts(rows)}
    for _, ids, given, natural in layout.documents(rows):
        assert natural and tuple(ids[:given]) == prompt


@pytest.mark.parametrize("slow", [False, True], ids=["fast", "slow"])
def test_control_tokens_in_a_text_stay_text_unless_asked_for(tokenizer, slow):
    reader = Slow(tokenizer) if slow else tokenizer
    rows = [
        Row("", "a </s> b <|im_end|>", "f:1", "f"),
        Row("<s> why?\n", "for </s> you", "f:2", "f"),
    ]
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    begin = Layout(reader).begin
    for document in encode(rows, reader)[0]:
        assert document.ids[: len(begin)] == begin and document.ids[-1] == tokenizer.eos_token_id
        assert control.isdisjoint(document.ids[len(begin) : -1])
    for row, document in zip(rows, encode(rows, reader, parse_special_tokens=True)[0], strict=True):
        assert document.ids.count(tokenizer.eos_token_id) == 2
        ids = tokenizer(row.prompt + row.text, add_special_tokens=False)["input_ids"]
        assert document.ids == [
            *([] if ids[: len(begin)] == begin else begin),
            *ids,
            tokenizer.eos_token_id,
        ]


def test_every_packed_document_and_chunk_begins_as_the_tokenizer_begins_a_text(tokenizer):
    rows = StoredRows(
        "f", [Row("How many?\n", "72", "f:1", "f"), Row("", " ".join(CORPUS[:9]), "f:2", "f")]
    )
    documents, counts = encode(rows, tokenizer, max_tokens=24)
    assert counts.chunked == 1 and counts.documents > 3
    begin = Layout(tokenizer).begin
    assert begin == tokenizer("")["input_ids"]
    stream = Stream([Source("f", documents, 1.0)], batch_size=4, window_tokens=48, seed=0, pad_id=0)
    batch = next(stream)
    starts = batch.input_ids[(batch.position_ids == 0) & (batch.document >= 0)]
    assert len(starts) == len(batch.documents)
    if begin:
        assert starts.tolist() == begin * len(starts)
        first = batch.predicted[(batch.position_ids == 1) & (batch.document >= 0)]
        raw = [len(each.predicted) and each.predicted[1] for each in batch.documents]
        assert first.tolist() == raw, "the first token of a text is predicted from the BOS"
    text = [token for each in documents if each.origin == "f:2" for token in each.ids[len(begin) :]]
    whole = tokenizer(rows[1].text)["input_ids"][len(begin) :]
    assert text[: len(whole)] == whole[: len(text)] and len(whole) - len(text) < 8


def test_rows_whose_text_begins_inside_the_prompts_last_token_are_counted():
    tokenizer = byte_level()
    rows = [Row("Natal", "ia sold", "f:1", "f"), Row("How many?\n", "72", "f:2", "f")]
    documents, counts = encode(rows, tokenizer)
    assert counts.merged == 1
    assert counts.losses(99) == [
        "1 of 2 rows begin inside the last token of their prompt (see data.separator)"
    ]
    text = [i for i, on in zip(documents[0].ids, documents[0].predicted, strict=True) if on]
    assert "ia sold" in tokenizer.decode(text)


def test_a_slow_tokenizer_that_cannot_show_where_a_prompt_ends_is_refused():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "w": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"
    )
    rows = [Row("w w ", "w", "f:1", "f")]
    ((document,), _) = encode(rows, tokenizer)
    assert (document.ids, document.predicted) == ([2, 2, 2, 1], [False, False, True, True])
    with pytest.raises(UserError, match="no offsets"):
        encode(rows, Slow(tokenizer))


# --- a real pretrained model

PROBLEMS = [
    (
        "Tom has 12 apples. He gives 5 of them to Ann and buys 8 more. How many apples has he now?",
        "Tom has 12 - 5 = 7 apples after he gave some to Ann.\nThen he has 7 + 8 = 15 apples.",
    ),
    (
        "A train covers 60 miles in an hour. How far does it get in two and a half hours?",
        "In two hours the train covers 60 * 2 = 120 miles.\nIn half an hour it covers 30 miles.\n"
        "Together it covers 120 + 30 = 150 miles.",
    ),
    (
        "Mary reads 20 pages a day. Her book has 300 pages. In how many days has she read it?",
        "She reads 20 pages a day, so that she needs 300 / 20 = 15 days.",
    ),
]


@pytest.mark.model
def test_a_real_model_is_surer_of_solutions_than_with_prompt_and_text_tokenised_apart():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(os.environ.get("VPRETRAIN_MODELS", "../shared/models")) / "smollm2"
    if not (folder / "config.json").is_file():
        pytest.skip(f"no real model in {folder}: fetch one there, or set VPRETRAIN_MODELS")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def mean_loss(pairs):
        total = count = 0.0
        for prompt, text in pairs:
            ids = torch.tensor([prompt + text])
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt) - 1 : -1]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :]))
            count += 1
        return total / count

    apart, together = [], []
    for prompt, text in PROBLEMS:
        ids = tokenizer([f"{prompt} ", text], add_special_tokens=False)["input_ids"]
        apart.append((ids[0], [*ids[1], tokenizer.eos_token_id]))
        ((document,), _) = encode([Row(f"{prompt}\n", text, "f:1", "f")], tokenizer)
        given = document.predicted.index(True)
        together.append((document.ids[:given], document.ids[given:]))
    assert mean_loss(together) < mean_loss(apart) - 0.02


# --- conversations


def chat(template=CHATML, **options):
    tokenizer = byte_level(**options)
    tokenizer.chat_template = template
    return tokenizer


def talk(*turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    return conversation(messages, "f:1", "f")


@pytest.mark.parametrize("bos", [False, True])
def test_a_conversation_is_the_chat_templates_with_the_assistants_answer_predicted(bos):
    tokenizer = chat(bos=bos)
    row = talk(("system", "Be brief."), ("user", "3 times 4?"), ("assistant", "12"))
    assert (row.text, row.question) == ("12", "3 times 4?")
    ((document,), _) = encode([row], tokenizer)
    messages = row.conversation["messages"]
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    asked = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=False
    )
    assert document.ids == [*whole, tokenizer.eos_token_id]
    assert document.predicted.index(True) == len(asked)
    assert Layout(tokenizer).prompts([row]) == [asked]
    assert StoredRows("f", [row])[0] == row


def test_the_end_token_that_a_template_writes_is_not_doubled():
    tokenizer = chat(CHATML.replace("'<|im_end|>\n'", "'</s>\n'"))
    ((document,), _) = encode([talk(("user", "a"), ("assistant", "b"))], tokenizer)
    predicted = [i for i, on in zip(document.ids, document.predicted, strict=True) if on]
    assert predicted == [*tokenizer("b")["input_ids"], tokenizer.eos_token_id]


def test_what_a_chat_cannot_be_written_from_is_named():
    row = talk(("user", "a"), ("assistant", "b"))
    with pytest.raises(UserError, match="no chat template; set its"):
        encode([row], byte_level())
    for template in (
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "{% if add_generation_prompt %}{{ '<think>' }}{% endif %}{{ messages[-1].content }}",
    ):
        with pytest.raises(UserError, match="no assistant's part to predict"):
            encode([row], chat(template))
    with pytest.raises(
        UserError, match="f:1: the tokenizer's chat template cannot write this conversation: no"
    ):
        encode([row], chat("{{ raise_exception('no') }}"))
    injected = talk(("user", "a<|im_end|>"), ("assistant", "b"))
    with pytest.raises(UserError, match=r"control token(?s:.*)parse_special_tokens=true"):
        encode([injected], chat())
    encode([injected], chat(), parse_special_tokens=True)


def test_conversations_that_cannot_be_written_are_left_out_and_named_where_bad_rows_are():
    """One row of a large stream that holds a control token does not end the run."""
    good, injected = (talk(("user", text), ("assistant", "b")) for text in ("a", "a<|im_end|>"))
    documents, count = encode([good, injected, good], chat(), skip=True)
    assert (len(documents), count.documents, count.refused, count.capped) == (2, 2, 1, 0)
    (line,) = count.losses(64)
    assert "1 of 3 rows left out (data.on_bad_row: skip), the first as f:1: a message" in line
    with pytest.raises(UserError, match="no chat template; set its"):
        encode([good], byte_level(), skip=True)


def test_a_long_answer_to_an_empty_message_is_cut_and_not_asked_again_for_each_piece():
    row = talk(("user", ""), ("assistant", "so " * 200))
    (document,), count = encode([row], chat(), max_tokens=100)
    assert (len(document.ids), count.truncated, count.chunked) == (100, 1, 0)
