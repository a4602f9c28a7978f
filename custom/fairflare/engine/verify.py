# SPDX-License-Identifier: Apache-2.0
"""Whether a run is complete and consistent: what follows from other parts of its record is recomputed.

A number that was changed alone is found out where others depend on it or bound it. A record cannot tell numbers that
were all invented together, so that they agree, from true ones: what a hospital really sent, only that hospital knows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, Literal

import numpy as np

from fairflare.engine.describe import collapse, notices, record_sha256
from fairflare.engine.messages import (
    COMPARE,
    CONFIRM,
    EVALUATE,
    FINISH,
    JOIN,
    KEYS,
    MEASURE,
    SHARE,
    STEP,
    TRAIN,
    TRAIN_ALONE,
    UNMASK,
)
from fairflare.engine.rounds import is_measured
from fairflare.engine.store import read_model
from fairflare.engine.verify_feasibility import check_feasibility
from fairflare.engine.verify_numbers import Defect, check_counts, check_numbers, may_collapse, wrong_evaluation
from fairflare.errors import FairFlareError, RunError, WeightsError
from fairflare.models import initial_vector, vector_sha256
from fairflare.models.weights import FOLDER as WEIGHTS
from fairflare.plan import Plan, read_plan
from fairflare.record import (
    DEPLOY,
    FILE_NAME,
    LostRound,
    Refusal,
    RoundRecord,
    RunRecord,
    Session,
    best_model,
    find_record,
    group_lines,
    read_record,
    session_number,
)
from fairflare.record import Final as Results

_SPLITS: Final[tuple[Literal["validation", "test"], ...]] = ("validation", "test")


def verify_run(path: Path, weights: Path | None = None) -> RunRecord:
    """The record of the run at ``path``; raises :class:`RunError` ``FF-RUN-VERIFY`` with all that is wrong with it.

    ``weights`` is the folder of weight files, for a plan that starts from one; FLARE's simulator keeps one itself.
    """
    file = find_record(path)
    record = read_record(file)
    defects = list(check_run(file.parent, record, weights))
    if defects:
        raise RunError(
            "FF-RUN-VERIFY",
            got="; ".join(f"{defect.code}: {defect.text}" for defect in defects),
            expected="a complete run in which everything agrees",
            next_step="go on with 'fairflare run resume' if it stopped; do not use its results",
        )
    return record


def check_run(folder: Path, record: RunRecord, weights: Path | None = None) -> Iterator[Defect]:
    """Every defect of the run whose record and model lie in ``folder``."""
    folder, plan = folder.resolve(), record.plan
    if plan.sha256 != record.plan_sha256:
        yield Defect("FF-RUN-PLAN", "the plan in the record does not have the hash that the record names")
    for other in _job_plans(folder):
        if other is None or other.sha256 != record.plan_sha256:
            yield Defect("FF-RUN-PLAN", "the job's plan.json is not the plan of the record")
    if record.notices != notices(plan, record.sessions[-1].identities if record.sessions else None):
        yield Defect("FF-RUN-NOTICES", "not the notices that the plan calls for: changed, or another version's")
    yield from _check_start(folder, record, weights)
    yield from _check_status(record)
    yield from _check_sessions(folder, record)
    yield from _check_answers(record)
    yield from check_feasibility(record)
    yield from check_results(record)
    yield from _check_models(folder, record)


def check_results(record: RunRecord) -> Iterator[Defect]:
    """Every defect of a record's rounds and results, whoever holds its files and whether or not its run has ended."""
    rounds = [line.round for line in record.rounds]
    numbers = sorted([*rounds, *(lost.round for lost in record.lost_rounds)])
    ordered = rounds == sorted(rounds) and numbers == list(range(len(numbers)))
    if not ordered or (record.lost_rounds and not record.plan.protection.masked):
        yield Defect("FF-RUN-ROUNDS", "rounds are missing, repeated or out of order")
    for line in record.rounds:
        session = _session_of(record, line)
        if session is not None:
            yield from check_numbers(record.plan, session, line)
    if record.final is not None:
        yield from _check_final(record, record.final)


