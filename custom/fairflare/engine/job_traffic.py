# SPDX-License-Identifier: Apache-2.0
"""What one site gets and sends in a whole job while everybody is there: each task's messages, and every vector.

With masks the bytes come from the encoders (``engine.explain_traffic``); without, vectors are what there is. Heads and
transport are apart, and so is the run's record, which is sent once in the end and is not known before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fairflare.engine.explain_traffic import (
    ITEM,
    Messages,
    Trip,
    counted_bytes,
    counting,
    evaluation,
    inputs_bytes,
    labels_of,
    measured_round,
    round_alone,
    start,
)
from fairflare.engine.masked import params_of, update_codec
from fairflare.engine.messages import (
    COMPARE,
    EVALUATE,
    FINISH,
    JOIN,
    MEASURE,
    STEP,
    TRAIN,
    TRAIN_ALONE,
    Layout,
)
from fairflare.evaluation.rehearsal import Leaving, TaskBytes
from fairflare.he.parameters import nominal
from fairflare.methods import UPDATE
from fairflare.plan import Plan
from fairflare.secagg.identity import KIT
from fairflare.secagg.params import VectorParams
from fairflare.secagg.protection import VectorSpec


def job_messages(layout: Layout, sites: int) -> tuple[TaskBytes, ...]:
    """The messages of a whole job by task, in the order in which they first come."""
    names = [f"site-{number}" for number in range(1, sites + 1)]
    trips = list(_masked(layout, names) if layout.plan.protection.masked else _clear(layout))
    result = []
    for task in dict.fromkeys(one.task for _, one in trips):
        same = [(times, one) for times, one in trips if one.task == task]
        often = sum(times for times, _ in same)
        down, up = sum(times * one.down for times, one in same), sum(times * one.up for times, one in same)
        down += sum(_counted(layout, task, names))
        vectors = often * sum(vector_bytes(layout, spec) for spec in layout.tasks[task].values())
        result.append(TaskBytes(task, often, down, up, up - vectors))
    return tuple(result)


def largest_answers(layout: Layout, sites: int) -> dict[str, int]:
    """Bytes of one site's longest answer to each task, without head and transport; "" is that to any other task.

    With masks the tasks that repair a round (keys, shares) are among the others: their answers are shorter.
    """
    names = [f"site-{number}" for number in range(1, sites + 1)]
    trips = list(_masked(layout, names) if layout.plan.protection.masked else _clear(layout))
    result = {"": max((one.up for _, one in trips), default=0)}
    for _, one in trips:
        result[one.task] = max(result.get(one.task, 0), one.up)
    return result


def job_vectors(layout: Layout, messages: Sequence[TaskBytes]) -> tuple[Leaving, ...]:
    """Every vector of every task that the job has."""
    return tuple(
        _leaving(layout, one.task, spec, one.times) for one in messages for spec in layout.tasks[one.task].values()
    )


def vector_bytes(layout: Layout, spec: VectorSpec) -> int:
    """Bytes of a vector on its way up; with masks those of an update's further parts are inside it, and its weight."""
    if not layout.plan.protection.masked:
        return spec.length * ITEM[spec.dtype]
    if spec.label in layout.parts:
        return 4 * spec.length
    if spec.label == UPDATE:
        return 4 * (spec.length + 1)
    return _words(layout, spec.label).most_bytes


def _words(layout: Layout, label: str) -> VectorParams:
    return params_of(layout, KIT, nominal(layout.plan.federation.min_sites)).vector(label)


def _leaving(layout: Layout, task: str, spec: VectorSpec, times: int) -> Leaving:
    size = vector_bytes(layout, spec)
    if not layout.plan.protection.masked:
        return Leaving(task, spec.label, spec.length, spec.dtype, "clear", 0, 0.0, size, times)
    if spec.label in layout.parts:
        codec, _ = update_codec(layout).parts[spec.label]
        return Leaving(task, spec.label, spec.length, spec.dtype, "open", 32, codec.clip, size, times)
    words = _words(layout, spec.label)
    mode = "encrypted" if words.cipher else words.mode
    return Leaving(task, spec.label, spec.length, spec.dtype, mode, words.bits, words.clip, size, times)


def _counted(layout: Layout, task: str, names: Sequence[str]) -> Iterator[int]:
    """Bytes of the list of updates that were counted, for each round in which a task brings it."""
    plan = layout.plan
    if plan.method.settles and task in (TRAIN, TRAIN_ALONE):
        for number in range(plan.training.rounds):
            if is_measured(plan, number) == (task == TRAIN):
                yield counted_bytes(names, number)


def is_measured(plan: Plan, number: int) -> bool:
    """Whether a round of a job's only session begins with an exchange of statistics."""
    return not plan.method.lagged and number % plan.method.measured_every == 0


def lock_steps(plan: Plan) -> int:
    """Steps of a round in lock step, else 0."""
    training = plan.training
    if not plan.method.lock_step:
        return 0
    return training.work.amount * (training.batch.amount if training.work.unit == "epochs" else 1)


# --------------------------------------------------------------------------------------------------------- with masks


def _masked(layout: Layout, names: Sequence[str]) -> Iterator[tuple[int, Trip]]:
    """Trips, each with how often it comes."""
    messages = Messages(params_of(layout, KIT, nominal(len(names))), names)
    if layout.plan.method.counts_only:
        yield from ((1, trip) for trip in counting(layout, messages).trips)
        return
    *first, opened = start(layout, messages).trips
    yield from ((1, trip) for trip in first)
    for place, ((measured, follows), times) in enumerate(_kinds(layout.plan).items()):
        following = list(layout.tasks[EVALUATE]) if follows is None else labels_of(layout, measured=follows)
        head, *rest = (measured_round if measured else round_alone)(layout, messages, following).trips
        if place == 0:  # the sums of the start are no message of their own: they ride on the first round's first one
            yield 1, replace(head, down=head.down + opened.down)
            times -= 1
        yield times, head
        yield from ((times + (place == 0), trip) for trip in rest)
    yield from ((1, trip) for trip in evaluation(layout, messages).trips)


def _kinds(plan: Plan) -> Counter[tuple[bool, bool | None]]:
    """Rounds by what they are and what comes next: another round that is measured, or not, or (``None``) the end."""
    rounds = plan.training.rounds
    kinds = [is_measured(plan, number) for number in range(rounds)]
    return Counter(zip(kinds, [*kinds[1:], None], strict=True))


# ------------------------------------------------------------------------------------------------------ without masks


def _clear(layout: Layout) -> Iterator[tuple[int, Trip]]:
    plan, rounds = layout.plan, layout.plan.training.rounds
    if plan.method.counts_only:
        yield from ((1, _clear_trip(layout, task)) for task in (JOIN, MEASURE))
        return
    measured = sum(is_measured(plan, number) for number in range(rounds))
    times = {
        JOIN: 1, MEASURE: measured, COMPARE: measured * plan.method.compares_sites,
        STEP: measured * lock_steps(plan), TRAIN: measured,
        TRAIN_ALONE: rounds - measured, EVALUATE: 1, FINISH: 1,
    }  # fmt: skip
    yield from ((often, _clear_trip(layout, task)) for task, often in times.items() if often)


def _clear_trip(layout: Layout, task: str) -> Trip:
    down = inputs_bytes(layout, task, (), None)
    return Trip(task, down, sum(vector_bytes(layout, spec) for spec in layout.tasks[task].values()))
