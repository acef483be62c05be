"""What a stream was checked against."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.language.data.questions import OTHER, QUESTION, write
from vpretrain import cli
from vpretrain.config.recipe import load
from vpretrain.language.data import certificate
from vpretrain.language.data.decontaminate import decontaminate as clean
from vpretrain.language.data.rows import Row
from vpretrain.language.data.texts import read
from vpretrain.run.modalities import SCHEMAS


def files(where: str, *paths: Path) -> certificate.StreamFiles:
    return certificate.StreamFiles(where, str(paths[0]), paths)


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

    assert certificate.unchecked([files("a", out)], known) == []
    assert (
        certificate.unchecked([files("a", stream)], [unknown]) == []
    )  # generated: there is no file to check against
    unknown = Row("What else?", "Nothing.", f"{stream}:3", "f")
    doubts = certificate.unchecked([files("a", out), files("b", stream)], [unknown])
    assert [doubt.where for doubt in doubts] == ["a.path", "b.path"]

    with out.open("a") as file:
        file.write('{"text": "added later"}\n')
    assert certificate.checked_against(out, known) is None


def test_files_that_are_named_alike_are_written_apart(tmp_path: Path, test_set: Path) -> None:
    names = []
    row = Row(QUESTION, "18", f"{test_set}:1", "f")
    streams = [files(f"s{i}", tmp_path / folder / "train.jsonl") for i, folder in enumerate("aab")]
    for doubt in certificate.unchecked(streams, [row]):
        names.append(doubt.message.rpartition(".path=")[2])
    assert names == ["train.clean.jsonl", "a-train.clean.jsonl", "b-train.clean.jsonl"]


def test_forty_files_are_one_warning_whose_command_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command and the override that the warning names, as they stand there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my notes").mkdir()
    for at in range(40):
        text = f"Note {at}.\n\nIt rained on day {at}, and the river rose by {at} metres.\n"
        (tmp_path / "my notes" / f"{at:02}.txt").write_text(text)
    row = {"question": "Who paid for the bridge over the river in the end?", "answer": "Nobody."}
    for name in ("verified.jsonl", "held-out.jsonl"):
        write(
            tmp_path / name,
            *({**row, "question": f"{row['question']} {name} {i}"} for i in range(8)),
        )
    rows = "{kind: jsonl, path: %s.jsonl, prompt: question, solution: answer}"
    (tmp_path / "steer.yaml").write_text(
        "modality: language\ndescription: d\narm: onehot\nbudget: {steps: 1}\n"
        "learner: {model: word-problems-majority}\n"
        "data: {window_tokens: 64, batch_size: 2,\n"
        "  stream: [{name: notes, rows: {kind: text, path: my notes/*.txt}}],\n"
        f"  feedback: {{rows: {rows % 'verified'}, batch_size: 4}},\n"
        f"  evaluation: {{test: {rows % 'held-out'}}}}}\n"
    )
    (doubt,) = read(load("steer.yaml", schemas=SCHEMAS)).doubts
    assert "40 files of my notes/*.txt" in doubt.message and "--document file" in doubt.message
    _, command, then = doubt.message.split("`")
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    recipe = load("steer.yaml", [then.partition("then set ")[2]], schemas=SCHEMAS)
    texts = read(recipe)
    assert texts.doubts == [] and len(texts.stream["notes"]) == 40
    assert texts.stream["notes"][1].text.startswith("Note 1.\n\nIt rained")