def _check_start(folder: Path, record: RunRecord, weights: Path | None) -> Iterator[Defect]:
    # In a FLARE workspace the record lies in <workspace>/<job>/fairflare and the weight files in <workspace>/local.
    place = folder.parents[1] / "local" / WEIGHTS if weights is None and len(folder.parts) > 2 else weights
    try:
        found = vector_sha256(initial_vector(record.plan, place))
    except WeightsError as problem:
        text = f"the first model cannot be checked without the plan's weight file ({problem.code}): add --weights"
        yield Defect("FF-RUN-WEIGHTS", text)
        return
    if found != record.initial_model_sha256:
        yield Defect("FF-RUN-START", "the first model is not the one that the plan's seed or weight file gives")


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
    elif record.reason is not None:
        yield Defect("FF-RUN-INCOMPLETE", "a reason why it stopped although the status is 'complete'")
    counts_only = record.plan.method.counts_only  # no rounds then: see check_feasibility
    if record.next_round != wanted and not counts_only:
        yield Defect("FF-RUN-INCOMPLETE", f"{record.next_round} complete or lost rounds, the plan has {wanted}")
    if record.begun < record.next_round or record.begun > wanted + 1:
        yield Defect("FF-RUN-ROUNDS", "a number of rounds begun that cannot be")
    if record.status == "complete" and ((record.final is None and not counts_only) or record.ended is None):
        yield Defect("FF-RUN-INCOMPLETE", "no final evaluation although the status is 'complete'")


def _check_sessions(folder: Path, record: RunRecord) -> Iterator[Defect]:
    numbers = [session.number for session in record.sessions]
    firsts = [session.first_round for session in record.sessions]
    if numbers != list(range(1, len(numbers) + 1)) or firsts != sorted(firsts) or not firsts or firsts[0] != 0:
        yield Defect("FF-RUN-SESSIONS", "the sessions do not follow one another")
    elif firsts[-1] > record.next_round:
        yield Defect("FF-RUN-SESSIONS", "a session begins after the last complete round")
    if [session.previous_record_sha256 is None for session in record.sessions] != [number == 1 for number in numbers]:
        yield Defect("FF-RUN-SESSIONS", "not every session but the first names the record that it goes on from")
    beside = {record_sha256(other): other for other in _records_beside(folder)}
    if len(record.sessions) > 1 and beside and record.sessions[-1].previous_record_sha256 not in beside:
        yield Defect("FF-RUN-SESSIONS", "the record that the last session goes on from is not in its run's folder")
    for place, session in enumerate(record.sessions):
        other = beside.get(session.previous_record_sha256 or "")
        before = tuple(line for line in record.rounds if line.round < session.first_round)
        if other and (other.sessions, other.rounds) != (record.sessions[:place], before):
            yield Defect("FF-RUN-SESSIONS", f"what is before session {session.number} is not what it went on from")
        yield from _check_without(session)
        yield from _check_joined(record, session)


def _check_without(session: Session) -> Iterator[Defect]:
    sites, where = [one.site for one in session.without], f"session {session.number}"
    if sites != sorted(set(sites)) or {one.task for one in session.without} - {DEPLOY}:
        yield Defect("FF-RUN-SITES", f"{where}: sites it ran without that are repeated, out of order or of a task")
    if set(sites) & set(session.roster):
        yield Defect("FF-RUN-SITES", f"{where}: a site was asked to join although it is one that the job ran without")


