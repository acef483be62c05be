"""Running a program that a model wrote, and judging what it answers.

Two processes that have nothing in common but one socket: the program's, and that of its tests. The
tests call the program's functions across the socket and get plain data back, so that neither a
walk up the stack nor an object that equals everything reaches the verdict.

Both are confined: wall-clock and CPU time, memory, size and number of files, no processes or
threads of their own, an empty folder, an empty environment, no input. Where bubblewrap works they
also see no file but Python's, no network and no other process. Elsewhere they run as an
unprivileged user, in a namespace without a network if the system has them; files that this user
can read they can read. A superuser's program that cannot be made to run as somebody else is
refused.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpretrain.language.evaluation.sandbox_driver import PASSED, REFUSED
from vpretrain.system.errors import user_error

log = logging.getLogger(__name__)

_DRIVER = Path(__file__).with_name("sandbox_driver.py")
_HOME = "/program"
_FOLDER_BYTES = 2**26
_BECOMING_ANOTHER = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
_START_SECONDS = 20.0  # a trial on a busy machine


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Args:
        seconds: wall-clock time.
        memory_bytes: address space.
        file_bytes: size of a file that it writes.
    """

    seconds: float = 10.0
    memory_bytes: int = 2**30
    file_bytes: int = 2**24


def passes(program: str, limits: Limits = Limits(), *, tests: str = "") -> bool:
    """Whether a Python program runs past its last statement, and tests of what it defines hold.

    Args:
        program: the source. Leaving early, by ``sys.exit(0)`` say, is not passing.
        limits: what each of both processes may use.
        tests: statements that raise where the program is wrong. They call its functions and
            classes; ``list``, ``tuple``, ``set``, ``dict`` and scalars pass as values, everything
            else as a reference. Names of builtins and of the standard library mean Python's own,
            unless the tests name nothing else.

    Raises:
        UserError: there is no way here to run it without a superuser's rights.
    """
    return _passes(program, tests, limits, boxed=_bubblewrap_works())


def require() -> None:
    """Says at the start how far programs are confined.

    Raises:
        UserError: as :func:`passes`.
    """
    if not _bubblewrap_works():
        passes("")
        log.warning(
            "bubblewrap (bwrap) 0.7 or newer is not here or does not work: programs that the model "
            "writes run as an unprivileged user under limits, but see this machine's files; "
            "install bubblewrap, or run in a container"
        )


def _passes(program: str, tests: str, limits: Limits, *, boxed: bool) -> bool:
    status = _status(program, tests, limits, boxed=boxed)
    if status == REFUSED:
        raise user_error(
            "--allow-code",
            "programs that the model writes would run with a superuser's rights, since no other "
            "user can read this Python; install bubblewrap (0.7 or newer), or run as an ordinary "
            "user or in a container with its Python outside of a private folder",
            value=sys.prefix,
        )
    return status == PASSED


def _status(program: str, tests: str, limits: Limits, *, boxed: bool) -> int | None:
    """How the process of the tests ended; None where the time ran out."""
    deadline = time.monotonic() + limits.seconds
    asking, answering = socket.socketpair()
    with (
        asking,
        answering,
        _process("program", program, answering, limits, boxed=boxed),
        _process("tests", tests, asking, limits, boxed=boxed) as judge,
    ):
        asking.close()
        answering.close()  # so that either process notices the other's end
        try:
            return judge.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None


@contextlib.contextmanager
def _process(
    role: str, source: str, line: socket.socket, limits: Limits, *, boxed: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """One of both processes, ended with all that it started when the block is left."""
    job = {"role": role, "source": source, "line": line.fileno(), "boxed": boxed, **vars(limits)}
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryDirectory(prefix="vpretrain-", ignore_cleanup_errors=True) as folder,
    ):
        given.write(json.dumps(job).encode())
        given.seek(0)
        home = _HOME if boxed else folder
        process = subprocess.Popen(
            [*(_box() if boxed else ()), sys.executable, "-I", str(_DRIVER)],
            cwd=folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": home, "TMPDIR": home},
            pass_fds=(line.fileno(),),
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@functools.cache
def _bubblewrap_works() -> bool:
    """Whether a program runs in bubblewrap's box here; containers often forbid it."""
    if shutil.which("bwrap") is None:
        return False
    return _status("", "", Limits(seconds=_START_SECONDS), boxed=True) == PASSED


def _box() -> list[str]:
    """The command line of a box that holds Python, an empty folder, and nothing else.

    An ordinary user needs a namespace of users to make one. A superuser does not, and the driver
    becomes a real other user in it: limits on processes do not bind user 0 under another name.
    """
    command = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--die-with-parent"]
    command += ["--unshare-user"] if os.geteuid() else _BECOMING_ANOTHER
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--size", str(_FOLDER_BYTES), "--tmpfs", _HOME]
    libraries = ("/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache")
    for place in (*libraries, sys.base_prefix, sys.prefix, str(_DRIVER)):
        # Parents that others may enter, also of a Python in a private home.
        for parent in [*Path(place).parents][-2::-1]:
            command += ["--perms", "0755", "--dir", str(parent)]
        command += ["--ro-bind-try", place, place]
    return [*command, "--remount-ro", "/", "--chdir", _HOME]
