"""What several processes leave as exit code when all of them refuse a recipe."""

import os
import subprocess
import sys


def launched(*arguments, folder):
    command = [sys.executable, "-m", "vpretrain.cli.torchrun", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_refused_recipe_is_exit_code_2_and_one_message(tmp_path):
    train = ["-m", "vpretrain", "train", "no-such-recipe"]
    ended = launched(*train, folder=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("there is no such recipe") == 1
    assert "ChildFailedError" not in ended.stderr


def test_a_bug_stays_a_bug(tmp_path):
    (tmp_path / "broken.py").write_text("raise SystemExit(1)\n")
    ended = launched("broken.py", folder=tmp_path)
    assert ended.returncode == 1 and "ChildFailedError" in ended.stderr
