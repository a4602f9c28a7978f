# SPDX-License-Identifier: Apache-2.0
"""Pages that stay at a site: one model on its own records, or two compared. One file, no script, no network.

As on the report's page, names from elsewhere pass an escaping template, and the page's own policy forbids the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fairflare.evaluation import tables, words
from fairflare.evaluation.facts import Fact
from fairflare.evaluation.phrases import number
from fairflare.evaluation.rendering import rendered
from fairflare.evaluation.summary import Remark, RunSummary
from fairflare.evaluation.tables import Block, Cell, Row, TableView
from fairflare.evaluation.worth import CAUTION, Judged, Worth
from fairflare.fairness.groups import EVERYBODY


@dataclass(frozen=True)
class Section:
    """A heading, sentences below it, and tables below these; ``folded``: shown closed at first."""

    heading: str
    sentences: tuple[str, ...]
    tables: tuple[TableView, ...]
    folded: bool = False


@dataclass(frozen=True)
class OwnPage:
    """A page of a site's own."""

    title: str
    sentences: tuple[str, ...]
    facts: tuple[Fact, ...]
    warnings: tuple[Remark, ...]
    sections: tuple[Section, ...]


def to_html(page: OwnPage) -> str:
    """The page as HTML."""
    return rendered("own.html.j2", page=page, caution=CAUTION, glossary=words.GLOSSARY)


def result_sections(summary: RunSummary) -> Iterator[Section]:
    """Results of one model by group: the report's own tables."""
    legend = words.VOCABULARIES[summary.kind]
    noun = legend.noun
    worst = tuple(tables.worst_sentences(summary))
    yield Section("Results by group", (*worst, legend.legend_interval), (tables.main_table(summary),))
    if (others := tables.other_table(summary)) is not None:
        yield Section("Other numbers by group", (), (others,), folded=True)
    if (gaps := tables.gap_table(summary, f"Gaps between groups on {summary.split} {noun}")) is not None:
        yield Section("Gaps between groups", (legend.legend_gap,), (gaps,))
    if summary.labels:
        yield Section("Each label against all others", (), (tables.label_overview(summary),))
        for view in tables.label_views(summary):
            own = [one for one in (view.groups, view.others, view.gaps) if one is not None]
            yield Section(view.title, tuple(view.worst), tuple(own), folded=True)


def worth_tables(worth: Worth, split: str) -> tuple[TableView, ...]:
    """One table for each metric."""
    return tuple(_worth_table(worth, metric, split) for metric in worth.metrics)


def _worth_table(worth: Worth, metric: str, split: str) -> TableView:
    notes: list[str] = []
    blocks: dict[str, list[Row]] = {}
    for row in worth.by_metric(metric):
        heading = "" if row.attribute == EVERYBODY else row.attribute
        blocks.setdefault(heading, []).append(_worth_row(row, notes))
    heads = ("Group", "Records", worth.first, worth.second, "Difference", "Verdict")
    caption = f"{words.NAMES[metric]} on this site's {split} records"
    return TableView(caption, heads, tuple(Block(name, tuple(rows)) for name, rows in blocks.items()), tuple(notes))


def _worth_row(row: Judged, notes: list[str]) -> Row:
    result, note = row.result, 0
    if row.why:
        if row.why not in notes:
            notes.append(row.why)
        note = notes.index(row.why) + 1
    reach = "" if result.low is None or result.high is None else f"{result.low:+.3f} to {result.high:+.3f}"
    change = "not estimable" if result.difference is None else f"{result.difference:+.3f}"
    cells = (
        Cell(str(result.records), f"{result.patients} patient{'' if result.patients == 1 else 's'}"),
        Cell(number(result.first)),
        Cell(number(result.second)),
        Cell(change, reach),
        Cell(row.verdict, note=note),
    )
    return Row("everybody" if row.attribute == EVERYBODY else row.group, cells)


def worth_page(
    title: str, answer: Sequence[str], facts: Sequence[Fact], warnings: Sequence[Remark], sections: Sequence[Section]
) -> OwnPage:
    """A page whose parts may be any sequences."""
    return OwnPage(title, tuple(answer), tuple(facts), tuple(warnings), tuple(sections))
