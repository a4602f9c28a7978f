# SPDX-License-Identifier: Apache-2.0
"""Quality against gap: every configuration of every method as a mark, the chosen ones filled and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fairflare.evaluation.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTERS,
    RIGHT,
    TOP,
    WIDTH,
    Mark,
    Tick,
    apart,
    clip,
    outline,
    round_values,
    tick_text,
)
from fairflare.study.table import Board, Point

#: Height of a line of the legend.
_LINE_HEIGHT = 12.5


@dataclass(frozen=True)
class Group:
    """One method as ink: its marks, and its line in the legend with a leader to the chosen mark ("" if none)."""

    style: int
    marks: tuple[Mark, ...]
    label: str
    sample: str
    label_y: float
    leader: str


@dataclass(frozen=True)
class Scatter:
    """The picture; ``absent`` are methods without a configuration that has both numbers."""

    title: str
    description: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    groups: tuple[Group, ...]
    absent: tuple[str, ...]


def scatter(board: Board) -> Scatter | None:
    """Lay the picture of a table out; ``None`` without gaps, or without a single point."""
    if not board.view.gaps or not board.points:
        return None
    x_values = round_values(0.0, max(point.gap for point in board.points))
    y_values = _axis([point.quality for point in board.points])
    names = list(dict.fromkeys(point.method for point in board.points))
    order = [line.method for line in board.lines]
    title = f"{board.view.words} against {board.view.gaps[0].words}"
    return Scatter(
        title=title,
        description=_words(title, board.points),
        x_title=f"{board.view.gaps[0].words} (less is fairer)",
        y_title=board.view.words,
        x_ticks=tuple(Tick(_x(value, x_values), tick_text(value, x_values)) for value in x_values),
        y_ticks=tuple(Tick(_y(value, y_values), tick_text(value, y_values)) for value in y_values),
        groups=tuple(_groups(board.points, names, order, x_values, y_values)),
        absent=tuple(name for name in order if name not in names),
    )


def _axis(values: Sequence[float]) -> list[float]:
    """Round numbers around these, with room, so that nothing lies on the frame and no small difference looks large."""
    low, high = min(values), max(values)
    room = max(0.15 * (high - low), 0.01)
    return round_values(max(0.0, low - room), min(1.0, high + room))


def _groups(
    points: Sequence[Point], names: Sequence[str], order: Sequence[str], x: list[float], y: list[float]
) -> list[Group]:
    chosen = {point.method: point for point in points if point.chosen}
    wanted = [_y(chosen[name].quality, y) if name in chosen else HEIGHT - BOTTOM for name in names]
    # With more methods than lines fit beside the plot, lines come closer.
    step = min(_LINE_HEIGHT, (HEIGHT - TOP - BOTTOM) / max(1, len(names) - 1))
    heights = apart(wanted, top=TOP, bottom=HEIGHT - BOTTOM, step=step)
    result = []
    for name, height in zip(names, heights, strict=True):
        style = order.index(name)
        own = [point for point in points if point.method == name]
        leader = ""
        if name in chosen:
            at = _x(chosen[name].gap, x), _y(chosen[name].quality, y)
            leader = f"M{at[0]:.1f} {at[1]:.1f}L{WIDTH - RIGHT + 8:.1f} {height:.1f}"
        marks = tuple(
            Mark(outline(style, _x(one.gap, x), _y(one.quality, y), 4.0 if one.chosen else 3.0), one.chosen, _said(one))
            for one in own
        )
        sample = outline(style, WIDTH - RIGHT + 12, height, 3.2)
        result.append(Group(style, marks, clip(name, LETTERS), sample, height, leader))
    return result


def _said(point: Point) -> str:
    mark = ", chosen" if point.chosen else ""
    return f"{point.method} {point.configuration}{mark}: quality {point.quality:.3f}, gap {point.gap:.3f}"


def _words(title: str, points: Sequence[Point]) -> str:
    chosen = "; ".join(_said(point) for point in points if point.chosen)
    return f"{title}, {len(points)} configurations. {chosen or 'None is chosen'}."


def _x(value: float, among: Sequence[float]) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - among[0]) / (among[-1] - among[0])


def _y(value: float, among: Sequence[float]) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - among[0]) / (among[-1] - among[0])
