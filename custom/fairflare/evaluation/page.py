# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page that needs nothing else: no network, no script, no file beside it.

Names of plans, sites and groups come from other organisations. They reach the page through an escaping template only,
and characters that would reorder or hide text are written out. The page's own policy forbids whatever it does not use.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from fairflare.evaluation import tables, words
from fairflare.evaluation.curves import Chart, comparison_charts, run_charts
from fairflare.evaluation.drawing import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Drawing, draw
from fairflare.evaluation.facts import Fact, Guard, caution, facts, guards, headline
from fairflare.evaluation.participation import WIDTH as STRIP_WIDTH
from fairflare.evaluation.participation import Participation, participation
from fairflare.evaluation.phrases import gathered
from fairflare.evaluation.rendering import rendered
from fairflare.evaluation.summary import Comparison, Kind, Remark, RunSummary
from fairflare.record import RunRecord


@dataclass(frozen=True)
class ReportedRun:
    """A run on the page; ``summary`` is ``None`` if it has no final evaluation, because it stopped early.

    ``epsilon``: what its differential privacy comes to, in words; "" without any.
    """

    name: str
    record: RunRecord
    summary: RunSummary | None
    epsilon: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture on the page, such as an image, its truth and its prediction side by side; ``png`` is the file itself.

    A page is read by more people than the data are: only ever give pictures of synthetic data.
    """

    title: str
    caption: str
    png: bytes

    def __post_init__(self) -> None:
        if not self.png.startswith(_PNG):
            raise ValueError("got bytes that are no PNG file, expected one")

    @property
    def address(self) -> str:
        """The picture as an address that holds it."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the file's head says."""
        return int.from_bytes(self.png[16:20], "big"), int.from_bytes(self.png[20:24], "big")


_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class _Protected:
    """Runs that were protected alike: their names, what was on and what was off, and the records' own notices."""

    names: str
    guards: tuple[Guard, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Figure:
    """A chart as ink and as a table."""

    drawing: Drawing
    table: tables.TableView

    @classmethod
    def of(cls, chart: Chart) -> _Figure:
        return cls(draw(chart), tables.curve_table(chart))


@dataclass(frozen=True)
class _View:
    """One run as the template wants it; tables are ``None`` without a final evaluation."""

    run: ReportedRun

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        found = tuple(facts(self.run.name, self.run.record, self.run.summary))
        return (*found, Fact("Epsilon", (self.run.epsilon,))) if self.run.epsilon else found

    @cached_property
    def groups(self) -> tables.TableView | None:
        return tables.main_table(self.run.summary) if self.run.summary else None

    @cached_property
    def others(self) -> tables.TableView | None:
        return tables.other_table(self.run.summary) if self.run.summary else None

    @cached_property
    def gaps(self) -> tables.TableView | None:
        if self.run.summary is None:
            return None
        noun = words.VOCABULARIES[self.run.summary.kind].noun
        return tables.gap_table(self.run.summary, f"Gaps between groups on {self.run.summary.split} {noun}")

    @cached_property
    def overview(self) -> tables.TableView | None:
        return tables.label_overview(self.run.summary) if self.run.summary and self.run.summary.labels else None

    @cached_property
    def labels(self) -> tuple[tables.LabelView, ...]:
        return tuple(tables.label_views(self.run.summary)) if self.run.summary else ()

    @property
    def legend(self) -> words.Vocabulary:
        return words.VOCABULARIES[self.run.summary.kind if self.run.summary else "two_labels"]

    @cached_property
    def worst(self) -> tuple[str, ...]:
        return tuple(tables.worst_sentences(self.run.summary)) if self.run.summary else ()

    @cached_property
    def figures(self) -> tuple[_Figure, ...]:
        return tuple(_Figure.of(chart) for chart in run_charts(self.run.record))

    @cached_property
    def participation(self) -> Participation:
        return participation(self.run.record)

    @cached_property
    def plan(self) -> str:
        return json.dumps(self.run.record.plan.model_dump(mode="json"), indent=2, ensure_ascii=False)


def to_html(runs: Sequence[ReportedRun], comparisons: Sequence[Comparison], pictures: Sequence[Picture] = ()) -> str:
    """The page for one run, or for several of which the first one with results is the baseline.

    Parameters
    ----------
    runs
        At least one, each with its own name.
    comparisons
        Of the first run with results with each later one, in order.
    pictures
        Shown in a row below the results. They become part of the page, so whoever calls this makes sure that they show
        synthetic data only, never a patient.
    """
    summaries = [run.summary for run in runs if run.summary is not None]
    pairs = [(run.name, run.record) for run in runs]
    warnings = _warnings(runs, summaries, comparisons)
    return rendered(
        "page.html.j2",
        pictures=pictures,
        comparison_words=words.VOCABULARIES[_kind(summaries)],
        title=", ".join(run.name for run in runs),
        sentences=list(headline([(run.name, run.record, run.summary) for run in runs], comparisons)),
        protected=_protected(runs),
        warnings=warnings,
        caution=caution(warnings),
        comparison=tables.comparison_table(summaries) if comparisons else None,
        comparison_figures=[_Figure.of(c) for c in comparison_charts(pairs, summaries)] if comparisons else [],
        views=[_View(run) for run in runs],
        words=words,
        box={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP},
        strip_width=STRIP_WIDTH,
    )


def _kind(summaries: Sequence[RunSummary]) -> Kind:
    return summaries[0].kind if summaries else "two_labels"


def _protected(runs: Sequence[ReportedRun]) -> list[_Protected]:
    alike: dict[tuple[tuple[Guard, ...], tuple[str, ...]], list[str]] = {}
    for run in runs:
        alike.setdefault((tuple(guards(run.record)), run.record.notices), []).append(run.name)
    names = ("" if len(alike) == 1 else ", ".join(some) for some in alike.values())
    return [_Protected(name, on, notices) for name, (on, notices) in zip(names, alike, strict=True)]


def _warnings(
    runs: Sequence[ReportedRun], summaries: Sequence[RunSummary], comparisons: Sequence[Comparison]
) -> list[Remark]:
    found = list(_record_warnings(runs))
    if len(runs) == 1:
        return [*found, *(remark for summary in summaries for remark in summary.remarks)]
    return [*found, *gathered(summaries, comparisons)]


def _record_warnings(runs: Sequence[ReportedRun]) -> Iterator[Remark]:
    for run in runs:
        record, name = run.record, f"{run.name}: " if len(runs) > 1 else ""
        if record.plan.sha256 != record.plan_sha256:
            text = "the record names another plan hash than its plan has: it was changed after it was written"
            yield Remark("changed record", name + text)
        if run.summary is None:
            yield Remark("no results", f"{name}the run has no final evaluation; nothing says how good its model is")
        if record.reason is not None:
            yield Remark("stopped", f"{name}{record.reason.code}: {record.reason.text}")
