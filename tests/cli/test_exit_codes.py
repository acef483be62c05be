"""Exit codes of what fails while it runs, and the words that go with them."""

import errno

import pytest
from safetensors import SafetensorError

from vpretrain.run import launch
from vpretrain.system.errors import Fault


def test_a_fault_is_exit_code_4_and_keeps_what_was_finished(call, here):
    called = call(
        "train",
        "tiny.yaml",
        "learner.learning_rate=1e30",
        "budget.steps=6",
        "--out",
        "run",
        "--json",
    )
    assert called.code == 4 and called.out == ""
    assert "error" in called.err
    assert (here / "run" / "metrics.jsonl").read_text().strip(), "the steps before it are kept"


@pytest.mark.parametrize(
    ("error", "code", "description"),
    [
        (KeyboardInterrupt(), 3, "stopped"),
        (Fault("loss is nan"), 4, "loss is nan"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 4, "disk is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 4, "data.batch_size"),
        (MemoryError(), 4, "memory"),
        (PermissionError(errno.EACCES, "denied", "/root/x"), 2, "/root/x"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), 2, "/x/y: Read-only file system"),
        (OSError(errno.ELOOP, "Too many links", "/x/y"), 2, "name another place"),
    ],
)
def test_exit_codes(call, monkeypatch, error, code, description):
    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr(launch, "train_one", broken)
    called = call("train", "tiny.yaml", "--json")
    assert (called.code, called.out) == (code, "")
    assert description in called.err


def test_a_bug_is_shown_whole(call, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(launch, "train_one", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        call("train", "tiny.yaml")


def test_a_cache_that_cannot_be_written_has_its_own_words(call, here, monkeypatch):
    def broken(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(here / "cache" / "prepared"))

    monkeypatch.setattr(launch, "train_one", broken)
    called = call("train", "tiny.yaml")
    assert called.code == 2 and "set VPRETRAIN_CACHE to a folder" in called.err
