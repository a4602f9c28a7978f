# SPDX-License-Identifier: Apache-2.0
"""Everything that a study found, and its files: ``results.csv``, ``results.json``, ``table.md`` and ``report.html``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fairflare.errors import StudyError
from fairflare.record import write_atomically
from fairflare.study.choice import choose
from fairflare.study.kept import Failure, Outcome, Result, Values, write_json
from fairflare.study.measures import Measures
from fairflare.study.runs import Key, Run, protections_of
from fairflare.study.spec import Study, json_of
from fairflare.study.table import Board, Grid, board

CSV, JSON, MARKDOWN, PAGE = "results.csv", "results.json", "table.md", "report.html"
FORMAT = "fairflare/study-results/1"
HEAD = ("task", "protection", "method", "configuration", "seed", "status", "code", "chosen", "plan_sha256",
        "initial_model_sha256", "model_sha256", "refusals", "lost_rounds", "validation_collapsed",
        "test_collapsed")  # fmt: skip
#: Which method, of which task, under which protection.
Place = tuple[str, str, str]
SAME, OTHER = "same model", "another model"
#: Of runs with differential privacy, whose noise is never the same twice: one that verifies, and one that was repeated.
NOISY, NO_NOISE = "ran, other noise", "same model: no noise"


@dataclass(frozen=True)
class Findings:
    """A study with all of its runs done.

    Attributes
    ----------
    outcomes
        How each run ended, in the order of ``runs``.
    chosen
        Configuration of each method, from validation data; ``None`` if no run has a value.
    boards
        Tables of test data.
    flare
        What FLARE gave for each method: :data:`SAME`, :data:`OTHER`, :data:`NOISY`, :data:`NO_NOISE`, or the code of a
        failure.
    """

    study: Study
    runs: list[Run]
    outcomes: Mapping[Key, Outcome]
    measures: Mapping[str, Measures]
    chosen: Mapping[Place, str | None]
    boards: tuple[Board, ...]
    flare: Mapping[Place, str]

    @classmethod
    def of(
        cls, study: Study, runs: list[Run], outcomes: Mapping[Key, Outcome], measures: Mapping[str, Measures]
    ) -> Findings:
        """Choose a configuration of each method, and make the tables."""
        grids = _grids(outcomes)
        chosen = {
            place: choose(
                {label: [_validation(one) for one in seeds.values()] for label, seeds in grid.items()},
                measures[place[0]].selection,
                _allowed(study, place[0]),
            )
            for place, grid in grids.items()
        }
        boards = tuple(_boards(study, grids, chosen, measures))
        return cls(study, runs, outcomes, measures, chosen, boards, {})

    def with_flare(self, found: Mapping[Place, str]) -> Findings:
        """The same with what FLARE gave."""
        boards = tuple(
            one.with_flare({method: said for (task, protection, method), said in found.items()
                            if (task, protection) == (one.task, one.protection)})
            for one in self.boards
        )  # fmt: skip
        return replace(self, flare=dict(found), boards=boards)

    @property
    def failed(self) -> dict[Key, Failure]:
        """Runs without results."""
        return {key: one for key, one in self.outcomes.items() if isinstance(one, Failure)}

    def is_chosen(self, key: Key) -> bool:
        """Whether a run is of its method's chosen configuration."""
        return self.chosen[key.task, key.protection, key.method] == key.configuration

    @property
    def private(self) -> set[Place]:
        """Methods of which runs train with differential privacy."""
        return {(run.key.task, run.key.protection, run.key.method) for run in self.runs if run.private}

    def verify_flare(self) -> None:
        """Refuse a study that FLARE does not repeat; raises ``FF-STUDY-FLARE``."""
        wrong = {place: said for place, said in self.flare.items() if said not in (SAME, NOISY)}
        if wrong:
            shown = "; ".join(f"{', '.join(place)}: {said}" for place, said in wrong.items())
            raise StudyError(
                "FF-STUDY-FLARE",
                got=f"runs that NVIDIA FLARE did not repeat: {shown}",
                expected="the model of the local engine, with the same hash; with differential privacy, another one",
                next_step="look at the logs in the study's folder 'flare'; do not trust these rows",
            )