def _check_joined(record: RunRecord, session: Session) -> Iterator[Defect]:
    idle = all(_session_of(record, line) is not session for line in record.rounds)
    if idle and not session.records and not (session is record.sessions[-1] and record.status == "complete"):
        return  # it ended before anybody had joined
    where = f"session {session.number}"
    if list(session.roster) != sorted(set(session.roster)):
        yield Defect("FF-RUN-SITES", f"{where}: a site twice in the roster, or out of order")
    for text in _wrong_answers(set(session.roster), session.joined, session.join_refusals):
        yield Defect("FF-RUN-SITES", f"{where}, {JOIN}: {text}")
    masked = record.plan.protection.masked
    if (session.identities is not None) != masked or (session.transcript is not None) > masked:
        yield Defect("FF-RUN-SITES", f"{where}: identities or a transcript that do not follow from the protection")
    if masked and session.records and session.transcript is None:
        yield Defect("FF-RUN-SITES", f"{where}: masks without the transcript of the sites' agreement")
    if {refusal.task for refusal in session.join_refusals} - {JOIN}:
        yield Defect("FF-RUN-SITES", f"{where}: refusals of other tasks than {JOIN}")
    if len(set(session.joined)) < record.plan.federation.min_sites:
        yield Defect("FF-RUN-QUORUM", f"{where}: fewer sites than the plan's min_sites")
    yield from check_counts(session)


def _records_beside(folder: Path) -> Iterator[RunRecord]:
    """Readable records of the other sessions of a run made by 'fairflare run simulate'."""
    places = folder.parts[-4:]
    if len(places) == 4 and session_number(places[0]):
        for file in sorted(folder.parents[3].glob("session-*/" + "/".join(places[1:]) + f"/{FILE_NAME}")):
            if file.parent != folder:
                try:
                    yield read_record(file)
                except RunError:
                    continue


def _session_of(record: RunRecord, line: RoundRecord | LostRound) -> Session | None:
    """The newest of the sessions that could have done a round: an older one ended before its first round."""
    return next((session for session in reversed(record.sessions) if session.first_round <= line.round), None)


def _check_answers(record: RunRecord) -> Iterator[Defect]:
    """Who was asked follows from the record; each of them took part or was refused, and nobody else did."""
    session: Session | None = None
    missed: dict[str, int] = {}
    lines: list[RoundRecord | LostRound] = [*record.rounds, *record.lost_rounds]
    for line in sorted(lines, key=lambda one: one.round):
        own = _session_of(record, line)
        if own is not None and own is not session:
            session, missed = own, dict.fromkeys(own.joined, 0)
        where, active = f"round {line.round}", _active(record, missed)
        if isinstance(line, LostRound):
            for refusal in line.refusals:
                missed[refusal.site] = missed.get(refusal.site, 0) + 1
            continue
        tasks = _tasks(record.plan, own, line)
        if set(line.participants) != set(tasks):
            yield Defect("FF-RUN-SITES", f"{where}: sites of other tasks than {', '.join(tasks)}")
        answers = {task: line.participants.get(task, ()) for task in tasks}
        yield from _check_tasks(record.plan, where, active, answers, line.refusals)
        for refusal in line.refusals:
            missed[refusal.site] = missed.get(refusal.site, 0) + 1
        missed.update(dict.fromkeys(answers[tasks[-1]], 0))
    final, newest = record.final, record.sessions[-1] if record.sessions else None
    if final is not None and newest is not None:
        active = _active(record, missed) if newest is session else set(newest.joined)
        answers = {EVALUATE: final.participants, FINISH: final.confirmed}
        yield from _check_tasks(record.plan, "final", active, answers, final.refusals)


def _tasks(plan: Plan, session: Session | None, line: RoundRecord) -> tuple[str, ...]:
    """Tasks of a round, in order; with masks keys and shares come first where they had not come with the last round."""
    before = (KEYS, SHARE) if plan.protection.masked and KEYS in line.participants else ()
    after = (CONFIRM, UNMASK) if plan.protection.masked else ()
    rare = session is not None and not is_measured(plan, session, line.round)
    if rare and (MEASURE not in line.participants or not plan.protection.masked):
        return (*before, TRAIN_ALONE, *after)
    # With masks nothing is compared in a round in which a site was missing.
    compared = plan.method.compares_sites and (COMPARE in line.participants or not plan.protection.masked)
    between = {COMPARE: compared, STEP: plan.method.lock_step}
    return (*before, MEASURE, *(task for task, there in between.items() if there), TRAIN, *after)


