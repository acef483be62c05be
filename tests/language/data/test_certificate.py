"""What a stream was checked against."""

from __future__ import annotations

from pathlib import Path

from tests.language.data.questions import OTHER, QUESTION, write
from vpretrain.language.data import certificate
from vpretrain.language.data.decontaminate import decontaminate as clean
from vpretrain.language.data.rows import Row


def test_training_can_tell_what_a_stream_was_checked_against(
    tmp_path: Path, test_set: Path
) -> None:
    stream = write(tmp_path / "stream.jsonl", {"text": "a row"}, {"text": QUESTION})
    out = tmp_path / "clean.jsonl"
    clean([str(stream)], [str(test_set)], out)
    known = [Row(QUESTION.upper(), "another solution", "f:1", "f"), Row("", OTHER, "f:2", "f")]
    unknown = Row("What else?", "Nothing.", "f:3", "f")
    assert certificate.checked_against(out, known) is True
    assert certificate.checked_against(out, [*known, unknown]) is False
    assert certificate.checked_against(stream, known) is None

    templated = Row(f"Q: {QUESTION}\nA:", "18", f"{test_set}:1", "f")
    assert certificate.checked_against(out, [templated]) is True
    test_set.write_bytes(test_set.read_bytes() + b'{"question": "What else?"}\n')
    assert certificate.checked_against(out, [templated]) is False

    assert certificate.unchecked([("a", out)], known) == []
    assert (
        certificate.unchecked([("a", stream)], [unknown]) == []
    )  # generated: there is no file to check against
    unknown = Row("What else?", "Nothing.", f"{stream}:3", "f")
    doubts = certificate.unchecked([("a", out), ("b", stream)], [unknown])
    assert [doubt.where for doubt in doubts] == ["a", "b"]

    with out.open("a") as file:
        file.write('{"text": "added later"}\n')
    assert certificate.checked_against(out, known) is None
