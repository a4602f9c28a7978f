# SPDX-License-Identifier: Apache-2.0
"""Where a chart's ink goes: ticks, paths, marks and labels in the units of an SVG view box; the template draws them.

Lines are told apart by dashes, by the form of their marks and by the name at their end; colour only helps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from fairflare.evaluation.curves import Chart, Series

WIDTH, HEIGHT = 384.0, 236.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 138.0, 12.0, 36.0
#: More lines than this are a tangle; the table beside the chart has them all.
MOST_LINES = 8
#: A line is drawn through so many points at most.
MOST_POINTS = 400
#: Charts of fewer models than this are drawn whole.
_FEW = 4
#: About so many marks per line.
_MARKS = 7
#: Height of a label, and letters that fit beside the plot, even bold in a wide font.
_LINE_HEIGHT, LETTERS = 12.5, 16
#: Width of the word "collapse" in a picture.
_WORD = 48.0
#: From (rounds trained, value) to a point of the view box.
Place = Callable[[float, float], tuple[float, float]]
DASHES = ("", "7 3", "2 2.5", "9 3 2 3")


@dataclass(frozen=True)
class Tick:
    """A place on an axis and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point of a line; ``solid`` ones are the worst line at that place."""

    path: str
    solid: bool
    words: str


@dataclass(frozen=True)
class Line:
    """One series as ink; ``style`` is a number of the style sheet, -1 the reference."""

    style: int
    dash: str
    path: str
    marks: tuple[Mark, ...]
    label: str
    sample: str
    label_y: float
    leader: str
    worst: bool


@dataclass(frozen=True)
class Span:
    """Rounds of which something is said along the upper edge: where, and ``words`` ("" if there is no room)."""

    x: float
    width: float
    words: str


@dataclass(frozen=True)
class Drawing:
    """A chart ready to be drawn."""

    key: str
    title: str
    description: str
    notes: tuple[str, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    chance: float | None
    best: float | None
    spans: tuple[Span, ...]
    lines: tuple[Line, ...]


def draw(chart: Chart) -> Drawing:
    """Lay a chart out; it has at least one value."""
    whole, (chart, untrained) = chart, without_untrained(chart)
    shown, notes = chosen(chart)
    notes += untrained
    values = [y for one in shown for y in one.y if y is not None]
    low, high = (0.0 if chart.from_zero else min(values)), max(values)
    y_values = round_values(low, high)
    bottom, top = y_values[0], y_values[-1]
    most = max(chart.x[-1], 1)

    def place(x: float, y: float) -> tuple[float, float]:
        share = (y - bottom) / (top - bottom)
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * x / most,
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share,
        )

    clipped = [one.name for one in shown if len(one.name) > LETTERS]
    if clipped:
        notes.append(f"Names in full: {', '.join(clipped)}.")
    return Drawing(
        key=chart.key,
        title=chart.title,
        description=describe(whole),
        notes=(*filter(None, [chart.note]), *notes),
        x_ticks=tuple(Tick(place(x, bottom)[0], f"{x:g}") for x in _round_ticks(most)),
        y_ticks=tuple(Tick(place(0, y)[1], tick_text(y, y_values)) for y in y_values),
        chance=place(0, chart.chance)[1] if chart.chance is not None and bottom < chart.chance < top else None,
        best=None if chart.best not in chart.x or most < chart.best else place(chart.best, bottom)[0],
        spans=tuple(_spans(chart, place)),
        lines=tuple(_lines(chart, shown, place)),
    )


def _spans(chart: Chart, place: Place) -> Iterator[Span]:
    """Models in a row that have learnt nothing, half a round wider on both sides, inside the axes."""
    known = [at for at in chart.collapsed if at in chart.x]
    half = 0.5 * (WIDTH - LEFT - RIGHT) / max(chart.x[-1], 1)
    for _, group in groupby(enumerate(known), lambda pair: pair[1] - pair[0]):
        row = [at for _, at in group]
        begin = max(LEFT, place(row[0], 0)[0] - half)
        end = min(WIDTH - RIGHT, place(row[-1], 0)[0] + half)
        yield Span(begin, end - begin, "collapse" if end - begin >= _WORD else "")


def without_untrained(chart: Chart) -> tuple[Chart, list[str]]:
    """Leave the first model out if it alone would take more than half of the axis, and say so."""
    first = [(one.name, one.y[0]) for one in chart.series]
    rest = [y for one in chart.series for y in one.y[1:] if y is not None]
    everything = [*rest, *(y for _, y in first if y is not None)]
    if len(chart.x) < _FEW or chart.from_zero or chart.x[0] != 0 or not rest or len(everything) == len(rest):
        return chart, []
    if max(everything) - min(everything) <= 2 * (max(rest) - min(rest)):
        return chart, []
    words = ", ".join(f"{name} {'not estimable' if y is None else f'{y:.3f}'}" for name, y in first[:MOST_LINES])
    series = tuple(replace(one, y=one.y[1:]) for one in chart.series)
    cut = replace(chart, x=chart.x[1:], series=series)
    return cut, [f"The first, untrained model lies outside the axes: {words}."]


def chosen(chart: Chart) -> tuple[tuple[Series, ...], list[str]]:
    """The lines to draw: all, or those that are worst at the end."""
    some = [one for one in chart.series if any(y is not None for y in one.y)]
    absent = [one.name for one in chart.series if one not in some]
    notes = [f"Not estimable in any round: {', '.join(absent)}."] if absent else []
    groups = [one for one in some if not one.reference]
    if len(groups) > MOST_LINES:
        sign = -1 if chart.worst == "highest" else 1
        if chart.worst != "none":
            groups.sort(key=lambda one: sign * last_point(one)[1])
            which = "the worst at the end"
        else:
            which = "the first"
        notes.append(f"{MOST_LINES} of {len(groups)} lines are drawn: {which}. The table has all.")
        kept = groups[:MOST_LINES]
        some = [one for one in some if one.reference or one in kept]
    return tuple(some), notes


def last_point(series: Series) -> tuple[int, float]:
    """Place and value of the last point that has one."""
    return [(place, y) for place, y in enumerate(series.y) if y is not None][-1]


def _lines(chart: Chart, shown: Sequence[Series], place: Place) -> Iterator[Line]:
    ends = [place(chart.x[at], y) for at, y in map(last_point, shown)]
    label_y = apart([y for _, y in ends], top=TOP, bottom=HEIGHT - BOTTOM, step=_LINE_HEIGHT)
    last = chart.last
    at_end = chart.worst_at(last) if last is not None else None
    for k, one in enumerate(shown):
        style = -1 if one.reference else k
        worst = at_end is not None and chart.series[at_end] is one
        name = clip(one.name, LETTERS - 8 if worst else LETTERS)
        x, y = ends[k]
        yield Line(
            style=style,
            dash="1 3" if one.reference else DASHES[style % len(DASHES)],
            path=_path(chart, one, place),
            marks=() if one.reference else tuple(_marks(chart, one, k, place)),
            label=name,
            sample="" if one.reference else outline(style, WIDTH - RIGHT + 12, label_y[k], 3.2),
            label_y=label_y[k],
            leader=f"M{x:.1f} {y:.1f}L{WIDTH - RIGHT + 8:.1f} {label_y[k]:.1f}",
            worst=worst,
        )


def _path(chart: Chart, series: Series, place: Place) -> str:
    """Straight lines between neighbours; a gap where a value is missing."""
    parts, pen_down = [], False
    for at in thinned(len(chart.x), MOST_POINTS):
        y = series.y[at]
        if y is None:
            pen_down = False
            continue
        across, down = place(chart.x[at], y)
        parts.append(f"{'L' if pen_down else 'M'}{across:.1f} {down:.1f}")
        pen_down = True
    return "".join(parts)


def _marks(chart: Chart, series: Series, k: int, place: Place) -> Iterator[Mark]:
    size = len(chart.x)
    step = max(1, math.ceil((size - 1) / _MARKS))
    last, _ = last_point(series)
    for at, y in enumerate(series.y):
        alone = all(not 0 <= near < size or series.y[near] is None for near in (at - 1, at + 1))
        # Neighbouring lines have their marks at different places, so that they do not hide one another.
        if y is None or not (at % step == k % step or at in (0, last) or (alone and size <= MOST_POINTS)):
            continue
        worst = chart.worst_at(at)
        solid = worst is not None and chart.series[worst] is series
        words = f"{series.name}, after {rounds(chart.x[at])}: {y:.3f}{' (worst)' if solid else ''}"
        yield Mark(outline(k, *place(chart.x[at], y), 3.0), solid, words)


def outline(style: int, x: float, y: float, r: float) -> str:
    """Outline of a mark: circle, square, triangle, diamond, triangle on its tip, hexagon."""
    kind = style % 6
    if kind == 0:
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    corners = {1: (4, 45), 2: (3, -90), 3: (4, 0), 4: (3, 90), 5: (6, 0)}[kind]
    count, start = corners
    reach = r * (1.25 if count != 3 else 1.35)
    points = [
        (x + reach * math.cos(math.radians(start + 360 * n / count)),
         y + reach * math.sin(math.radians(start + 360 * n / count)))
        for n in range(count)
    ]  # fmt: skip
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points) + "Z"


def apart(wanted: Sequence[float], *, top: float, bottom: float, step: float) -> list[float]:
    """Heights of labels near the wanted ones, at least ``step`` apart and, if there is room, inside the plot."""
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    found = [0.0] * len(wanted)
    floor = top
    for k in order:
        found[k] = max(wanted[k], floor)
        floor = found[k] + step
    ceiling = bottom
    for k in reversed(order):
        found[k] = min(found[k], ceiling)
        ceiling = found[k] - step
    return found


def round_values(low: float, high: float) -> list[float]:
    """Round numbers that cover ``low`` to ``high``, about five of them."""
    if high - low <= 1e-6 * abs(high):
        # As good as constant: the line gets room above and below, but an axis that begins at 0 goes on doing so.
        room = 0.1 * abs(high) or 0.01
        low, high = (low if low == 0 else low - room), high + room
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def tick_text(value: float, among: Sequence[float]) -> str:
    """A value of an axis with as many digits as its neighbours (``among``) need."""
    step = among[1] - among[0]
    if abs(value) < step / 2:
        return "0"
    if step < 1e-4 or abs(value) >= 1e5:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits}f}"


def _round_ticks(most: int) -> list[int]:
    step = next(s * 10**p for p in range(8) for s in (1, 2, 5) if s * 10**p >= most / 5)
    return list(range(0, most + 1, step))


def thinned(size: int, most: int) -> list[int]:
    """At most about ``most`` of ``size`` places, evenly spread, the first and the last among them."""
    step = max(1, math.ceil(size / most))
    places = list(range(0, size, step))
    return places if not places or places[-1] == size - 1 else [*places, size - 1]


def clip(text: str, letters: int) -> str:
    """A text with its middle left out if it is too long; its end often tells it from its neighbours."""
    if len(text) <= letters:
        return text
    tail = (letters - 1) // 2
    return f"{text[: letters - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - tail :]}"


def rounds(count: int) -> str:
    """Such as "1 round" or "7 rounds"."""
    return "1 round" if count == 1 else f"{count} rounds"


def describe(chart: Chart) -> str:
    """A chart in words, for those who cannot see it: where each line begins and ends."""
    parts = []
    last = chart.last
    worst = chart.worst_at(last) if last is not None else None
    for k, one in enumerate(chart.series[: 3 * MOST_LINES]):
        known = [(at, y) for at, y in enumerate(one.y) if y is not None]
        if not known:
            parts.append(f"{one.name} is not estimable")
            continue
        (first, start), (end, stop) = known[0], known[-1]
        course = f"{start:.3f}" if first == end else f"from {start:.3f} to {stop:.3f}"
        parts.append(f"{one.name} {course}{', the worst at the end' if k == worst else ''}")
    marked = "" if chart.best is None else f" Best on validation data after {rounds(chart.best)}."
    return f"{chart.title}, models after {chart.x[0]} to {rounds(chart.x[-1])}: {'; '.join(parts)}.{marked}"
