"""The process behind :class:`vpretrain.language.evaluation.equivalence.Judge`; imports nothing of
vpretrain, to start soon.
"""

import json
import logging
import resource
import sys

MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Reads ``[expected, found]`` a line, writes ``equal`` or ``different``."""
    from math_verify import parse, verify

    def read(text: str) -> list:
        # Without its own time limit, which is a signal: whoever asks waits so long and then kills
        # this process.
        return parse(f"${text}$", parsing_timeout=None) or parse(text, parsing_timeout=None)

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # The first question imports half of sympy.
    verify(read("x^2 + 1"), read(r"\frac{1}{2}"), timeout_seconds=None)
    print("ready", flush=True)
    for line in sys.stdin:
        expected, written = json.loads(line)
        try:
            gold, answer = read(expected), read(written)
            equal = bool(gold and answer) and verify(gold, answer, timeout_seconds=None)
        # the parsers and sympy have exceptions of many kinds; what cannot be compared is not equal
        except Exception:
            equal = False
        print("equal" if equal else "different", flush=True)


if __name__ == "__main__":
    main()
