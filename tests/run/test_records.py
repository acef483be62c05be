"""Records are worth less than the run: what is wrong with them costs them alone."""

import json

import pytest

from tests.reliability.runs import language_recipe
from vpretrain.language import Language
from vpretrain.run.folder import RunFolder
from vpretrain.run.records import MOST_BYTES, Records
from vpretrain.run.run import Run


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"step": 2, "x": "' + b"x" * MOST_BYTES + b'"}', b"\0" * 50, b"{}"]
)
def test_a_line_that_is_no_record_ends_what_is_kept(line, tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with Records(path, kept=3) as records:
        assert records.kept == 1 and records.last == {"step": 1}
        records.append({"step": 2})
    assert [json.loads(each)["step"] for each in path.read_text().splitlines()] == [1, 2]
    assert "of 3 records 1 can be read" in caplog.text


def test_a_figure_that_is_not_finite_is_null_as_json_has_it(tmp_path):
    with Records(tmp_path / "a") as records:
        records.append({"step": 1, "test/nll": float("inf"), "gain": float("nan"), "loss": 2.0})
    record = json.loads((tmp_path / "a").read_text(), parse_constant=pytest.fail)
    assert record == {"step": 1, "test/nll": None, "gain": None, "loss": 2.0}


def test_what_is_no_file_gives_way_to_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("b")
    for name in "ab":
        with Records(tmp_path / name) as records:
            records.append({"step": 1})
        assert (tmp_path / name).read_text() == '{"step": 1}\n'


def test_a_full_disk_costs_the_records_and_says_so_once(tmp_path, caplog):
    folder = RunFolder(tmp_path, language_recipe("arm=onehot"))
    folder.log({"step": 1})
    whole, records = folder._metrics._file, folder._metrics
    records._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    assert not any(folder.log({"step": step}) for step in (2, 3))
    assert caplog.text.count("No space left on device; the run goes on") == 1
    records._file.close()
    records._file = whole
    assert folder.log({"step": 4})
    folder.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 4]


def test_a_record_that_was_refused_is_no_reason_to_keep_one_of_after_the_checkpoint(tmp_path):
    """A full disk at step 2, a checkpoint after step 3, and an end after step 4."""
    recipe = language_recipe("arm=onehot", "budget.steps=4")
    modality, path = Language(), tmp_path / "metrics.jsonl"
    with Records(path) as records:

        def on_record(record, fraction):
            return record["step"] != 2 and records.append(record)

        parts = modality.build(recipe, modality.load(recipe))
        run = Run(recipe, parts, step0={}, on_record=on_record)
        run.start()
        kept = []
        for _ in range(4):
            batch = run.next_batch()
            run.advance(batch)
            run.record(batch, run.step(batch))
            kept.append(run.state.state_dict()["records"])
    assert kept == [1, 1, 2, 3]
    with Records(path, kept=kept[2]) as records:
        assert records.last["step"] == 3


def test_a_board_that_cannot_be_written_costs_the_board(tmp_path, caplog, monkeypatch):
    folder = RunFolder(tmp_path, language_recipe("arm=onehot"))

    def refuse(*given, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(folder._board, "add_scalar", refuse)
    for step in (1, 2):
        folder.log({"step": step})
    folder.close()
    assert caplog.text.count("Read-only file system; the run goes on") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
