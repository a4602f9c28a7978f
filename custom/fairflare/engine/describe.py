# SPDX-License-Identifier: Apache-2.0
"""How the server's knowledge is written down: the first record, penalties, validation lines, progress events."""

from __future__ import annotations

import hashlib
import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from fairflare import schema
from fairflare.errors import RunError
from fairflare.fairness.groups import HEAD, EvaluationSums, Floats
from fairflare.fairness.metrics import roc_auc
from fairflare.methods.base import NamedState
from fairflare.plan import Plan
from fairflare.record import GroupLine, PenaltyRecord, RoundRecord, RunRecord, Session

if TYPE_CHECKING:
    from fairflare.engine.server import Start


def now() -> str:
    """The present moment as ISO 8601 in UTC, to the second."""
    return datetime.now(tz=timezone.utc).isoformat(timespec="seconds")


def notices(plan: Plan) -> tuple[str, ...]:
    """What a reader of the record must know about what was not protected."""
    result = []
    if plan.protection.update == "none":
        result.append("protection.update is none: the server saw every site's model update")
    if plan.protection.statistics == "none":
        result.append("protection.statistics is none: the server saw every site's group sums and counts")
    if plan.differential_privacy is None:
        result.append("no differential privacy: the sums themselves can reveal facts about single patients")
    if plan.cells.minimum == 0:
        result.append("cells.minimum is 0: group sums of a single record could be sent; for public data only")
    return tuple(result)


def first_record(plan: Plan, start: Start, initial_sha256: str) -> RunRecord:
    """The record at the start of a session: a new one, or an earlier one that goes on."""
    transport, software = start.transport, dict(start.software)
    if start.earlier is None:
        session = Session(
            number=1, transport=transport, started=now(), first_round=0, previous_record_sha256=None,
            roster=(), join_refusals=(), records={},
        )  # fmt: skip
        return RunRecord(
            format="fairflare/record/1", plan=plan, plan_sha256=plan.sha256, software=software, notices=notices(plan),
            sessions=(session,), status="running", reason=None, ended=None, initial_model_sha256=initial_sha256,
            rounds=(), final=None,
        )  # fmt: skip
    earlier, _, sha256 = start.earlier
    verify_resumable(earlier, plan)
    session = Session(
        number=len(earlier.sessions) + 1, transport=transport, started=now(),
        first_round=len(earlier.rounds), previous_record_sha256=sha256, roster=(), join_refusals=(), records={},
    )  # fmt: skip
    return earlier.model_copy(
        update={
            "sessions": (*earlier.sessions, session), "software": software, "notices": notices(plan),
            "status": "running", "reason": None, "ended": None, "final": None,
        }
    )  # fmt: skip


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


def group_lines(plan: Plan, sums: EvaluationSums) -> tuple[GroupLine, ...]:
    """Validation results of every group from sums over sites."""
    values = {attribute.name: attribute.values for attribute in plan.attributes}
    withheld = plan.cells.minimum > 1 or plan.cells.sites > 1
    lines = []
    for attribute, table in sums.cells.items():
        for group, name in enumerate(values.get(attribute, (attribute,))):
            cell = table[group]
            records = float(cell[:, 0].sum())
            # Where a label may have been withheld, what is left would be half of the group's loss, shown as its own.
            whole = records > 0 and (not withheld or bool((cell[:, 0] > 0).all()))
            auc = float(roc_auc(cell[:, HEAD:]))
            lines.append(
                GroupLine(
                    attribute=attribute, group=name, records=records, positives=float(cell[1, 0]),
                    loss=float(cell[:, 2].sum() / records) if whole else None,
                    mean_score=float(cell[:, 3].sum() / records) if whole else None,
                    auc=None if math.isnan(auc) else auc,
                )
            )  # fmt: skip
    return tuple(lines)


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
        "at_bound": line.at_minimum + line.at_maximum,
    }
