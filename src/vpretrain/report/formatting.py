"""Formats numbers for readers."""

from __future__ import annotations

import math
from collections.abc import Iterable

MINUS = "\N{MINUS SIGN}"


def fixed(value: float, decimals: int) -> str:
    """Formats as ``-0.1234``, with a true minus sign and a fixed number of decimals."""
    return f"{value:,.{decimals}f}".replace("-", MINUS) if math.isfinite(value) else "not finite"


def signed(value: float, decimals: int) -> str:
    """Formats as :func:`fixed`, with a plus sign on non-negative numbers."""
    return f"{value:+,.{decimals}f}".replace("-", MINUS) if math.isfinite(value) else "not finite"


def decimals_for(spreads: Iterable[float | None]) -> int:
    """Returns how many decimals show the smallest spread: 3 to 6, and 4 without any spread."""
    known = [spread for spread in spreads if spread and math.isfinite(spread)]
    if not known:
        return 4
    return min(6, max(3, -math.floor(math.log10(min(known)))))


def brief(value: float) -> str:
    """Formats with three significant digits: ``0.0123``, ``12.3``, ``12,300``, ``1.2e−7``."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e9):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    if size >= 1000:
        return fixed(value, 0)
    digits = 2 if not size else max(0, 2 - math.floor(math.log10(size)))
    return fixed(value, digits)


def compact(value: float) -> str:
    """Formats a count in few characters, for axes: ``950``, ``12k``, ``1.5M``."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}".replace("-", MINUS)
    return f"{value:.4g}".replace("-", MINUS)


def short(value: float) -> str:
    """Formats with up to four significant digits, as short as possible: ``5e−5``, ``0.25``."""
    mantissa, e, exponent = f"{value:.4g}".partition("e")
    return (f"{mantissa}e{int(exponent)}" if e else mantissa).replace("-", MINUS)


def fraction(value: float) -> str:
    """Formats a fraction in per cent; with one decimal below ten."""
    return f"{100 * value:.1f}%" if abs(value) < 0.0995 else f"{100 * value:.0f}%"


def p_value(p: float | None) -> str:
    """Formats as ``0.031`` or ``< 0.001``; a dash if there is none."""
    if p is None:
        return "–"
    return "<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_phrase(p: float) -> str:
    """Formats as ``p = 0.031`` or ``p < 0.001``, without breaking spaces."""
    equals = "" if p < 0.001 else "= "
    return f"p {equals}{p_value(p)}".replace(" ", "\N{NO-BREAK SPACE}")


def many(count: int, what: str) -> str:
    """Formats a count with its noun: ``1 seed``, ``3 seeds``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def listed(names: Iterable[str], last: str = "and") -> list[str]:
    """Returns the separator after each name: ``[", ", " and ", ""]`` for ``a, b and c``."""
    count = len(list(names))
    return [", "] * (count - 2) + [f" {last} "] * (count > 1) + [""] * (count > 0)
