# SPDX-License-Identifier: Apache-2.0
"""Whether a run is complete and consistent: what follows from other parts of its record is recomputed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from fairflare.engine.describe import record_sha256
from fairflare.engine.messages import EVALUATE, MEASURE, TRAIN
from fairflare.engine.store import read_model
from fairflare.errors import FairFlareError, RunError
from fairflare.fairness.groups import EVERYBODY, HEAD, HOSPITAL, EvaluationSums, Floats
from fairflare.fairness.penalty import group_weights, penalty_gradient, penalty_value
from fairflare.methods import METHODS, FlexFair, Penalty
from fairflare.models import initial_vector, vector_sha256
from fairflare.plan import Plan, read_plan
from fairflare.record import FILE_NAME, PenaltyRecord, RoundRecord, RunRecord, find_record, read_record

TOLERANCE = 1e-9
_SPLITS: Final[tuple[Literal["validation", "test"], ...]] = ("validation", "test")


@dataclass(frozen=True)
class Defect:
    """What is wrong with a run, with a stable code."""

    code: str
    text: str


def verify_run(path: Path) -> RunRecord:
    """The record of the run at ``path``; raises :class:`RunError` ``FF-RUN-VERIFY`` with all that is wrong with it."""
    folder = find_record(path).parent
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
        if other is None or other.sha256 != record.plan_sha256:
            yield Defect("FF-RUN-PLAN", "the job's plan.json is not the plan of the record")
    if vector_sha256(initial_vector(plan)) != record.initial_model_sha256:
        yield Defect("FF-RUN-START", "the first model is not the one that the plan's seed gives")
    yield from _check_status(record)
    if [line.round for line in record.rounds] != list(range(len(record.rounds))):
        yield Defect("FF-RUN-ROUNDS", "rounds are missing, repeated or out of order")
    yield from _check_sessions(folder, record)
    for line in record.rounds:
        yield from _check_round(record, line)
    yield from _check_final(folder, record)


def _job_plans(folder: Path) -> Iterator[Plan | None]:
    # In a FLARE workspace the record lies in <run>/fairflare and the job's plan in <run>/app_server/config.
    for file in sorted(folder.parent.glob("app_*/config/plan.json")):
        try:
            yield read_plan(file)
        except FairFlareError:
            yield None


def _check_status(record: RunRecord) -> Iterator[Defect]:
    wanted = record.plan.training.rounds
    if record.status != "complete":
        why = f" ({record.reason.code}: {record.reason.text})" if record.reason else ""
        yield Defect("FF-RUN-INCOMPLETE", f"status is '{record.status}'{why}")
    if len(record.rounds) != wanted:
        yield Defect("FF-RUN-INCOMPLETE", f"{len(record.rounds)} complete rounds, the plan has {wanted}")
    if record.status == "complete" and (record.final is None or record.ended is None):
        yield Defect("FF-RUN-INCOMPLETE", "no final evaluation although the status is 'complete'")


def _check_sessions(folder: Path, record: RunRecord) -> Iterator[Defect]:
    numbers = [session.number for session in record.sessions]
    firsts = [session.first_round for session in record.sessions]
    if numbers != list(range(1, len(numbers) + 1)) or firsts != sorted(firsts) or not firsts or firsts[0] != 0:
        yield Defect("FF-RUN-SESSIONS", "the sessions do not follow one another")
    elif firsts[-1] > len(record.rounds):
        yield Defect("FF-RUN-SESSIONS", "a session begins after the last complete round")
    if any(session.previous_record_sha256 is None for session in record.sessions[1:]):
        yield Defect("FF-RUN-SESSIONS", "a later session does not name the record that it goes on from")
    beside = {record_sha256(other) for other in _records_beside(folder)}
    if len(record.sessions) > 1 and beside and record.sessions[-1].previous_record_sha256 not in beside:
        yield Defect("FF-RUN-SESSIONS", "the record that the last session goes on from is not in its run's folder")


def _records_beside(folder: Path) -> Iterator[RunRecord]:
    """Readable records of the other sessions of a run made by 'fairflare run simulate'."""
    places = folder.parts[-4:]
    if len(places) == 4 and places[0].startswith("session-"):
        for file in sorted(folder.parents[3].glob("session-*/" + "/".join(places[1:]) + f"/{FILE_NAME}")):
            if file.parent != folder:
                try:
                    yield read_record(file)
                except RunError:
                    continue


def _check_round(record: RunRecord, line: RoundRecord) -> Iterator[Defect]:
    plan, where = record.plan, f"round {line.round}"
    measured, trained = (set(line.participants.get(task, ())) for task in (MEASURE, TRAIN))
    if len(trained) < plan.federation.min_sites or len(measured) < plan.federation.min_sites:
        yield Defect("FF-RUN-QUORUM", f"{where}: fewer sites than the plan's min_sites")
    if not trained <= measured <= set(record.roster):
        yield Defect("FF-RUN-SITES", f"{where}: sites took part that were not in the roster or had not measured")
    if any(refusal.site in line.participants.get(refusal.task, ()) for refusal in line.refusals):
        yield Defect("FF-RUN-SITES", f"{where}: a site took part in a task that it was refused for")
    absent = set(record.roster) - trained
    named = {refusal.site for refusal in line.refusals}
    earlier = {r.site for one in record.rounds if one.round < line.round for r in one.refusals}
    if absent - named - earlier - {refusal.site for refusal in record.join_refusals}:
        yield Defect("FF-RUN-SITES", f"{where}: a site is missing and no refusal names it")
    values = {EVERYBODY: (EVERYBODY,), **{one.name: one.values for one in plan.attributes}}
    if [(one.attribute, one.group) for one in line.validation] != [
        (a, g) for a, names in values.items() for g in names
    ]:
        yield Defect("FF-RUN-LAYOUT", f"{where}: validation lines are not those of the plan's groups")
    yield from _check_penalties(plan, line)


def _check_penalties(plan: Plan, line: RoundRecord) -> Iterator[Defect]:
    method = METHODS[plan.method.name](
        plan.method, {one.name: len(one.values) for one in plan.attributes}, plan.cells.sites
    )
    parts = method.parts if isinstance(method, FlexFair) else []
    wanted = [(one.attribute, one.criterion, measure.name, one.strength) for one, measure in parts]
    found = [(one.attribute, one.criterion, one.measure, one.strength) for one in line.penalties]
    if found != wanted:
        yield Defect("FF-RUN-PENALTY", f"round {line.round}: not the penalties of the plan")
        return
    for (known, _), penalty in zip(parts, line.penalties, strict=True):
        if not _agrees(
            penalty, known, 0 if known.attribute == HOSPITAL else len(plan.attribute(known.attribute).values)
        ):
            yield Defect("FF-RUN-PENALTY", f"round {line.round}: weights, coefficients, P or gap do not follow")


def _agrees(penalty: PenaltyRecord, known: Penalty, groups: int) -> bool:
    """Whether what follows from risks and counts does. Hospitals as groups: only sums are known, nothing follows."""
    given = (penalty.risk, penalty.weight, penalty.coefficient, penalty.count, penalty.value, penalty.gap)
    if groups == 0:
        return given == (None,) * len(given)
    if penalty.value is None or penalty.gap is None:
        return False
    if any(numbers is None or len(numbers) != groups for numbers in given[:4]):
        return False
    present = np.array([risk is not None for risk in penalty.risk or ()])
    risk = np.array([0.0 if risk is None else risk for risk in penalty.risk or ()])[present]
    count = np.array(penalty.count)
    weights = group_weights(known.weights, count, present)
    weight = weights[present]
    expected = np.zeros(groups)
    expected[present] = penalty_gradient(risk, weight, known.form, known.reduction)
    value = penalty_value(risk, weight, known.form, known.reduction)
    gap = float(np.abs(risk - weight @ risk).max()) if risk.size >= 2 else 0.0
    differences = [
        float(np.abs(np.array(penalty.weight) - weights).max()),
        float(np.abs(np.array(penalty.coefficient) - expected).max()),
        abs(value - penalty.value),
        abs(gap - penalty.gap),
    ]
    return bool(((count > 0) == present).all()) and all(one <= TOLERANCE * max(1.0, value) for one in differences)


def _check_final(folder: Path, record: RunRecord) -> Iterator[Defect]:
    final = record.final
    if final is None:
        return
    if not record.rounds or final.model_sha256 != record.rounds[-1].model_sha256:
        yield Defect("FF-RUN-MODEL", "the evaluated model is not the model of the last round")
    if len(final.participants) < record.plan.federation.min_sites:
        yield Defect("FF-RUN-QUORUM", f"{EVALUATE}: fewer sites than the plan's min_sites")
    if not set(final.confirmed) <= set(final.participants) <= set(record.roster):
        yield Defect("FF-RUN-SITES", "a site confirmed a model that it did not evaluate, or was not in the roster")
    if len(final.confirmed) < record.plan.federation.min_sites:
        yield Defect("FF-RUN-QUORUM", "fewer sites than the plan's min_sites confirmed the final model")
    try:
        read_model(folder, record.plan, final.model_sha256)
        for split in _SPLITS:
            for text in _wrong_sums(record.evaluation(split), len(final.participants)):
                yield Defect("FF-RUN-SUMS", f"{split}/{text}")
    except RunError as problem:
        yield Defect(problem.code, problem.got)


def _wrong_sums(sums: EvaluationSums, sites: int) -> Iterator[str]:
    everybody = sums.cells[EVERYBODY]
    for attribute, table in sums.cells.items():
        count, reporting, score = table[..., 0], table[..., 1], table[..., 3]
        low, high = _score_bounds(table[..., HEAD:])
        slack = TOLERANCE * np.maximum(count, 1.0)
        if np.abs(table[..., HEAD:].sum(axis=-1) - count).max() > TOLERANCE:
            yield f"{attribute}: a histogram does not add up to its count"
        elif (table < 0).any() or (reporting > sites).any() or ((count > 0) != (reporting > 0)).any():
            yield f"{attribute}: a sum below zero, or records of nobody"
        elif (score < low - slack).any() or (score > high + slack).any():
            yield f"{attribute}: a sum of scores that its histogram rules out"
        if (table.sum(axis=0) - everybody[0])[..., 0].max() > TOLERANCE:
            yield f"{attribute}: more records in the groups than in all"


def _score_bounds(histogram: Floats) -> tuple[Floats, Floats]:
    """Smallest and largest sum of scores that a histogram over equal bins of [0, 1] allows."""
    bins = histogram.shape[-1]
    edges = np.arange(bins + 1) / bins
    return histogram @ edges[:-1], histogram @ edges[1:]
