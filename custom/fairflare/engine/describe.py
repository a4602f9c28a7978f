# SPDX-License-Identifier: Apache-2.0
"""How the server's knowledge is written down: the first record, penalties, validation lines, progress events."""

from __future__ import annotations

import hashlib
import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

from fairflare import schema
from fairflare.errors import RunError
from fairflare.evaluation.privacy_words import COVERED_NOTICE, shared_words
from fairflare.fairness.groups import EVERYBODY, HEAD, EvaluationSums, Floats
from fairflare.methods.base import NamedState
from fairflare.plan import Plan
from fairflare.record import Collapse, LostRound, PenaltyRecord, RoundRecord, RunRecord, Session
from fairflare.secagg.identity import KIT

if TYPE_CHECKING:
    from fairflare.engine.server import Start


def now() -> str:
    """The present moment as ISO 8601 in UTC, to the second."""
    return datetime.now(tz=timezone.utc).isoformat(timespec="seconds")


def notices(plan: Plan, identities: str | None = None) -> tuple[str, ...]:
    """What a reader of the record must know about what was not protected; ``identities`` of the newest session."""
    result = []
    if identities == "development":
        result.append("unauthenticated identities: nobody vouched for the sites' keys; for simulations only")
    if plan.protection.update == "none":
        result.append("protection.update is none: the server saw every site's model update")
    if plan.protection.statistics == "none":
        result.append("protection.statistics is none: the server saw every site's group sums and counts")
    if plan.protection.encrypted:
        result.append("protection.statistics is ckks: sites share one key; server and one site could open group sums")
    if plan.differential_privacy is None:
        result.append("no differential privacy: the sums themselves can reveal facts about single patients")
    else:
        result.append(COVERED_NOTICE)
        if plan.differential_privacy.groups is not None and plan.differential_privacy.groups.shared:
            result.append(shared_words(plan))
    if plan.cells.minimum == 0:
        result.append("cells.minimum is 0: group sums of a single record could be sent; for public data only")
    return tuple(result)


def first_record(plan: Plan, start: Start, initial_sha256: str) -> RunRecord:
    """The record at the start of a session: a new one, or an earlier one that goes on."""
    transport, software = start.transport, dict(start.software)
    identities = _identities(plan, start)
    if start.earlier is None:
        session = Session(
            number=1, transport=transport, started=now(), first_round=0, previous_record_sha256=None,
            roster=(), join_refusals=(), records={}, identities=identities, transcript=None,
        )  # fmt: skip
        return RunRecord(
            format="fairflare/record/2", plan=plan, plan_sha256=plan.sha256, software=software,
            notices=notices(plan, identities), sessions=(session,), status="running", reason=None, ended=None,
            initial_model_sha256=initial_sha256, rounds=(), lost_rounds=(), begun=0, final=None,
        )  # fmt: skip
    earlier, _, sha256 = start.earlier
    verify_resumable(earlier, plan)
    lost = tuple(
        LostRound(round=number, code="FF-RUN-INTERRUPTED", participants={}, refusals=())
        for number in range(earlier.next_round, earlier.begun if plan.protection.masked else 0)
    )
    session = Session(
        number=len(earlier.sessions) + 1, transport=transport, started=now(),
        first_round=earlier.next_round + len(lost), previous_record_sha256=sha256, roster=(), join_refusals=(),
        records={}, identities=identities, transcript=None,
    )  # fmt: skip
    return earlier.model_copy(
        update={
            "sessions": (*earlier.sessions, session), "software": software,
            "notices": notices(plan, identities), "status": "running", "reason": None, "ended": None, "final": None,
            "lost_rounds": (*earlier.lost_rounds, *lost),
        }
    )  # fmt: skip


def _identities(plan: Plan, start: Start) -> Literal["kit", "development"] | None:
    """Who vouches for the sites of a plan with masks."""
    if not plan.protection.masked:
        return None
    return "kit" if start.trust.kind == KIT else "development"


