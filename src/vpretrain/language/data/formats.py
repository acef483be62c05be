"""Formats: how a record of named fields is written as a prompt and the expected solution.

Feedback rows and evaluation prompts of the same format are written by the same function. A format
never changes: its name carries a version, and a new wording gets a new version.

Prompt and solution of a format are joined by one space, whatever ``data.separator`` is. ``chat`` is
the format of conversations, which the learner's chat template writes once the tokenizer is known.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from vpretrain.language.data.columns import NO_CHARACTER, Columns, is_unicode, solved
from vpretrain.language.data.rows import Row
from vpretrain.system.errors import Problem, kind_of, shortened

Record = Mapping[str, Any]

FORMAT_SEPARATOR = " "
CHAT = "chat"


@dataclass(frozen=True)
class Format:
    """One format of rows.

    Args:
        fields: the fields of a record that it reads.
        prompt: writes the prompt; reads no field that holds the answer.
        solution: writes the expected solution; ``ValueError`` if the record has none.
        question: returns the question alone, without the format's wording around it.
    """

    fields: tuple[str, ...]
    prompt: Callable[[Record], str]
    solution: Callable[[Record], str]
    question: Callable[[Record], str]


def text_of(record: Record, field: str) -> str:
    """The stripped text of a field; ``ValueError`` if it holds no text."""
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} holds no text")
    return value.replace("\r\n", "\n").strip()


def _of(field: str) -> Callable[[Record], str]:
    return lambda record: text_of(record, field)


def without_fences(code: str) -> str:
    """The contents of all Markdown code blocks of a text, joined; without any, the text itself."""
    code = code.replace("\r\n", "\n")
    blocks = re.findall(
        r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", code, flags=re.DOTALL | re.MULTILINE
    )
    return "\n\n".join(block.strip("\n") for block in blocks) if blocks else code.strip("\n")


def _asked(field: str) -> Callable[[Record], str]:
    return lambda record: f"Question: {text_of(record, field)}\nAnswer:"


def _gsm8k_solution(record: Record) -> str:
    reasoning, mark, answer = text_of(record, "answer").rpartition("####")
    if not mark or not answer.strip():
        raise ValueError("answer has no line '#### RESULT' at its end")
    return _with_result(reasoning, answer)


def _metamathqa_solution(record: Record) -> str:
    """The solution in GSM8K's form; rows end in "The answer is: RESULT", some with "#### RESULT"
    before it."""
    reasoning, mark, answer = text_of(record, "response").rpartition("The answer is:")
    answer = " ".join(answer.split()).removesuffix(".")
    if not mark or not answer:
        raise ValueError("response has no 'The answer is: RESULT' at its end")
    return _with_result(re.sub(r"####[^\n]*\s*$", "", reasoning), answer)


def _with_result(reasoning: str, result: str) -> str:
    return f"{reasoning.rstrip()}\n#### {result.strip()}".lstrip("\n")


def _mbpp_prompt(record: Record) -> str:
    tests = record.get("test_list")
    if not isinstance(tests, list) or not tests or not _all_text(tests):
        raise ValueError("test_list is no list of assertions")
    shown = "\n".join(["The code has to pass:", *(test.strip() for test in tests)])
    return _task(f"{text_of(record, 'text')}\n{shown}")


def _task(text: str) -> str:
    return f"Task: {text}\nPython code without comments around it:"


def _all_text(values: list[Any]) -> bool:
    return all(isinstance(value, str) and value.strip() for value in values)


def _code(field: str) -> Callable[[Record], str]:
    def solution(record: Record) -> str:
        code = without_fences(text_of(record, field))
        if not code.strip():
            raise ValueError(f"{field} holds nothing but fences")
        return code

    return solution


def _choices(record: Record) -> list[str]:
    choices = record.get("choices")
    if not isinstance(choices, list) or not 2 <= len(choices) <= 26:
        raise ValueError("choices is no list of 2 to 26 texts")
    if not _all_text(choices):
        raise ValueError("one of the choices holds no text")
    return [choice.strip() for choice in choices]


def _mmlu_prompt(record: Record) -> str:
    choices = zip(string.ascii_uppercase, _choices(record), strict=False)
    lettered = [f"{letter}. {choice}" for letter, choice in choices]
    return "\n".join([text_of(record, "question"), *lettered, "Answer:"])


def _mmlu_solution(record: Record) -> str:
    letters = string.ascii_uppercase[: len(_choices(record))]
    answer = record.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(letters):
        return letters[answer]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in letters:
        return answer.strip().upper()
    accepted = f"0 to {len(letters) - 1}, or {letters[0]} to {letters[-1]}"
    raise ValueError(f"answer is none of the choices ({accepted})")


FORMATS: Mapping[str, Format] = {
    "gsm8k@1": Format(("question", "answer"), _asked("question"), _gsm8k_solution, _of("question")),
    "qa@1": Format(("question", "answer"), _asked("question"), _of("answer"), _of("question")),
    "metamathqa@1": Format(
        ("query", "response"), _asked("query"), _metamathqa_solution, _of("query")
    ),
    "mbpp@1": Format(("text", "code", "test_list"), _mbpp_prompt, _code("code"), _of("text")),
    "magicoder@1": Format(
        ("problem", "solution"),
        lambda record: _task(text_of(record, "problem")),
        _code("solution"),
        _of("problem"),
    ),
    "mmlu@1": Format(
        ("question", "choices", "answer"), _mmlu_prompt, _mmlu_solution, _of("question")
    ),
}
"""Formats by name and version."""


@dataclass(frozen=True)
class FormatColumns(Columns):
    """The columns that a format reads, in place of columns named one by one in the recipe.

    Args:
        format: one of :data:`FORMATS`.
        renamed: columns by field of the format, for columns with another name than their field.
    """

    format: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def named(self) -> dict[str, str]:
        fields = FORMATS[self.format].fields
        return {self.renamed.get(name, name): f"columns.{name}" for name in fields}

    def row(self, cells: Mapping[str, object], origin: str) -> Row | Problem:
        if problem := self.missing(cells, origin):
            return problem
        form = FORMATS[self.format]
        record = {name: _plain(cells[self.renamed.get(name, name)]) for name in form.fields}
        try:
            question, prompt = form.question(record), form.prompt(record) + self.separator
            solution = form.solution(record)
            if not is_unicode(prompt + solution):
                raise ValueError(f"it holds {NO_CHARACTER}")
            return solved(question, prompt, solution, origin, self.source)
        except ValueError as error:
            message = f"{error}: correct the row, or name another format"
            accepted = f"a record that {self.format} can write"
            return Problem(origin, shortened(repr(record)), accepted, message)


@dataclass(frozen=True)
class ChatColumns(Columns):
    """The columns of a conversation: messages, or a prompt and a solution as one turn each.

    Args:
        messages: column of ``[{"role": ..., "content": ...}, ...]``, which ends with a message of
            the assistant; read if no prompt and solution are named.
        tools: column of tool descriptions for the chat template, each a list or its JSON; None if
            the rows have none.
    """

    messages: str = "messages"
    tools: str | None = None

    @cached_property
    def named(self) -> dict[str, str]:
        of_tools = {} if self.tools is None else {self.tools: "columns.tools"}
        return super().named or {self.messages: "columns.messages"} | of_tools

    def row(self, cells: Mapping[str, object], origin: str) -> Row | Problem:
        if self.solution is not None:
            asked, answer = (_plain(cells.get(name or "")) for name in (self.prompt, self.solution))
            if isinstance(answer, list) and isinstance(asked, str | list):
                # As in preference data sets: the answer alone, or the whole conversation again.
                before = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
                whole = answer if len(answer) > 1 else [*before, *answer]
                return conversation(whole, origin, self.source)
            row = super().row(cells, origin)
            if isinstance(row, Problem):
                return row
            turns = {"user": row.prompt, "assistant": row.text}
            messages = [{"role": role, "content": text} for role, text in turns.items()]
            chat = conversation(messages, origin, self.source)
            if isinstance(chat, Problem):
                return chat
            return replace(chat, question=row.question or row.prompt)
        if problem := self.missing(cells, origin):
            return problem
        tools = None if self.tools is None else _plain(cells[self.tools])
        if isinstance(tools, str):
            try:
                tools = json.loads(tools)
            except ValueError as error:
                message = f"the tools are no JSON: {error}"
                return Problem(origin, shortened(str(tools)), "a list, or JSON of one", message)
        talk = _plain(cells[self.messages])
        return conversation(talk, origin, self.source, tools=tools or None)


def conversation(messages: object, origin: str, source: str, *, tools: Any = None) -> Row | Problem:
    """The row of a conversation that ends with the assistant's answer, or the problem with it.

    Args:
        messages: a list of objects with ``role`` and ``content``; anything else is a problem.
        origin: see :class:`Row`.
        source: see :class:`Row`.
        tools: tool descriptions for the chat template, if there are any.
    """
    shape = 'a list of {"role": "user", "content": "text"}, the last the assistant\'s'
    if not isinstance(messages, list | tuple) or not all(map(_is_turn, messages)):
        what = kind_of(messages) if not isinstance(messages, list) else "a list of something else"
        message = f"the messages are {what}: correct the row"
        return Problem(origin, shortened(repr(messages)), shape, message)
    # Tables fill in null for keys that a message does not have.
    turns = [{k: v for k, v in message.items() if v is not None} for message in messages]
    roles = ", ".join(turn["role"] for turn in turns)
    answer = turns[-1].get("content") if turns else None
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        message = "the verified answer is the assistant's, and has to come last"
        accepted = "at least one message, and then the assistant's"
        return Problem(origin, roles or "no messages", accepted, message)
    if not isinstance(answer, str) or not answer.strip():
        message = "the assistant's answer is empty, or not text: fill it, or take the row out"
        return Problem(origin, shortened(repr(answer)), "text", message)
    before = [str(turn.get("content", "")) for turn in turns[:-1]]
    questions = [str(turn.get("content", "")) for turn in turns[:-1] if turn["role"] == "user"]
    chat = {"messages": _as_json(turns)} | ({} if tools is None else {"tools": _as_json(tools)})
    if not is_unicode(json.dumps(chat, ensure_ascii=False)):
        message = f"a message holds {NO_CHARACTER}: correct the row"
        return Problem(origin, shortened(ascii(turns)), "Unicode text", message)
    return Row("\n".join(before), answer, origin, source, "\n".join(questions), chat)


def _is_turn(message: object) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("role"), str)


def _as_json(value: Any) -> Any:
    """The value with everything that JSON has no form for (dates, decimals) as the text that a
    template writes for it, since rows are stored on disk."""
    value = _plain(value)
    if isinstance(value, Mapping):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _plain(value: object) -> object:
    """The value, converted to a list if it is an array (NumPy, Arrow)."""
    return value.tolist() if hasattr(value, "tolist") else value
