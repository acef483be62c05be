"""Programs that a model wrote: what passes, what does not, and that nothing of them stays."""

import os
import time

import pytest

from vpretrain.language.evaluation.benchmarks import BENCHMARKS
from vpretrain.language.evaluation.sandbox import Limits, passes

LIMITS = Limits(seconds=5.0, memory_bytes=2**29)


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    return x + 1\nassert f(1) == 2",
        "import heapq, math, re, itertools, collections\nassert heapq.nlargest(1, [1, 2]) == [2]",
        "for _ in range(100_000):\n    print('x' * 100)",
        "if __name__ == '__main__':\n    raise SystemExit(input())",
        "import os\nassert os.listdir('.') == [] and 'SECRET' not in os.environ",
        "open('notes', 'w').write('kept for a while')",
    ],
    ids=[
        "right",
        "imports",
        "stdout spam",
        "a demonstration",
        "nothing around",
        "a file of its own",
    ],
)
def test_passes(program, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    assert passes(program, LIMITS)


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "def f(:",
        "import sys\nsys.exit(0)\nassert False",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "x = bytearray(2**30)",
        "x = [0]\nwhile True:\n    x += x",
        "open('big', 'wb').write(b'0' * 2**25)",
        "import os\nos.abort()",
    ],
    ids=[
        "wrong",
        "not Python",
        "exit",
        "_exit",
        "SystemExit",
        "memory",
        "memory by and by",
        "file size",
        "abort",
    ],
)
def test_does_not_pass(program):
    assert not passes(program, LIMITS)


def test_an_endless_loop_ends():
    began = time.monotonic()
    assert not passes("while True:\n    pass", Limits(seconds=0.5))
    assert time.monotonic() - began < 3


def test_what_it_started_ends_with_it(tmp_path):
    """Where forking is not refused, a child (in a session of its own) does not live on."""
    if os.geteuid() == 0 and not passes("import os\nassert os.getpid() == 1"):
        pytest.skip("a superuser without namespaces: neither bounds its processes")
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)
    sign = tmp_path / "alive"
    sign.touch()
    sign.chmod(0o666)
    program = f"""
import os, time
try:
    child = os.fork()
except OSError:
    child = 1
if child == 0:
    os.setsid()
    while True:
        try:
            with open({str(sign)!r}, "a") as file:
                file.write("x")
        except OSError:
            pass
        time.sleep(0.02)
time.sleep(0.2)
"""
    passes(program, Limits(seconds=1.0))
    before = sign.stat().st_size
    time.sleep(0.2)
    assert sign.stat().st_size == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the system does not bound a superuser's processes")
def test_a_fork_bomb_is_refused():
    assert passes(
        "import os\ntry:\n    os.fork()\nexcept OSError:\n    pass\nelse:\n    assert False", LIMITS
    )


def test_mbpp_with_and_without_fences():
    task = BENCHMARKS["mbpp"]
    item = task.item(
        {"text": "Add one.", "test_list": ["assert f(1) == 2", "assert f(-1) == 0"]}, "mbpp:1"
    )
    assert "assert f(1) == 2" in item.prompt and item.prompt.endswith("Python code:\n")
    bare = "def f(x):\n    return x + 1\n"
    fenced = f"```python\n{bare}```\nThis adds one."
    for completion, strict in ((bare, True), (fenced, False), (f"{bare}\nThis adds one.", False)):
        right = {
            way: task.judge(item.expected, find(completion)) for way, find in task.extract.items()
        }
        assert right == {"strict": strict, "flexible": True}
    assert not task.judge(item.expected, "def f(x):\n    return x")
