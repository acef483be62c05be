"""The process behind :func:`vpretrain.language.evaluation.sandbox.passes`; imports nothing of
vpretrain, to start soon.
"""

import ctypes
import json
import math
import os
import resource
import signal
import sys

_NEW_USER, _NEW_PIDS, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_PARENT_DEATH_SIGNAL = 1
_NOBODY = 65534


def main() -> None:
    """Reads ``job.json`` in the working folder, takes what is not needed away, and runs the
    program.
    """
    with open("job.json") as file:
        job = json.load(file)
    os.unlink("job.json")  # it holds the number that only a finished program may send
    _apart()
    _limit(job)
    program, nonce, pipe = job.pop("program"), job.pop("nonce"), job.pop("pipe")
    send, leave = os.write, os._exit
    names = {
        "__name__": "program",
        "__builtins__": __builtins__,
    }  # not __main__: demonstrations are not run
    try:
        exec(compile(program, "program.py", "exec"), names)
    except BaseException:  # SystemExit among them: whoever leaves early has not passed
        leave(1)
    send(pipe, nonce.encode())
    leave(0)


def _apart() -> None:
    """Namespaces of its own and another user, as far as the system lets us; the program then runs
    in a child.
    """
    superuser = os.geteuid() == 0
    apart = superuser and _unshare(_NEW_PIDS | _NEW_NETWORK)
    if superuser and not _become_nobody():
        _unshare_user(0)  # the files stay the superuser's own, but other rights are gone
    if not (apart or _unshare_user(_NEW_PIDS | _NEW_NETWORK)):
        return
    if (
        child := os.fork()
    ):  # the child is the first process of its namespace: when it ends, so do all others there
        _, status = os.waitpid(child, 0)
        os._exit(0 if status == 0 else 1)
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _unshare(flags: int) -> bool:
    try:
        return ctypes.CDLL(None).unshare(flags) == 0
    except (AttributeError, OSError, TypeError):  # not Linux
        return False


def _unshare_user(flags: int) -> bool:
    user = os.geteuid()
    if not _unshare(_NEW_USER | flags):
        return False
    try:
        with open("/proc/self/uid_map", "w") as file:
            file.write(
                f"{_NOBODY} {user} 1"
            )  # without a user of that namespace no file could be made
    except OSError:
        pass
    return True


def _become_nobody() -> bool:
    """Gives up the superuser's rights for good, if Python's own files can be read without them;
    whether it did.
    """
    os.setegid(_NOBODY)
    os.seteuid(_NOBODY)
    readable = all(
        os.access(path, os.R_OK, effective_ids=True) for path in (os.__file__, json.__file__, ".")
    )
    os.seteuid(0)
    os.setegid(0)
    if readable:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    return readable


def _limit(job: dict) -> None:
    cpu_seconds = math.ceil(job["seconds"]) + 1
    for what, most in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, job["memory_bytes"]),
        (resource.RLIMIT_FSIZE, job["file_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
    ):
        try:
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):  # macOS does not know all of them
            print("a limit could not be set", file=sys.stderr)


if __name__ == "__main__":
    main()
