# SPDX-License-Identifier: Apache-2.0
"""What a record's numbers must obey: ranges, whole counts, groups within the whole, sums that histograms allow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fairflare.engine.messages import COUNTS, MEASURE, TRAIN, TRAIN_ALONE
from fairflare.fairness.groups import EVERYBODY, HEAD, HOSPITAL, CellSums, EvaluationSums, Floats
from fairflare.fairness.penalty import evaluate
from fairflare.methods import FlexFair, Penalty
from fairflare.plan import Plan, method_of
from fairflare.record import Collapse, GroupLine, PenaltyRecord, RoundRecord, Session

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Defect:
    """What is wrong with a run, with a stable code."""

    code: str
    text: str


def check_counts(session: Session) -> Iterator[Defect]:
    """Records that joined a session."""
    where = f"session {session.number}"
    if set(session.records) != set(COUNTS):
        yield Defect("FF-RUN-SUMS", f"{where}: records of other splits than {', '.join(COUNTS)}")
    if not _are_counts(np.array(list(session.records.values()))):
        yield Defect("FF-RUN-SUMS", f"{where}: numbers of records that are no whole numbers from 0")


def check_numbers(plan: Plan, session: Session, line: RoundRecord) -> Iterator[Defect]:
    """The numbers of one round, given the session that it belongs to."""
    for text in _wrong_numbers(plan, session, line):
        yield Defect("FF-RUN-SUMS", f"round {line.round}: {text}")
    if plan.protection.masked and not line.validation:
        if _all_there(session, line, *_EVALUATING) or line.collapse is not None:
            yield Defect("FF-RUN-LAYOUT", f"round {line.round}: validation is missing although all sites took part")
        yield from _check_penalties(plan, session, line)
        return
    values = {EVERYBODY: (EVERYBODY,), **plan.groups}
    if [(one.attribute, one.group) for one in line.validation] != [
        (a, g) for a, names in values.items() for g in names
    ]:
        yield Defect("FF-RUN-LAYOUT", f"round {line.round}: validation lines are not those of the plan's groups")
    else:
        for text in _wrong_lines(plan, session, line):
            yield Defect("FF-RUN-SUMS", f"round {line.round}: validation: {text}")
    yield from _check_penalties(plan, session, line)


#: Tasks whose answers are trained with, and validated with.
_TRAINING, _EVALUATING = (TRAIN, TRAIN_ALONE), (MEASURE, TRAIN_ALONE)


def _all_there(session: Session, line: RoundRecord, *tasks: str) -> bool:
    """Whether every site of the session took part in the task, of ``tasks``, that the round has."""
    return any(set(line.participants.get(task, ())) == set(session.joined) for task in tasks)


def _wrong_numbers(plan: Plan, session: Session, line: RoundRecord) -> Iterator[str]:
    if min(line.seconds.measure, line.seconds.train, line.seconds.protect, line.seconds.aggregate) < 0:
        yield "a duration below zero"
    if line.totals is not None and not (plan.protection.masked and 0 <= line.totals <= line.round):
        yield "totals of a round that cannot act in it"
    given = (line.records, line.weighed, line.at_minimum, line.at_maximum, line.train_loss)
    records, weighed, low, high, loss = (0.0 if number is None else number for number in given)
    if None in given:
        if not plan.protection.masked or set(given) != {None}:
            yield "numbers of the training that are missing"
        return
    if not _are_counts(records, weighed, low, high):
        yield "numbers of records or weights that are no whole numbers from 0"
    if low + high > weighed:
        yield "more weights held at a bound than weights"
    if loss < 0:
        yield "a loss below zero"
    trained = line.participants.get(TRAIN) or line.participants.get(TRAIN_ALONE, ())
    if not _fits(records, session, "training", trained):
        yield "other training records than the sites joined with"


def _fits(records: float, session: Session, split: str, sites: tuple[str, ...], whole: bool = True) -> bool:
    """Whether ``records`` of ``sites`` can be a part of those that joined; all of them, if everybody takes part."""
    joined = session.records.get(split)
    if joined is None:  # check_counts says so
        return True
    return records == joined if whole and set(sites) >= set(session.joined) else records <= joined


def _wrong_lines(plan: Plan, session: Session, line: RoundRecord) -> Iterator[str]:
    everybody, *groups = line.validation
    for one in line.validation:
        if not _is_plausible(plan, one):
            yield f"{one.attribute}/{one.group}: impossible records, or a loss, score, area or Dice that they rule out"
    for name in plan.groups:
        whole = _amounts(everybody)
        parts = np.sum([_amounts(one) for one in groups if one.attribute == name], axis=0)
        if (parts > whole + TOLERANCE * np.maximum(whole, 1.0)).any():
            yield f"{name}: more in the groups than in all"
    whole_split = not _may_withhold(plan)
    evaluated = line.participants.get(MEASURE) or line.participants.get(TRAIN_ALONE, ())
    if not _fits(everybody.records, session, "validation", evaluated, whole_split):
        yield "other records than the sites joined with"
    if not may_collapse(plan, line.collapse, everybody):
        yield "a collapse that everybody's results rule out"


def may_collapse(plan: Plan, found: Collapse | None, everybody: GroupLine) -> bool:
    """Whether results allow a collapse: of equal scores the area is 1/2, of images without paint each Dice is 0 or 1.

    That a model did *not* collapse cannot be seen in them.
    """
    if found is None:
        return True
    if plan.task.kind == "classification":
        return found == "constant" and (everybody.auc is None or abs(everybody.auc - 0.5) <= TOLERANCE)
    if found == "all_background":
        pairs = (everybody.dice or 0.0) * everybody.records * plan.task.outputs
        return abs(pairs - round(pairs)) <= TOLERANCE * max(pairs, 1.0)
    return found == "all_foreground"


def _may_withhold(plan: Plan) -> bool:
    """Whether small cells may be missing from the sums."""
    return plan.cells.minimum > 1 or plan.cells.sites > 1


def _is_plausible(plan: Plan, one: GroupLine) -> bool:
    shares = [share or 0.0 for share in (one.auc, one.mean_score, one.dice)]
    if not _are_counts(one.records) or (one.loss or 0.0) < 0:
        return False
    if not all(-TOLERANCE <= share <= 1 + TOLERANCE for share in shares):
        return False
    if plan.task.kind == "segmentation":
        absent = (one.positives, one.mean_score, one.auc)
        return absent == (None, None, None) and (one.loss is not None) == (one.dice is not None) == (one.records > 0)
    if one.dice is not None:
        return False
    if len(plan.task.labels) > 2:
        known = one.records > 0 and (one.loss is not None or _may_withhold(plan))
        return (one.positives, one.mean_score) == (None, None) and (known or one.loss is None)
    return one.positives is not None and _is_plausible_pair(one, one.positives, _may_withhold(plan))


def _is_plausible_pair(one: GroupLine, positives: float, withheld: bool) -> bool:
    """A line of a task with two labels."""
    negatives = one.records - positives
    both = positives > 0 and negatives > 0
    known = both or (one.records > 0 and not withheld)  # half of a group's loss is not shown as its own
    return (
        _are_counts(positives)
        and negatives >= 0
        and (one.auc is not None) == both
        and (one.loss is not None) == (one.mean_score is not None) == known
    )


def _amounts(one: GroupLine) -> Floats:
    """What groups may not have more of than everybody: records by label, sums of losses, scores and Dice."""
    positives = one.positives or 0.0
    means = np.array([one.loss or 0.0, one.mean_score or 0.0, one.dice or 0.0])
    return np.array([positives, one.records - positives, *(means * one.records)])


def _check_penalties(plan: Plan, session: Session, line: RoundRecord) -> Iterator[Defect]:
    method = method_of(plan)
    measured = MEASURE in line.participants or plan.method.lagged
    if plan.protection.masked and not line.penalties and not _all_there(session, line, *_EVALUATING):
        measured = False  # a site was missing, so nothing was opened
    parts = method.compared if isinstance(method, FlexFair) and measured else []
    wanted = [(one.attribute, one.criterion, measure.name, one.strength) for one, measure in parts]
    found = [(one.attribute, one.criterion, one.measure, one.strength) for one in line.penalties]
    if found != wanted:
        yield Defect("FF-RUN-PENALTY", f"round {line.round}: not the penalties of the plan")
        return
    for (known, _), penalty in zip(parts, line.penalties, strict=True):
        where = f"round {line.round}: {penalty.measure}"
        unknown = known.attribute == HOSPITAL or plan.protection.encrypted
        groups = 0 if unknown else plan.sizes[known.attribute]
        if not _agrees(penalty, known, groups):
            yield Defect("FF-RUN-PENALTY", f"{where}: weights, coefficients, P or gap do not follow")
        count, limit = penalty.count or (), session.records.get("training", math.inf)
        if plan.differential_privacy is not None:  # noised on their own
            limit = math.inf
        if not _are_counts(np.array(count)) or sum(count) > limit:
            yield Defect("FF-RUN-PENALTY", f"{where}: counts that are no whole numbers, or more than joined")
        highest = 1.0 if known.utility in ("probability", "dice_loss") else plan.method.clip
        if any(not -TOLERANCE <= risk <= highest + TOLERANCE for risk in penalty.risk or () if risk is not None):
            yield Defect("FF-RUN-PENALTY", f"{where}: a risk that its utility rules out")


def _agrees(penalty: PenaltyRecord, known: Penalty, groups: int) -> bool:
    """Whether what follows from risks and counts does. Hospitals as groups: only sums are known, nothing follows.

    The same goes for group sums that only hospitals opened.
    """
    given = (penalty.risk, penalty.weight, penalty.coefficient, penalty.count, penalty.value, penalty.gap)
    if groups == 0:
        return given == (None,) * len(given)
    if penalty.value is None or penalty.gap is None:
        return False
    if any(numbers is None or len(numbers) != groups for numbers in given[:4]):
        return False
    present = np.array([risk is not None for risk in penalty.risk or ()])
    risk = np.array([0.0 if risk is None else risk for risk in penalty.risk or ()])
    count = np.array(penalty.count)
    if ((count > 0) != present).any():
        return False
    expected = evaluate(CellSums(risk * count, count, present * 1.0), known.weights, known.form, known.reduction, 1)
    differences = [
        float(np.abs(np.array(penalty.weight) - expected.weight).max()),
        float(np.abs(np.array(penalty.coefficient) - expected.coefficient).max()),
        abs(expected.value - penalty.value),
        abs(expected.gap - penalty.gap),
    ]
    return all(one <= TOLERANCE * max(1.0, expected.value) for one in differences)


def wrong_evaluation(
    plan: Plan, sums: EvaluationSums, session: Session, split: str, sites: tuple[str, ...]
) -> Iterator[str]:
    """What is wrong with evaluation sums over ``sites``, in words."""
    everybody = sums.cells[EVERYBODY][0]
    # Of more than two strata a group is shown whole or not at all, and so is everybody: a site may then show a group
    # without records of a label of which it has few, and withhold everybody.
    comparable = len(everybody) <= 2 or max(plan.cells.minimum, plan.cells.sites) <= 1
    for attribute, table in sums.cells.items():
        for text in _wrong_cells(plan, table, len(sites)):
            yield f"{attribute}: {text}"
        # A group that is released at a site has fewer records of each label there than everybody, who is too then.
        parts = np.maximum(table, table.sum(axis=0) * (np.arange(table.shape[-1]) != 1))
        slack = np.zeros_like(everybody)
        slack[:, 2:HEAD] = TOLERANCE * np.maximum(everybody[:, 2:HEAD], 1.0)
        if comparable and (parts > everybody + slack).any():
            yield f"{attribute}: more in a group, or in all of them, than in everybody"
        if not _same_records(plan, table):
            yield f"{attribute}: labels that are not of the same records"
    records = everybody[0, 0] if plan.task.kind == "segmentation" else everybody[:2, 0].sum()
    if not _fits(float(records), session, split, sites, not _may_withhold(plan)):
        yield "other records than the sites joined with"


def _wrong_cells(plan: Plan, table: Floats, sites: int) -> Iterator[str]:
    count, reporting, histogram = table[..., 0], table[..., 1], table[..., HEAD:]
    if not _are_counts(count, reporting, histogram):
        yield "numbers of records or sites that are no whole numbers from 0"
    if (histogram.sum(axis=-1) != count).any():
        yield "a histogram does not add up to its count"
    least = np.where(count > 0, max(plan.cells.sites, 1), 0)
    if (reporting > sites).any() or (reporting < least).any():
        yield "records of too few sites, or of more than took part"
    if (count < reporting * max(plan.cells.minimum, 1)).any():
        yield "a site with fewer records than the plan's smallest cell"
    slack = TOLERANCE * np.maximum(count, 1.0)
    for name, value, (low, high) in (
        ("losses", table[..., 2], _loss_bounds(plan, histogram)),
        ("scores", table[..., 3], _score_bounds(histogram)),
    ):
        if (value < low - slack).any() or (value > high + slack).any():
            yield f"a sum of {name} that its histogram rules out"


def _same_records(plan: Plan, table: Floats) -> bool:
    """Whether all labels of a group (K, S, 4 + bins) have the same records and losses, each its part or all of them."""
    head = table[..., [0, 2]]
    if plan.task.kind == "segmentation":
        whole = head
    elif _may_withhold(plan):
        return True
    else:
        whole = head[:, 0::2] + head[:, 1::2]
        if len(plan.task.labels) > 2:
            whole = np.concatenate([whole, head[:, 1::2].sum(axis=1, keepdims=True)], axis=1)
    return bool((np.abs(whole - whole[:, :1]) <= TOLERANCE * np.maximum(np.abs(whole[:, :1]), 1.0)).all())


def _score_bounds(histogram: Floats) -> tuple[Floats, Floats]:
    """Smallest and largest sum of scores that a histogram (..., bins) over equal bins of [0, 1] allows."""
    bins = histogram.shape[-1]
    edges = np.arange(bins + 1) / bins
    return histogram @ edges[:-1], histogram @ edges[1:]


def _loss_bounds(plan: Plan, histogram: Floats) -> tuple[Floats, Floats]:
    """Smallest and largest sum of cross-entropies -log P(true label) that a histogram (..., 2 Q, bins) allows.

    There is no largest one where a record lies in the bin farthest from its label, nor for records of other labels
    where there are several; of images, a histogram of Dice says nothing about the loss.
    """
    bins = histogram.shape[-1]
    if plan.task.kind == "segmentation":
        return np.zeros(histogram.shape[:-1]), np.full(histogram.shape[:-1], np.inf)
    # By distance from the true label: bin 0 is the nearest to it, for own labels the one with the largest scores.
    away = histogram.copy()
    away[..., 1::2, :] = histogram[..., 1::2, ::-1]
    edges = -np.log(1 - np.arange(bins) / bins)
    high = np.where(away[..., -1] > 0, np.inf, away[..., :-1] @ edges[1:])
    if len(plan.task.labels) > 2:
        high[..., 0::2] = np.inf
    return away @ edges, high


def _are_counts(*numbers: float | Floats) -> bool:
    return all(bool(((one >= 0) & (one == np.floor(one))).all()) for one in map(np.asarray, numbers))
