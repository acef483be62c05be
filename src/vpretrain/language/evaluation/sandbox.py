"""Runs generated programs in a sandbox and judges them by tests.

The program and its tests run in two processes that share only one socket. The tests call the
program's functions across the socket and get plain data back, so that a program cannot manipulate
the verdict, neither by walking up the stack nor with an object that equals everything.

Both processes are confined: limited wall-clock and CPU time, memory, size and number of files, no
child processes or threads, an empty folder, an empty environment, no input. If bubblewrap works,
they also see no files but Python's, no network and no other processes. Otherwise they run as an
unprivileged user, in a namespace without a network if the system supports it, and can read the
files that this user can read. Under a superuser, programs are refused if they cannot be run as
another user.
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
_START_SECONDS = 20.0  # enough for the first, empty program on a busy machine


@dataclass(frozen=True)
class Limits:
    """Resource limits of a process.

    Args:
        seconds: wall-clock time.
        memory_bytes: address space.
    """

    seconds: float = 10.0
    memory_bytes: int = 2**30


def passes(program: str, limits: Limits = Limits(), *, tests: str = "") -> bool:
    """Whether a Python program runs to its end and passes its tests.

    Args:
        program: the source. Exiting early, for example by ``sys.exit(0)``, does not pass.
        limits: limits of each of the two processes.
        tests: statements that raise if the program is wrong. They call its functions and classes;
            ``list``, ``tuple``, ``set``, ``dict`` and scalars are passed by value, everything else
            by reference. Names of builtins and of the standard library are Python's own, unless the
            tests use no other names.

    Raises:
        UserError: the program could only be run with a superuser's rights.
    """
    return _passes(program, tests, limits, boxed=_bubblewrap_works())


def require() -> None:
    """Warns if programs are confined without bubblewrap; raises like :func:`passes`."""
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
    """Exit status of the tests' process; None if it timed out."""
    deadline = time.monotonic() + limits.seconds
    asking, answering = socket.socketpair()
    with (
        asking,
        answering,
        _process("program", program, answering, limits, boxed=boxed),
        _process("tests", tests, asking, limits, boxed=boxed) as judge,
    ):
        asking.close()
        answering.close()  # so that each process notices when the other ends
        try:
            return judge.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None


@contextlib.contextmanager
def _process(
    role: str, source: str, line: socket.socket, limits: Limits, *, boxed: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """One of the two processes, killed with its process group at the end of the block."""
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
    """Whether bubblewrap works here; containers often forbid it."""
    if shutil.which("bwrap") is None:
        return False
    return _status("", "", Limits(seconds=_START_SECONDS), boxed=True) == PASSED


def _box() -> list[str]:
    """The bubblewrap command line of a sandbox with only Python and an empty folder.

    An ordinary user needs a user namespace for it. A superuser does not, and the driver switches to
    a real other user inside: process limits do not apply to user 0, even under another name.
    """
    command = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--die-with-parent"]
    command += ["--unshare-user"] if os.geteuid() else _BECOMING_ANOTHER
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--size", str(_FOLDER_BYTES), "--tmpfs", _HOME]
    libraries = ("/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache")
    for place in (*libraries, sys.base_prefix, sys.prefix, str(_DRIVER)):
        # Parent folders that other users may enter, also for a Python in a private home.
        for parent in [*Path(place).parents][-2::-1]:
            command += ["--perms", "0755", "--dir", str(parent)]
        command += ["--ro-bind-try", place, place]
    return [*command, "--remount-ro", "/", "--chdir", _HOME]
