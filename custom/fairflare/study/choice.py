# SPDX-License-Identifier: Apache-2.0
"""Which configuration of a method is chosen: one rule for all, by numbers of validation data, which are all it gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fairflare.study.kept import Values
from fairflare.study.measures import View

#: Validation values of each seed of a configuration; ``None`` for a run that failed.
Tried = Sequence[Values | None]
#: Differences that rounding alone can make do not decide.
_ROUNDING = 1e-12


def choose(tried: Mapping[str, Tried], view: View, loss_allowed: float | None) -> str | None:
    """Label of the chosen configuration; ``None`` if no run of any has a value.

    Only configurations take part that have as many seeds with values as any other has: a mean over fewer would leave
    out the seeds that went wrong. Of equals, the first in the study file.

    Parameters
    ----------
    tried
        Configuration -> validation values of each seed.
    view
        The metric that is to be high, and the gaps that are to be small.
    loss_allowed
        How far below the best configuration's metric the chosen one's may be; ``None``: the best one is chosen.
    """
    values = {label: _means(runs, view) for label, runs in tried.items()}
    most = max((len(found) for found in values.values()), default=0)
    if most == 0:
        return None
    able = {label: _mean(found) for label, found in values.items() if len(found) == most}
    best = max(quality for quality, _ in able.values())
    if loss_allowed is None or not view.gaps:
        return next(label for label, (quality, _) in able.items() if quality >= best - _ROUNDING)
    able = {label: pair for label, pair in able.items() if pair[0] >= best - loss_allowed - _ROUNDING}
    smallest = min(gap for _, gap in able.values())
    return next(label for label, (_, gap) in able.items() if gap <= smallest + _ROUNDING)


def _means(runs: Tried, view: View) -> list[tuple[float, float]]:
    """Metric and mean gap of each seed that has them all."""
    found = []
    for values in runs:
        quality = None if values is None else values.get(view.quality)
        gaps = [None if values is None else values.get(gap.value) for gap in view.gaps]
        known = [gap for gap in gaps if gap is not None]
        if quality is not None and len(known) == len(gaps):
            found.append((quality, _average(known)))
    return found


def _mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return _average(quality for quality, _ in pairs), _average(gap for _, gap in pairs)


def _average(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
