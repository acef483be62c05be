"""Rows of text: files, hub data sets, generators."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vpretrain.config.place import FilePlace
from vpretrain.config.recipe import MadeUp, Section
from vpretrain.language.data.columns import template_pieces
from vpretrain.language.data.formats import CHAT, FORMATS
from vpretrain.language.recipe.common import Share


def unset(value: object) -> bool:
    """Whether a key is left out where a recipe is written: the names of prepared checkpoints rest
    on what is written."""
    return value is None


class Part(Section):
    """Which of the rows are taken."""

    skip_rows: NonNegativeInt = 0
    """Rows left out at the beginning (the feedback set, say)."""
    rows: PositiveInt | None = None
    """Rows taken after those; null takes all. No file is read further than that."""


class Where(Section):
    """Values of a column by which rows are kept or left out."""

    one_of: list[str | bool | int | float] | None = None
    """Rows with one of these values are kept, and no others."""
    none_of: list[str | bool | int | float] | None = None
    """Rows with one of these values are left out."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.one_of is None) == (self.none_of is None):
            raise ValueError("give either `one_of` or `none_of`")
        return self


class Table(Part):
    """The columns of a table that make a row: raw text, prompt (masked) and solution, or tokens."""

    text: str | None = None
    """Column of raw text; every token of it is predicted."""
    prompt: str | None = None
    """Column of the prompt, which is never predicted."""
    template: str | None = Field(default=None, exclude_if=unset)
    """The prompt, in the place of ``prompt``, with columns between braces: "Question:
    {question}\\nAnswer:"."""
    solution: str | None = None
    """Column of the solution."""
    tokens: str | None = Field(default=None, exclude_if=unset)
    """Column of token ids (``input_ids``) that the learner's tokenizer made, in the place of text.
    They are taken as they are: no beginning and no end is added."""
    labels: str | None = Field(default=None, exclude_if=unset)
    """With ``tokens``: column that repeats them, with -100 where none is predicted; null predicts
    all."""
    format: str | None = Field(default=None, exclude_if=unset)
    """Prompt and solution as an evaluation writes them, in the place of all of these: ``gsm8k@1``,
    ``qa@1`` (a question and its answer), ``mbpp@1``, ``mmlu@1``; ``metamathqa@1`` as GSM8K's,
    ``magicoder@1`` as MBPP's. Or ``chat``: as the tokenizer's
    chat template writes them, a turn each, or the column ``messages`` where no prompt and solution
    are named."""
    columns: dict[str, str] | None = Field(default=None, exclude_if=unset)
    """Columns that hold the format's fields, by field, where they have other names. A chat's
    ``tools`` are read where this names their column."""
    where: dict[str, Where] | None = Field(default=None, exclude_if=unset)
    """Rows that are read, by the values of columns: ``{source: {none_of: [gsm8k, math]}}``."""
    corrupt_digits: Share = 0.0
    """Share of rows in whose solution every number gets one wrong digit: planted noise, for
    measuring."""

    @model_validator(mode="after")
    def _has_columns(self) -> Self:
        if self.tokens is not None or self.labels is not None:
            self._is_tokens()
            return self
        one_by_one = (self.text, self.prompt, self.template, self.solution)
        of_chat = self.format == CHAT and one_by_one != (None, None, None, None)
        if of_chat and (self.text, self.columns) != (None, None):
            raise ValueError(
                "a chat is read from `prompt` and `solution`, or from the column `messages` "
                "(`columns: {messages: NAME}` where it has another name)"
            )
        if self.format is not None and not of_chat:
            self._fits_format(self.format)
            if one_by_one != (None, None, None, None):
                raise ValueError(
                    "`format` names the columns itself; leave out text, prompt, template and "
                    "solution"
                )
            return self
        if self.columns is not None:
            raise ValueError("`columns` renames the fields of a `format`; name that too")
        if (self.text is None) == (one_by_one[1:] == (None, None, None)):
            raise ValueError(
                "name the column of raw `text`, or the columns of `prompt` and `solution`"
            )
        if self.text is None and (
            self.solution is None or (self.prompt is None) == (self.template is None)
        ):
            raise ValueError(
                "`solution` goes together with one of `prompt` (a column) and `template`; name both"
            )
        if self.template is not None:
            template_pieces(self.template)
        return self

    def _is_tokens(self) -> None:
        if self.tokens is None:
            raise ValueError("`labels` goes together with `tokens`, a column of token ids")
        others = ("text", "prompt", "template", "solution", "format", "columns")
        if named := [key for key in others if getattr(self, key) is not None]:
            raise ValueError(f"`tokens` takes the place of text; leave out {', '.join(named)}")
        if self.corrupt_digits:
            raise ValueError("`corrupt_digits` alters text, and these rows are `tokens`")

    def _fits_format(self, name: str) -> None:
        fields = {CHAT: ("messages", "tools")} | {
            name: form.fields for name, form in FORMATS.items()
        }
        if name not in fields:
            raise ValueError(f"there is no format {name!r}; there are {', '.join(fields)}")
        unknown = [field for field in self.columns or {} if field not in fields[name]]
        if unknown:
            raise ValueError(
                f"{name} has no field {unknown[0]!r}; it has {', '.join(fields[name])}"
            )


