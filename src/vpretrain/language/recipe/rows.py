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
    """Whether a key is left out of a serialised recipe. Names of prepared checkpoints are derived
    from the serialised recipe, so a new optional key must not change them."""
    return value is None


class Part(Section):
    """Which part of the rows is used."""

    skip_rows: NonNegativeInt = 0
    """Number of usable rows to skip at the start (for example, those of the feedback set)."""
    rows: PositiveInt | None = None
    """Number of usable rows to take after the skipped ones; null takes all. Nothing after them is
    read."""


class Where(Section):
    """A filter of rows by the values of a column."""

    one_of: list[str | bool | int | float] | None = None
    """Only rows with one of these values are kept."""
    none_of: list[str | bool | int | float] | None = None
    """Rows with one of these values are left out."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.one_of is None) == (self.none_of is None):
            raise ValueError("give either `one_of` or `none_of`")
        return self


class Table(Part):
    """The columns that form a row: raw text, prompt (masked) and solution, or tokens."""

    text: str | None = None
    """Column of raw text; every token of it is predicted."""
    prompt: str | None = None
    """Column of the prompt, which is never predicted."""
    template: str | None = Field(default=None, exclude_if=unset)
    """Template of the prompt with column names in braces, in place of ``prompt``: "Question:
    {question}\\nAnswer:"."""
    solution: str | None = None
    """Column of the solution."""
    tokens: str | None = Field(default=None, exclude_if=unset)
    """Column of token ids (``input_ids``) from the learner's tokenizer, in place of text. They are
    used unchanged: no beginning or end token is added."""
    labels: str | None = Field(default=None, exclude_if=unset)
    """Column of labels for ``tokens``: the token itself (not shifted), or -100 where it is not
    predicted; null predicts all tokens."""
    format: str | None = Field(default=None, exclude_if=unset)
    """Format of prompt and solution, in place of naming the columns: ``gsm8k@1``, ``qa@1``
    (question and answer), ``mbpp@1``, ``mmlu@1``, ``metamathqa@1`` (written like GSM8K),
    ``magicoder@1`` (like MBPP), or ``chat``. ``chat`` applies the tokenizer's chat template to
    ``prompt`` and ``solution`` as one turn each or, if not given, to the column ``messages``."""
    columns: dict[str, str] | None = Field(default=None, exclude_if=unset)
    """Columns of the format's fields, by field, if their names differ. The ``tools`` of a chat are
    read only if their column is named here."""
    where: dict[str, Where] | None = Field(default=None, exclude_if=unset)
    """Filters of the rows, by column: ``{source: {none_of: [gsm8k, math]}}``."""
    corrupt_digits: Share = 0.0
    """Fraction of rows in which one digit of every number of the solution is replaced by a wrong
    one: synthetic noise for experiments."""

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
    """File format. ``jsonl``: one JSON object a line, or a list of objects; ``arrow``: an Arrow
    file or stream (Feather), or a folder written by ``save_to_disk`` of ``datasets``."""
    path: FilePlace
    """A path relative to ``data.root``, a pattern (``shards/*.jsonl``, all matching files in sorted
    order), or a URL that fsspec reads (``hf://datasets/OWNER/NAME/*.parquet``, ``s3://...``,
    ``https://...``). JSON, CSV and TSV may be compressed (``.gz`` or ``.zst``)."""


class TextFiles(Part):
    """Raw text of local files."""

    kind: Literal["text"]
    path: FilePlace
    """A path relative to ``data.root``, a pattern or a URL, as for tables."""
    document: Literal["file", "paragraph", "line"] = "file"
    """The unit of text that forms a row; paragraphs are separated by blank lines. Each row is held
    in memory as a whole, so use ``file`` for small files only."""


class Hub(Table):
    """Rows of a data set of the Hugging Face hub."""

    kind: Literal["hub"]
    path: str
    """Id of the data set (``openai/gsm8k``), or a local folder that ``datasets`` reads."""
    name: str | None = None
    """Configuration of the data set, if it has several."""
    split: str = "train"
    revision: str | None = None
    """Branch, tag or commit; null takes the newest, which may change between runs."""
    streaming: bool = False
    """Whether to read only the first ``rows`` rows over the network, rather than download the whole
    data set. They are stored on disk once, then shuffled and resumed exactly like other rows."""

    @model_validator(mode="after")
    def _streams_an_end(self) -> Self:
        if self.streaming and self.rows is None:
            raise ValueError(
                "with `streaming: true` say how many `rows` to take: they are laid down "
                "before training"
            )
        return self


class HeldOut(Part):
    """Rows held out by a source of the stream (its ``held_out``), which never enter the stream."""

    kind: Literal["held_out"]
    source: str
    """Name of the source."""


class WordProblems(Section):
    """Generated arithmetic word problems with solutions (the embedded default)."""

    kind: Literal["word_problems"]
    split: Literal["stream", "feedback", "dev", "test"] = "stream"
    """The splits share no operands; all but ``stream`` are free of errors."""
    rows: MadeUp
    seed: NonNegativeInt = 0
    noise_share: Share = 0.0
    """Fraction of stream rows with a systematic error, among those that need a carry or a borrow:
    at 0.55 the wrong rule is more frequent than the right one."""
    random_share: Share = 0.0
    """Fraction of the other stream rows in which one digit of the result is wrong at random."""
    forms: list[Literal["story", "question", "drill"]] = ["story", "question", "drill"]
    """Wordings of the problems."""
    operations: list[Literal["+", "-"]] = ["+", "-"]
    """Arithmetic operations of the problems."""


class Chatter(Section):
    """Generated short sentences that are unrelated to the feedback."""

    kind: Literal["chatter"]
    rows: MadeUp
    seed: NonNegativeInt = 0


StreamRows = Annotated[
    TableFiles | TextFiles | Hub | WordProblems | Chatter, Field(discriminator="kind")
]
"""Rows of a source of the stream."""

Rows = Annotated[
    TableFiles | TextFiles | Hub | WordProblems | Chatter | HeldOut,
    Field(discriminator="kind"),
]
"""Rows of feedback and evaluation."""
