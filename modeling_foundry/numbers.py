"""Numbers as people read them."""

from __future__ import annotations

_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_COUNT_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def gib(num_bytes: float) -> str:
    """Bytes in GiB, or MiB when there are few."""
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 0.1 * 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


def flops(value: float) -> str:
    """FLOPs with a decimal prefix: 10.32 GF."""
    if value >= 1e21:
        return f"{power(value)} F"
    for scale, prefix in _SCALES:
        if value >= scale:
            return f"{value / scale:,.2f} {prefix}F"
    return f"{value:,.0f} F"


def power(value: float) -> str:
    """A number with its power of ten: 9.229e21."""
    return f"{value:.4g}".replace("e+", "e")


def count(value: float) -> str:
    """Tokens or parameters: 104.9B, 1.83B, 12.5M."""
    for scale, suffix in _COUNT_SCALES:
        if value >= scale:
            return f"{value / scale:,.4g}{suffix}" if value < 1e15 else f"{value:.3e}"
    return f"{value:,.4g}"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def hours(value: float) -> str:
    """Hours, with days when there are many and minutes when there are few."""
    if value >= 72:
        return f"{value:,.1f} h ({value / 24:,.1f} days)"
    if value >= 1:
        return f"{value:,.1f} h"
    return f"{value * 60:,.1f} min" if value * 60 >= 1 else f"{value * 3600:,.1f} s"


def dollars(value: float) -> str:
    return f"${value:,.0f}" if value >= 100 else f"${value:,.2f}"
