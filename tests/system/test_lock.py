"""One writer a folder: the second is refused by name and number, and a dead one holds nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from vpretrain.system.errors import UserError
from vpretrain.system.lock import one_at_a_time, writing

HOLDS = """
import sys, time
from pathlib import Path
from vpretrain.system.lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_writer_is_refused_by_number_and_a_killed_one_leaves_no_lock(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid}.*writing"), writing(folder):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    deadline = time.monotonic() + 10
    while True:
        try:
            with writing(folder):
                break
        except UserError:
            assert time.monotonic() < deadline, "a dead process holds the folder"


def test_the_folder_is_free_after_a_fault(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError
    with writing(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_who_waits_for_another_command_is_told_of_it(tmp_path, caplog):
    code = """
import sys, time
from pathlib import Path
from vpretrain.system.lock import one_at_a_time
with one_at_a_time(Path(sys.argv[1]), "making this"):
    print("held", flush=True)
    time.sleep(1)
"""
    path = tmp_path / "made.lock"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with one_at_a_time(path, "making this"):
            assert holder.wait(10) == 0
    assert "another command is making this; waiting for it" in caplog.text