def verify_resumable(earlier: RunRecord, plan: Plan) -> None:
    """Raise :class:`RunError` unless ``earlier`` is an unfinished run of ``plan``."""
    if earlier.plan_sha256 != plan.sha256 or earlier.plan.sha256 != plan.sha256:
        raise RunError(
            "FF-RUN-OTHER-PLAN",
            got="the record of another plan",
            expected="the plan that the run began with",
            next_step="start this plan as a new run",
        )
    if earlier.status == "complete":
        raise RunError(
            "FF-RUN-COMPLETE",
            got="a run that is complete",
            expected="a run that stopped early",
            next_step="read it with 'fairflare report'; start a new run for another result",
        )
    if plan.protection.masked and earlier.begun > plan.training.rounds:
        raise RunError(
            "FF-RUN-SPENT",
            got="a run that broke off in its final evaluation",
            expected="an evaluation that was not yet asked for: with masks every site answers each question once",
            next_step="take the model as it is and evaluate it at each site with 'fairflare evaluate'",
        )


def record_sha256(record: RunRecord) -> str:
    """SHA-256 (hex) of a record's canonical form."""
    return hashlib.sha256(schema.canonical(record)).hexdigest()


def penalty_record(named: NamedState) -> PenaltyRecord:
    """A penalty's state in the record's form."""
    state = named.state
    head = {
        "attribute": named.attribute, "criterion": named.criterion,
        "measure": named.measure.name, "strength": named.strength,
    }  # fmt: skip
    if state is None:
        empty = dict.fromkeys(("risk", "weight", "coefficient", "count", "value", "gap"))
        return PenaltyRecord.model_validate({**head, **empty})
    return PenaltyRecord.model_validate(
        {
            **head,
            "risk": tuple(None if math.isnan(risk) else risk for risk in state.risk.tolist()),
            "weight": _numbers(state.weight), "coefficient": _numbers(state.coefficient),
            "count": _numbers(state.count), "value": state.value, "gap": state.gap,
        }
    )  # fmt: skip


def _numbers(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def collapse(plan: Plan, sums: EvaluationSums, predictions: Floats) -> Collapse | None:
    """How a model fails that has learnt nothing, from evaluation sums over sites; ``None`` if it does not.

    ``predictions`` (3 F,): for each label but the background the images, those in which no pixel is predicted, and
    those in which all are. A model that is right about every image, since nothing is there or nothing else, has not
    failed. A classification is constant if all records (two at least) share one bin of the histogram,
    for every label in question.
    """
    if plan.task.kind == "segmentation":
        images, none, full = predictions.reshape(-1, 3).T
        count, dice = sums.cells[EVERYBODY][0, :, 0], sums.cells[EVERYBODY][0, :, 3]
        wrong = (dice < count) | (count == 0)  # withheld sums cannot speak for the model
        if images.min() == 0 or not wrong.any():
            return None
        if (none == images).all():
            return "all_background"
        return "all_foreground" if ((full == images) & wrong).any() else None
    table = sums.cells[EVERYBODY][0, :, HEAD:]
    bins = (table[0::2] + table[1::2] > 0).sum(axis=-1)
    return "constant" if table[:2].sum() >= 2 and (bins == 1).all() else None


def progress_facts(plan: Plan, line: RoundRecord) -> dict[str, object]:
    """What a person who watches wants to see of a round."""
    return {
        "round": line.round,
        "rounds": plan.training.rounds,
        "sites": {task: list(sites) for task, sites in line.participants.items()},
        "refused": [refusal.model_dump() for refusal in line.refusals],
        "loss": line.train_loss,
        "penalties": [penalty.model_dump(mode="json") for penalty in line.penalties],
        "validation": [group.model_dump(mode="json") for group in line.validation],
        "seconds": line.seconds.model_dump(),
        "at_bound": (line.at_minimum or 0.0) + (line.at_maximum or 0.0),
        "collapse": line.collapse,
    }
