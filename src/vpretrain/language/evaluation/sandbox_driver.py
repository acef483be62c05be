"""The two processes behind :func:`vpretrain.language.evaluation.sandbox.passes`; it imports nothing
from vpretrain, so that it starts quickly.

The tests' process sends requests ``[operation, object, arguments]``, one line of JSON each, which
the program's process answers. Whatever a program does to its own process, it can only send data.
"""

from __future__ import annotations

import ast
import builtins
import collections
import contextlib
import ctypes
import importlib
import json
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

Packed = Any
"""A value that JSON can represent."""

PASSED, FAILED, REFUSED = 0, 1, 78
"""Exit statuses."""

_NEW_USER, _NEW_PIDS, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_PARENT_DEATH_SIGNAL, _NO_NEW_PRIVILEGES = 1, 38
_NOBODY = 65534
_FILE_BYTES = 2**24  # of each file that a program writes


def main() -> None:
    """Reads the job from standard input, drops rights, sets limits, and runs it."""
    job = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _drop_rights(boxed=job["boxed"])
    _limit(job)
    line = socket.socket(fileno=job["line"]).makefile("rw", encoding="utf-8", newline="\n")
    try:
        if job["role"] == "program":
            _Program(line).run(job["source"])
        else:
            _judge(line, job["source"])
    except BaseException:  # SystemExit too: a program that exits early has not passed
        os._exit(FAILED)
    os._exit(PASSED)


class _Program:
    """The generated program, and its objects, which the tests refer to by number."""

    def __init__(self, line: TextIO) -> None:
        self.line = line
        self.held: list[object] = []

    def run(self, source: str) -> None:
        # Not __main__, so that demonstrations under `if __name__ == "__main__"` do not run.
        names: dict[str, Any] = {"__name__": "program", "__builtins__": builtins}
        exec(compile(source, "program.py", "exec"), names)
        self._send({name: self._packed(value) for name, value in names.items()})
        for request in self.line:
            operation, target, arguments = json.loads(request)
            try:
                answer = self._done(operation, _unpacked(target, self._object), *arguments)
                reply = ["returned", self._packed(answer)]
            except BaseException as error:
                reply = ["raised", type(error).__name__]
            self._send(reply)

    def _done(self, operation: str, target: Any, *arguments: Packed) -> object:
        values = [_unpacked(argument, self._object) for argument in arguments]
        if operation == "call":
            return target(*values[0], **values[1])
        if operation == "list":
            return list(target)
        if operation == "get":
            return getattr(target, *values)
        setattr(target, *values)
        return None

    def _object(self, number: int) -> object:
        return self.held[number]

    def _packed(self, value: object) -> Packed:
        def hold(value: object) -> Packed:
            self.held.append(value)
            return ["object", len(self.held) - 1]

        return _packed(value, hold)

    def _send(self, message: Packed) -> None:
        self.line.write(json.dumps(message) + "\n")
        self.line.flush()


def _judge(line: TextIO, tests: str) -> None:
    """Runs the tests; raises what they raise."""

    def ask(operation: str, target: _Remote, *arguments: object) -> Any:
        message = [operation, pack(target), [pack(each) for each in arguments]]
        line.write(json.dumps(message) + "\n")
        line.flush()
        kind, value = json.loads(line.readline())
        if kind == "returned":
            return _unpacked(value, remote)
        error = getattr(builtins, value, None)
        if isinstance(error, type) and issubclass(error, Exception):
            raise error("raised by the program")
        raise RuntimeError(value)

    def remote(number: int) -> _Remote:
        return _Remote(ask, number)

    def pack(value: object) -> Packed:
        return _packed(value, _number)

    defined = json.loads(line.readline())
    scope: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    asked, modules = _names(tests)
    scope.update({name: importlib.import_module(name) for name in modules})
    scope.update({name: _unpacked(defined[name], remote) for name in asked & defined.keys()})
    exec(compile(tests, "tests.py", "exec"), scope)


def _names(tests: str) -> tuple[set[str], set[str]]:
    """The names in tests that are taken from the program, and the names of modules.

    A program that defines ``set`` must not decide what ``set(f(x))`` is, but tests that use only
    builtin names, such as ``sum(1, 2)``, do mean the program's.
    """
    nodes = [node for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)]
    stored = {node.id for node in nodes if not isinstance(node.ctx, ast.Load)}
    read = {node.id for node in nodes} - stored
    modules = read & sys.stdlib_module_names
    own = {name for name in read - modules if not hasattr(builtins, name)}
    return (own, modules) if own else (read, set())


