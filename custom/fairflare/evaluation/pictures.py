# SPDX-License-Identifier: Apache-2.0
"""Charts as PNG files for slides and papers: the only file that knows matplotlib, which is an optional package."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fairflare.evaluation.curves import Chart
from fairflare.evaluation.drawing import DASHES, LETTERS, apart, chosen, clip, last_point, without_untrained

#: Inches, and dots per inch: 1500 x 960 pixels.
_SIZE, _DPI = (7.5, 4.8), 200
_COLOURS = ("#0b5fa5", "#b3430b", "#00705a", "#8a3d86", "#745700", "#a8224e", "#3c5a1e", "#4c4fb0")
_MARKERS = ("o", "s", "^", "D", "v", "h")
_GREY = "#4d545b"


def write_png(charts: Sequence[tuple[str, Chart]], folder: Path) -> list[Path]:
    """Draw each (beginning of the file's name, chart) into ``folder``; returns the files, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        # A letter that the font lacks becomes a box: no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for start, chart in charts:
            file = folder / f"{start}-{re.sub('[^A-Za-z0-9_-]', '_', chart.key)}.png"
            # The name of the software would make equal pictures differ between versions.
            _figure(chart).savefig(file, dpi=_DPI, metadata={"Software": None})
            files.append(file)
    return files


def _figure(whole: Chart) -> Figure:
    chart, untrained = without_untrained(whole)
    shown, notes = chosen(chart)
    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    axes.set_title(chart.title, loc="left", fontweight="bold", parse_math=False)
    axes.set_xlabel("rounds trained")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.chance is not None and untrained == []:
        axes.axhline(chart.chance, color=_GREY, linewidth=0.8, linestyle=":")
    if chart.best is not None and chart.best in chart.x:
        axes.axvline(chart.best, color=_GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        axes.annotate("best", (chart.best, 1.0), xycoords=("data", "axes fraction"), fontsize=8, color=_GREY)
    for at in chart.collapsed if set(chart.collapsed) & set(chart.x) else ():
        axes.axvspan(at - 0.5, at + 0.5, facecolor="none", edgecolor=_GREY, hatch="//", alpha=0.25, linewidth=0)
    last = chart.last
    worst = chart.worst_at(last) if last is not None else None
    for k, one in enumerate(shown):
        y = [float("nan") if value is None else value for value in one.y]
        if one.reference:
            axes.plot(chart.x, y, color=_GREY, linewidth=1.2, linestyle=(0, (1, 2)))
        else:
            dash = tuple(float(part) for part in DASHES[k % len(DASHES)].split())
            axes.plot(
                chart.x, y, color=_COLOURS[k % len(_COLOURS)], linewidth=1.8, linestyle=(0, dash) if dash else "-",
                marker=_MARKERS[k % len(_MARKERS)], markevery=max(1, (len(chart.x) - 1) // 7), markersize=5,
                markerfacecolor=None if worst is not None and chart.series[worst] is one else "white",
            )  # fmt: skip
    axes.set_xlim(left=0, right=max(chart.x[-1], 1) if chart.collapsed else None)
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    _labels(axes, chart, worst)
    notes = [*filter(None, [chart.note]), *notes, *untrained]
    if notes:
        figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=7, color=_GREY, parse_math=False, wrap=True)
    return figure


def _labels(axes: Axes, chart: Chart, worst: int | None) -> None:
    """Names at the ends of the lines, moved apart where they would overlap."""
    shown, _ = chosen(chart)
    low, high = axes.get_ylim()
    height = 100.0
    ends = [last_point(one)[1] for one in shown]
    places = apart([height * (high - y) / (high - low) for y in ends], top=0.0, bottom=height, step=4.6)
    for one, y, place in zip(shown, ends, places, strict=True):
        is_worst = worst is not None and chart.series[worst] is one
        axes.annotate(
            clip(one.name, LETTERS) + (" (worst)" if is_worst else ""),
            xy=(chart.x[last_point(one)[0]], y),
            xytext=(1.02, 1 - place / height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            fontweight="bold" if is_worst else "normal",
            color=_GREY if one.reference else _COLOURS[shown.index(one) % len(_COLOURS)],
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6},
            parse_math=False,
        )