def _active(record: RunRecord, missed: dict[str, int]) -> set[str]:
    return {site for site, number in missed.items() if number < record.plan.federation.max_missed}


def _check_tasks(
    plan: Plan, where: str, asked: set[str], answers: dict[str, tuple[str, ...]], refusals: tuple[Refusal, ...]
) -> Iterator[Defect]:
    """Tasks one after another: who answered one is asked the next."""
    if {refusal.task for refusal in refusals} - set(answers):
        yield Defect("FF-RUN-SITES", f"{where}: refusals of other tasks than {', '.join(answers)}")
    for task, sites in answers.items():
        refused = [refusal for refusal in refusals if refusal.task == task]
        for text in _wrong_answers(asked, sites, refused):
            yield Defect("FF-RUN-SITES", f"{where}, {task}: {text}")
        if len(set(sites)) < plan.federation.min_sites:
            yield Defect("FF-RUN-QUORUM", f"{where}, {task}: fewer sites than the plan's min_sites")
        asked = set(sites)


def _wrong_answers(asked: set[str], sites: tuple[str, ...], refusals: Collection[Refusal]) -> Iterator[str]:
    took, refused = set(sites), {refusal.site for refusal in refusals}
    if list(sites) != sorted(took) or len(refused) != len(refusals):
        yield "a site twice, or out of order"
    if took & refused:
        yield "a site took part in a task that it was refused for"
    if (took | refused) - asked:
        yield "a site that was not asked"
    if asked - took - refused:
        yield "a site is missing and no refusal names it"


def _check_best(record: RunRecord, final: Results) -> Iterator[Defect]:
    try:
        if best_model(record) != (final.best_rounds, final.best_model_sha256):
            yield Defect("FF-RUN-MODEL", "the best model is not the one with the best validation results")
        for split, found in zip(_SPLITS, (final.validation_collapse, final.test_collapse), strict=True):
            sums = record.evaluation(split)
            if record.plan.task.kind == "classification" and found != collapse(record.plan, sums, np.zeros(0)):
                yield Defect("FF-RUN-SUMS", f"{split}: whether the model says the same of everybody does not follow")
            elif not may_collapse(record.plan, found, group_lines(record.plan, sums)[0]):
                yield Defect("FF-RUN-SUMS", f"{split}: a collapse that everybody's results rule out")
    except RunError:
        return  # the cells themselves are refused below


def _check_models(folder: Path, record: RunRecord) -> Iterator[Defect]:
    final = record.final
    for sha256 in dict.fromkeys((final.model_sha256, final.best_model_sha256)) if final is not None else ():
        try:
            read_model(folder, record.plan, sha256)
        except RunError as problem:
            yield Defect(problem.code, problem.got)


def _check_final(record: RunRecord, final: Results) -> Iterator[Defect]:
    last = record.rounds[-1].model_sha256 if record.rounds else None
    if final.model_sha256 != last:
        yield Defect("FF-RUN-MODEL", "the evaluated model is not the model of the last round")
    yield from _check_best(record, final)
    if not final.validation and not final.test and record.plan.protection.masked:
        return  # a site of the session was missing, so nothing was opened
    for split in _SPLITS:
        try:
            sums = record.evaluation(split)
        except RunError as problem:
            yield Defect(problem.code, problem.got)
            continue
        for session in record.sessions[-1:]:
            for text in wrong_evaluation(record.plan, sums, session, split, final.participants):
                yield Defect("FF-RUN-SUMS", f"{split}: {text}")
