"""Running a program that a model wrote: in a process of its own, under limits, killed with all that
it started.

Limits: wall-clock time, CPU time, memory, size and number of files, no processes or threads of its
own; an empty folder to work in, an empty environment, no input; where the system allows it (Linux),
a namespace without a network, and for a superuser another user. This keeps accidents small. It does
not stop an attacker: for code that may be hostile, run the evaluation in a container or a virtual
machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


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


def passes(program: str, limits: Limits = Limits()) -> bool:
    """Whether a Python program runs to its end: past its last statement, without an exception,
    within the limits.

    Leaving early by ``sys.exit(0)`` or ``os._exit(0)`` is not passing: after the last statement a
    number that the program was not told goes through a pipe, and that is what counts, not the exit
    status.

    Args:
        program: the source, assertions at its end.
        limits: what it may use.
    """
    nonce = secrets.token_hex(16)
    reading, writing = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="vpretrain-", ignore_cleanup_errors=True) as folder:
            os.chmod(folder, 0o777)  # the program may run as another user
            job = {"program": program, "nonce": nonce, "pipe": writing, **vars(limits)}
            Path(folder, "job.json").write_text(json.dumps(job))
            process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("sandbox_driver.py"))],
                cwd=folder,
                env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": folder},
                pass_fds=(writing,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(limits.seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        os.set_blocking(reading, False)
        try:
            answer = os.read(reading, 1024)
        except BlockingIOError:
            answer = b""
        return answer == nonce.encode()
    finally:
        os.close(reading)
        os.close(writing)
