"""Programs that a model wrote: what passes, what does not, what they cannot reach, and that nothing
of them stays.
"""

import multiprocessing
import os
import socket
import sys
import time

import pytest

from vpretrain.language.evaluation import sandbox
from vpretrain.language.evaluation.benchmarks import BENCHMARKS
from vpretrain.language.evaluation.sandbox import Limits, passes
from vpretrain.system.errors import UserError

LIMITS = Limits(seconds=5.0, memory_bytes=2**29)
FORK = multiprocessing.get_context("fork")
NOBODY = 65534
SUPERUSER = os.geteuid() == 0
pytestmark = pytest.mark.usefixtures("runs_programs")
needs_box = pytest.mark.skipif(not sandbox._bubblewrap_works(), reason="bubblewrap does not work")


@pytest.fixture(params=["boxed", "boxed, ordinary user", "unboxed", "unboxed, ordinary user"])
def confined(request, public_python):
    """Runs a program confined in every way that this machine has."""
    boxed = request.param.startswith("boxed")
    if boxed and not sandbox._bubblewrap_works():
        pytest.skip("bubblewrap does not work here")
    ordinary = "ordinary" in request.param and SUPERUSER
    if SUPERUSER and (ordinary or not boxed):
        public_python()

    def run(program, limits=LIMITS):
        if not ordinary:
            return sandbox._passes(program, "", limits, boxed=boxed)
        results = FORK.SimpleQueue()

        def become():
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            results.put(sandbox._passes(program, "", limits, boxed=boxed))

        process = FORK.Process(target=become)
        process.start()
        process.join()
        assert process.exitcode == 0
        return results.get()

    run.boxed = boxed
    return run


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


def test_no_rights_are_left(confined):
    """Also of a superuser: no file of the system is written or read, no process is begun, and the
    children that would pass the limit of memory are not there.
    """
    assert confined(
        """
import os, threading
assert 0 not in os.getresuid()
for path, mode in (("/etc/vpretrain", "w"), ("/etc/shadow", "r"), ("/root/vpretrain", "w")):
    try:
        open(path, mode)
    except OSError:
        pass
    else:
        raise AssertionError(path)
for begin in (os.fork, threading.Thread(target=print).start):
    try:
        begin()
    except (OSError, RuntimeError):
        pass
    else:
        raise AssertionError(begin)
"""
    )


def test_the_network_is_out_of_reach(confined):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        reaches = f"import socket\nsocket.create_connection({address!r}, 1.0)"
        assert confined("import socket") and not confined(reaches)


@needs_box
def test_in_the_box_there_is_no_file_of_this_machine(tmp_path):
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "door"))
        (tmp_path / "door").chmod(0o777)
        server.listen()
        assert passes(
            f"""
import os, socket
assert not os.path.exists({str(tmp_path)!r}) and not os.path.exists("/etc/passwd")
try:
    socket.socket(socket.AF_UNIX).connect({str(tmp_path / "door")!r})
except OSError:
    pass
else:
    raise AssertionError
for place in (".", "/", "/dev", "/dev/shm", "/tmp", "/usr"):
    written = 0
    try:
        for number in range(100):
            with open(os.path.join(place, str(number)), "wb") as file:
                written += file.write(bytes(2**20))
    except OSError:
        pass
    assert written <= (2**26 if place == "." else 0), place
""",
            LIMITS,
        )


@pytest.mark.skipif(not SUPERUSER, reason="for a superuser")
def test_a_superuser_s_program_is_refused_where_nobody_else_can_read_python(monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    library = home / "os.py"
    library.touch()
    python = tmp_path / "python"  # one whose library is in that home
    starts = f"import os, runpy, sys; os.__file__ = {str(library)!r}; runpy.run_path(sys.argv[-1]"
    python.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "{starts}, run_name=\'__main__\')" "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sandbox, "_bubblewrap_works", lambda: False)
    sign = tmp_path / "sign"
    with pytest.raises(UserError, match="superuser's rights") as refused:
        passes(f"open({str(sign)!r}, 'w')")
    assert "bubblewrap" in str(refused.value) and not sign.exists()


HACKS = {
    "equal to everything": """
class Any(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def f(x): return Any(7)
""",
    "a namesake": """
class tuple: pass
class Any:
    __eq__ = lambda self, other: True
def f(x): return Any()
def set(x): return 0
class math:
    isclose = staticmethod(lambda *given: True)
""",
    "the line": """
import os, sys
def f(x):
    for handle in range(3, 64):
        try:
            os.write(handle, b'["returned", true]\\n' * 9)
        except OSError:
            pass
    os._exit(0)
""",
    "the stack": """
import sys
frame = sys._getframe()
while frame:
    for name, value in [*frame.f_locals.items(), *frame.f_globals.items()]:
        if isinstance(value, str) and name in ("nonce", "tests", "source"):
            frame.f_locals[name] = ""
    frame.f_globals["_judge"] = frame.f_globals["FAILED"] = frame.f_globals["_limit"] = 0
    frame.f_builtins["AssertionError"] = SystemExit
    frame = frame.f_back
def f(x): return 0
""",
}


@pytest.mark.parametrize(
    "tests",
    [
        "assert f(1) == 2",
        "assert set(f(1)) == set((4, 5))",
        "import math\nassert math.isclose(f(1), 2.0)",
        "assert math.isclose(f(1), 2.0)",
    ],
)
@pytest.mark.parametrize("hack", HACKS.values(), ids=HACKS)
def test_no_program_decides_its_own_verdict(hack, tests):
    assert not passes(hack, LIMITS, tests=tests)


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(x):\n    return x + 1", "assert f(1) == 2 and f(-1) == 0"),
        ("def sum(a, b):\n    return a * b", "assert sum(10, 15) == 150"),
        (
            "from collections import Counter\n"
            "def f(x):\n    return Counter(x), (1j, b'a', {2}, None)",
            "assert f('aab') == ({'a': 2, 'b': 1}, (1j, b'a', {2}, None))",
        ),
        ("def f(x):\n    yield from x", "assert list(f([1, 2])) == [1, 2]"),
        (
            "class Node:\n    def __init__(self, x):\n        self.x, self.left = x, None\n"
            "def depth(n):\n    return 0 if n is None else 1 + depth(n.left)",
            "root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2 and root.left.x == 2",
        ),
        ("def f(x):\n    return 0.1 + 0.2", "assert math.isclose(f(1), 0.3, rel_tol=1e-9)"),
        (
            "def f(x):\n    raise ValueError(x)",
            "try:\n    f(1)\nexcept ValueError:\n    pass\nelse:\n    assert False",
        ),
    ],
    ids=["plain", "a builtin's name", "plain data", "iterator", "objects", "module", "raises"],
)
def test_tests_call_the_program(program, tests):
    assert passes(program, LIMITS, tests=tests)
    assert not passes(program, LIMITS, tests=f"{tests}\nassert False")


def test_what_it_started_ends_with_it(tmp_path, confined):
    """Where forking is not refused, a child (in a session of its own) does not live on."""
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
    confined(program, Limits(seconds=1.0))
    before = sign.stat().st_size
    time.sleep(0.2)
    assert sign.stat().st_size == before


def test_a_fork_bomb_is_refused(confined):
    assert confined(
        "import os\ntry:\n    os.fork()\nexcept OSError:\n    pass\nelse:\n    assert False"
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