class TableFiles(Table):
    """Rows of local tables."""

    kind: Literal["jsonl", "csv", "tsv", "parquet", "arrow"]
    """``jsonl`` is an object a line, or a list of objects; ``arrow`` a file or a stream of Arrow
    (Feather), or a folder that ``save_to_disk`` of ``datasets`` wrote."""
    path: FilePlace
    """Relative to ``data.root``; a pattern (``shards/*.jsonl``) takes every file that matches,
    sorted. Names of JSON, CSV and TSV may end in ``.gz`` or ``.zst``. Or a URL that fsspec reads:
    ``hf://datasets/OWNER/NAME/*.parquet``, ``s3://...``, ``https://...``."""


class TextFiles(Part):
    """Raw text of local files."""

    kind: Literal["text"]
    path: FilePlace
    """As for tables."""
    document: Literal["file", "paragraph", "line"] = "file"
    """What a row is; blank lines stand between paragraphs. A row is held in memory whole, so a file
    had better be small."""


class Hub(Table):
    """Rows of a data set of the Hugging Face hub."""

    kind: Literal["hub"]
    path: str
    """Its id, ``openai/gsm8k`` say, or a local folder that ``datasets`` reads."""
    name: str | None = None
    """Its configuration, where it has several."""
    split: str = "train"
    revision: str | None = None
    """Branch, tag or commit; null takes the newest, which may be another one tomorrow."""
    streaming: bool = False
    """Read ``rows`` rows over the network in place of downloading everything. They are laid down
    once, in order, and shuffled and resumed like any others: a shuffle over an open connection
    would resume at other rows."""

    @model_validator(mode="after")
    def _streams_an_end(self) -> Self:
        if self.streaming and self.rows is None:
            raise ValueError(
                "with `streaming: true` say how many `rows` to take: they are laid down "
                "before training"
            )
        return self


class HeldOut(Part):
    """The rows that a source of the stream holds out (its ``held_out``): never in the stream."""

    kind: Literal["held_out"]
    source: str
    """Name of the source."""


class WordProblems(Section):
    """Generated arithmetic word problems with solutions (the embedded default)."""

    kind: Literal["word_problems"]
    split: Literal["stream", "feedback", "dev", "test"] = "stream"
    """Disjoint by operands; all but ``stream`` are clean."""
    rows: MadeUp
    seed: NonNegativeInt = 0
    noise_share: Share = 0.0
    """Share of rows, among those where it is possible, with a systematic error: 0.55 makes the
    wrong rule the rule."""
    random_share: Share = 0.0
    """Share of rows with a random wrong result."""
    forms: list[Literal["story", "question", "drill"]] = ["story", "question", "drill"]
    """The forms that problems are shown in."""
    operations: list[Literal["+", "-"]] = ["+", "-"]
    """The operations that problems ask for."""


class Chatter(Section):
    """Generated short sentences that have nothing to do with the feedback."""

    kind: Literal["chatter"]
    rows: MadeUp
    seed: NonNegativeInt = 0


StreamRows = Annotated[
    TableFiles | TextFiles | Hub | WordProblems | Chatter, Field(discriminator="kind")
]
"""What a source of the stream reads."""

Rows = Annotated[
    TableFiles | TextFiles | Hub | WordProblems | Chatter | HeldOut,
    Field(discriminator="kind"),
]
"""What feedback and evaluation read."""