def _validation(outcome: Outcome) -> Values | None:
    return outcome.validation if isinstance(outcome, Result) else None


def _allowed(study: Study, task: str) -> float | None:
    return next(one.selection.quality_loss_allowed for one in study.tasks if one.name == task)


def _grids(outcomes: Mapping[Key, Outcome]) -> dict[Place, dict[str, dict[int, Outcome]]]:
    found: dict[Place, dict[str, dict[int, Outcome]]] = {}
    for key, outcome in outcomes.items():
        grid = found.setdefault((key.task, key.protection, key.method), {})
        grid.setdefault(key.configuration, {})[key.seed] = outcome
    return found


def _boards(
    study: Study, grids: Mapping[Place, Grid], chosen: Mapping[Place, str | None], measures: Mapping[str, Measures]
) -> Iterator[Board]:
    for task in study.tasks:
        for protection in study.protections:
            # A baseline has no protection, so its one row stands in every table.
            places = {
                method.name: (task.name, protection if protection in protections_of(study, method) else
                              protections_of(study, method)[0], method.name)
                for method in study.methods
            }  # fmt: skip
            yield board(
                task.name, protection, measures[task.name], study.methods,
                {name: grids[place] for name, place in places.items()},
                {name: chosen[place] for name, place in places.items()},
            )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- files


def write_results(found: Findings, out: Path) -> None:
    """Write every file of results into ``out``."""
    # Imported here: whoever asks for numbers only needs no template.
    from fairflare.study.page import to_html
    from fairflare.study.text import to_markdown

    write_atomically(out / CSV, to_csv(found).encode())
    write_json(out / JSON, to_json(found))
    write_atomically(out / MARKDOWN, to_markdown(found).encode())
    write_atomically(out / PAGE, to_html(found).encode())


def to_csv(found: Findings) -> str:
    """One row for each run, failed ones too, in the order of the study; seconds last, since only they ever differ."""
    results = [one for one in found.outcomes.values() if isinstance(one, Result)]
    names = {
        "validation": sorted({name for one in results for name in one.validation}),
        "test": sorted({name for one in results for name in one.test}),
    }
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*HEAD, *(f"{split}:{name}" for split, some in names.items() for name in some), "seconds"])
    for key, outcome in found.outcomes.items():
        head = [key.task, key.protection, key.method, key.configuration, key.seed]
        chosen = "yes" if found.is_chosen(key) else "no"
        if isinstance(outcome, Failure):
            values = [""] * (len(HEAD) - len(head) - 4 + len(names["validation"]) + len(names["test"]))
            writer.writerow(
                [*head, "failed", outcome.code, chosen, outcome.plan_sha256, *values, _cell(outcome.seconds)]
            )
            continue
        writer.writerow(
            [
                *head, "done", "", chosen, outcome.plan_sha256, outcome.initial_model_sha256,
                outcome.single_model or "", outcome.refusals, outcome.lost_rounds,
                _cell(outcome.validation_collapsed), _cell(outcome.test_collapsed),
                *(_cell(outcome.validation.get(name)) for name in names["validation"]),
                *(_cell(outcome.test.get(name)) for name in names["test"]), _cell(outcome.seconds),
            ]
        )  # fmt: skip
    return stream.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else repr(value)


def to_json(found: Findings) -> dict[str, Any]:
    """Everything: the study, every run, and the tables."""
    return {
        "format": FORMAT,
        "study": json_of(found.study),
        "runs": [
            {**asdict(key), "chosen": found.is_chosen(key), **outcome.model_dump(mode="json")}
            for key, outcome in found.outcomes.items()
        ],
        "tables": [asdict(one) for one in found.boards],
        "flare": [{"task": t, "protection": p, "method": m, "found": said} for (t, p, m), said in found.flare.items()],
    }