class _Remote:
    """A proxy for an object in the program's process."""

    def __init__(self, ask: Callable[..., Any], number: int) -> None:
        vars(self).update(_ask=ask, _number=number)

    def __call__(self, *arguments: object, **named: object) -> Any:
        return self._ask("call", self, list(arguments), named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("get", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._ask("set", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list", self))


def _number(value: object) -> Packed:
    if not isinstance(value, _Remote):
        raise TypeError(f"a {type(value).__name__} cannot be given to the program")
    return ["object", vars(value)["_number"]]


_PLAIN: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
}
_SERIES: dict[str, Any] = {
    each.__name__: each for each in (list, tuple, set, frozenset, collections.deque)
}


def _packed(value: Any, other: Callable[[object], Packed]) -> Packed:
    """Plain data as JSON values, with subclasses as their base type; ``other`` packs the rest."""
    if value is None or type(value) is bool:
        return value
    for kind, plain in _PLAIN.items():
        if isinstance(value, kind):
            return plain(value)
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, dict):
        items = dict.items(value)
        return ["dict", [[_packed(each, other) for each in item] for item in items]]
    for name, kind in _SERIES.items():
        if isinstance(value, kind):
            return [name, [_packed(item, other) for item in kind.__iter__(value)]]
    return other(value)


def _unpacked(value: Packed, other: Callable[[int], object]) -> Any:
    """The inverse of :func:`_packed`; ``other`` maps an object's number to the object."""
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind == "object":
        return other(*rest)
    if kind == "complex":
        return complex(*rest)
    if kind == "bytes":
        return bytes.fromhex(*rest)
    if kind == "dict":
        return {_unpacked(key, other): _unpacked(item, other) for key, item in rest[0]}
    return _SERIES[kind](_unpacked(item, other) for item in rest[0])


def _drop_rights(*, boxed: bool) -> None:
    """Switches from a superuser to another user and, outside bubblewrap, enters new namespaces if
    the system allows it; ends this process if it would keep a superuser's rights."""
    superuser = os.geteuid() == 0
    apart = boxed
    if superuser:
        apart = boxed or _unshare(_NEW_PIDS | _NEW_NETWORK)
        os.chmod(".", 0o777)
        _become_nobody()
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if boxed or not (apart or _unshare_user()):
        return
    # The child is the first process of its namespace; when it ends, all others in it end too.
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else FAILED)
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _unshare(flags: int) -> bool:
    try:
        return ctypes.CDLL(None).unshare(flags) == 0
    except (AttributeError, OSError, TypeError):  # not Linux
        return False


def _unshare_user() -> bool:
    user = os.geteuid()
    if not _unshare(_NEW_USER | _NEW_PIDS | _NEW_NETWORK):
        return False
    # Without a user in that namespace no file could be created.
    with contextlib.suppress(OSError), open("/proc/self/uid_map", "w") as file:
        file.write(f"{_NOBODY} {user} 1")
    return True


def _become_nobody() -> None:
    """Gives up the superuser's rights for good; ends the process if Python's own files cannot be
    read without them, or if the system does not remove them."""
    try:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        for path in (os.__file__, json.__file__, "."):
            os.stat(path)
            if not os.access(path, os.R_OK):
                raise PermissionError(path)
    except OSError:
        os._exit(REFUSED)
    if set(os.getresuid()) != {_NOBODY} or _capabilities():
        os._exit(REFUSED)


def _capabilities() -> int:
    """Capabilities of the process as a bit mask; 0 if the system has no capabilities."""
    try:
        with open("/proc/self/status") as file:
            given = [
                int(row.split()[1], 16) for row in file if row.startswith(("CapPrm", "CapEff"))
            ]
    except OSError:
        return 0
    return max(given, default=0)


def _limit(job: dict[str, Any]) -> None:
    cpu_seconds = math.ceil(job["seconds"]) + 1
    for what, most in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, job["memory_bytes"]),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
    ):
        try:
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):  # macOS does not have all of them
            print("a limit could not be set", file=sys.stderr)


if __name__ == "__main__":
    main()
