# SPDX-License-Identifier: Apache-2.0
"""Bytes and seconds as people read them."""

from __future__ import annotations


def size(count: int) -> str:
    """Such as "512 B", "1,234.5 kB" or "98.76 MB"."""
    if count < 10_000:
        return f"{count:,} B"
    return f"{count / 1e3:,.1f} kB" if count < 10_000_000 else f"{count / 1e6:,.2f} MB"


def duration(seconds: float) -> str:
    """Such as "0.012 s", "12.3 s", "4 min 5 s" or "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.001 else "under 1 ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"
