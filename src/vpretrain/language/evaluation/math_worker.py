"""The process behind :class:`vpretrain.language.evaluation.equivalence.Judge`; it imports nothing
from vpretrain, so that it starts quickly.
"""

import json
import logging
import resource
import sys

MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Reads lines of JSON, ``[expected, found]``, and answers each with ``equal`` or
    ``different``."""
    from math_verify import parse, verify

    def read(text: str) -> list:
        # Without math-verify's own time limit, which uses a signal: the caller kills this process
        # when time is up.
        return parse(f"${text}$", parsing_timeout=None) or parse(text, parsing_timeout=None)

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # The first call imports half of sympy.
    verify(read("x^2 + 1"), read(r"\frac{1}{2}"), timeout_seconds=None)
    print("ready", flush=True)
    for line in sys.stdin:
        expected, written = json.loads(line)
        try:
            gold, answer = read(expected), read(written)
            equal = bool(gold and answer) and verify(gold, answer, timeout_seconds=None)
        # The parsers and sympy raise many kinds of exceptions; what cannot be compared is unequal.
        except Exception:
            equal = False
        print("equal" if equal else "different", flush=True)


if __name__ == "__main__":
    main()
