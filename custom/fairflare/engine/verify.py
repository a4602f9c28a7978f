# SPDX-License-Identifier: Apache-2.0
"""Whether a run is complete and consistent: what follows from other parts of its record is recomputed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from fairflare.engine.messages import EVALUATE, MEASURE, TRAIN
from fairflare.engine.store import read_model
from fairflare.errors import RunError
from fairflare.fairness.penalty import Form, Reduction, penalty_gradient, penalty_value
from fairflare.methods import FlexFairParameters, Penalty
from fairflare.models import initial_vector, vector_sha256
from fairflare.plan import Plan, read_plan
from fairflare.record import FILE_NAME, PenaltyRecord, RoundRecord, RunRecord, read_record

TOLERANCE = 1e-9
_SPLITS: Final[tuple[Literal["validation", "test"], ...]] = ("validation", "test")


@dataclass(frozen=True)
class Defect:
    """What is wrong with a run, with a stable code."""

    code: str
    text: str


def find_record_folder(path: Path) -> Path:
    """The folder of the newest record at or below ``path`` (a run's folder, a FLARE workspace, a record's folder)."""
    if path.is_file():
        return path.parent
    found = sorted(path.rglob(FILE_NAME), key=lambda file: file.stat().st_mtime_ns) if path.is_dir() else []
    if not found:
        raise RunError(
            "FF-RUN-NO-RECORD",
            got="a folder without a record.json",
            expected="the workspace of a run whose server wrote its record",
            next_step="read the server's log: the job ended before its first phase, or this is another folder",
        )
    return found[-1].parent


def verify_run(path: Path) -> RunRecord:
    """The record of the run at ``path``; raises :class:`RunError` ``FF-RUN-VERIFY`` with all that is wrong with it."""
    folder = find_record_folder(path)
    record = read_record(folder)
    defects = list(check_run(folder, record))
    if defects:
        raise RunError(
            "FF-RUN-VERIFY",
            got="; ".join(f"{defect.code}: {defect.text}" for defect in defects),
            expected="a complete run in which everything agrees",
            next_step="go on with 'fairflare run resume' if it stopped; do not use its results",
        )
    return record


def check_run(folder: Path, record: RunRecord) -> Iterator[Defect]:
    """Every defect of the run in ``folder``."""
    plan = record.plan
    if plan.sha256 != record.plan_sha256:
        yield Defect("FF-RUN-PLAN", "the plan in the record does not have the hash that the record names")
    for other in _job_plans(folder):
        if other.sha256 != record.plan_sha256:
            yield Defect("FF-RUN-PLAN", "the job's plan.json is not the plan of the record")
    if vector_sha256(initial_vector(plan)) != record.initial_model_sha256:
        yield Defect("FF-RUN-START", "the first model is not the one that the plan's seed gives")
    yield from _check_status(record)
    if [line.round for line in record.rounds] != list(range(len(record.rounds))):
        yield Defect("FF-RUN-ROUNDS", "rounds are missing, repeated or out of order")
    yield from _check_sessions(record)
    for line in record.rounds:
        yield from _check_round(record, line)
    yield from _check_final(folder, record)


def _job_plans(folder: Path) -> Iterator[Plan]:
    # In a FLARE workspace the record lies in <run>/fairflare and the job's plan in <run>/app_server/config.
    for file in sorted(folder.parent.glob("app_*/config/plan.json")):
        yield read_plan(file)


def _check_status(record: RunRecord) -> Iterator[Defect]:
    wanted = record.plan.training.rounds
    if record.status != "complete":
        why = f" ({record.reason.code}: {record.reason.text})" if record.reason else ""
        yield Defect("FF-RUN-INCOMPLETE", f"status is '{record.status}'{why}")
    if len(record.rounds) != wanted:
        yield Defect("FF-RUN-INCOMPLETE", f"{len(record.rounds)} complete rounds, the plan has {wanted}")
    if record.status == "complete" and (record.final is None or record.ended is None):
        yield Defect("FF-RUN-INCOMPLETE", "no final evaluation although the status is 'complete'")


def _check_sessions(record: RunRecord) -> Iterator[Defect]:
    numbers = [session.number for session in record.sessions]
    firsts = [session.first_round for session in record.sessions]
    if numbers != list(range(1, len(numbers) + 1)) or firsts != sorted(firsts) or not firsts or firsts[0] != 0:
        yield Defect("FF-RUN-SESSIONS", "the sessions do not follow one another")
    if any(session.previous_record_sha256 is None for session in record.sessions[1:]):
        yield Defect("FF-RUN-SESSIONS", "a later session does not name the record that it goes on from")


def _check_round(record: RunRecord, line: RoundRecord) -> Iterator[Defect]:
    plan, where = record.plan, f"round {line.round}"
    measured, trained = (set(line.participants.get(task, ())) for task in (MEASURE, TRAIN))
    if len(trained) < plan.federation.min_sites or len(measured) < plan.federation.min_sites:
        yield Defect("FF-RUN-QUORUM", f"{where}: fewer sites than the plan's min_sites")
    if not trained <= measured <= set(record.roster):
        yield Defect("FF-RUN-SITES", f"{where}: sites took part that were not in the roster or had not measured")
    absent = set(record.roster) - trained
    named = {refusal.site for refusal in line.refusals}
    earlier = {r.site for one in record.rounds if one.round < line.round for r in one.refusals}
    if absent - named - earlier - {refusal.site for refusal in record.join_refusals}:
        yield Defect("FF-RUN-SITES", f"{where}: a site is missing and no refusal names it")
    parameters = plan.method.penalties if isinstance(plan.method, FlexFairParameters) else ()
    kinds: dict[tuple[str, str], Penalty] = {(one.attribute, one.criterion): one for one in parameters}
    for penalty in line.penalties:
        known = kinds.get((penalty.attribute, penalty.criterion))
        if known is None or penalty.strength != known.strength:
            yield Defect("FF-RUN-PENALTY", f"{where}: a penalty that the plan does not have")
        elif penalty.risk is not None and not _agrees(penalty, known.form, known.reduction):
            yield Defect("FF-RUN-PENALTY", f"{where}: coefficients, P or gap do not follow from the risks")


def _agrees(penalty: PenaltyRecord, form: Form, reduction: Reduction) -> bool:
    if None in (penalty.weight, penalty.coefficient, penalty.value, penalty.gap, penalty.count):
        return False
    present = np.array([risk is not None for risk in penalty.risk or ()])
    risk = np.array([0.0 if risk is None else risk for risk in penalty.risk or ()])[present]
    weight = np.array(penalty.weight)[present]
    coefficient = np.array(penalty.coefficient)
    expected = np.zeros(present.shape)
    expected[present] = penalty_gradient(risk, weight, form, reduction)
    value = penalty_value(risk, weight, form, reduction)
    gap = float(np.abs(risk - weight @ risk).max()) if risk.size >= 2 else 0.0
    close = [
        np.abs(coefficient - expected).max(initial=0.0),
        abs(value - (penalty.value or 0.0)),
        abs(gap - (penalty.gap or 0.0)),
    ]
    return all(math.isfinite(difference) and difference <= TOLERANCE for difference in close)


def _check_final(folder: Path, record: RunRecord) -> Iterator[Defect]:
    final = record.final
    if final is None:
        return
    if not record.rounds or final.model_sha256 != record.rounds[-1].model_sha256:
        yield Defect("FF-RUN-MODEL", "the evaluated model is not the model of the last round")
    if len(final.participants) < record.plan.federation.min_sites:
        yield Defect("FF-RUN-QUORUM", f"{EVALUATE}: fewer sites than the plan's min_sites")
    if not set(final.confirmed) <= set(final.participants):
        yield Defect("FF-RUN-SITES", "a site confirmed a model that it did not evaluate")
    if len(final.confirmed) < record.plan.federation.min_sites:
        yield Defect("FF-RUN-QUORUM", "fewer sites than the plan's min_sites confirmed the final model")
    try:
        read_model(folder, record.plan, final.model_sha256)
        for split in _SPLITS:
            sums = record.evaluation(split)
            for attribute, table in sums.cells.items():
                if abs(table[..., 4:].sum(axis=-1) - table[..., 0]).max() > TOLERANCE:
                    yield Defect("FF-RUN-SUMS", f"{split}/{attribute}: a histogram does not add up to its count")
    except RunError as problem:
        yield Defect(problem.code, problem.got)
