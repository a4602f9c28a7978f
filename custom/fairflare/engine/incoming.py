# SPDX-License-Identifier: Apache-2.0
"""What a site looks at before it does a task: the plan, the session, the round, and the form of every input."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fairflare.engine.messages import (
    COMPARE,
    EVALUATE,
    FINISH,
    JOIN,
    KEYS,
    PREPARE,
    SESSION,
    STEP,
    TRAIN,
    TRAIN_ALONE,
    Layout,
    Message,
)
from fairflare.errors import RoundError


def verify_message(message: Message, layout: Layout, joined: tuple[str, int] | None) -> None:
    """Raise :class:`RoundError` unless this is a task of the plan and of the session that the site joined.

    ``joined``: that session's name and the site's number of training records; ``None`` before ``join``.
    """
    if message.plan_sha256 != layout.plan.sha256:
        raise refused("PLAN", "a task of another plan", "the plan that this site joined with")
    if message.task not in layout.tasks:
        raise refused("TASK", "an unknown task", f"one of {', '.join(layout.tasks)}")
    if message.task != JOIN:
        if joined is None:
            raise refused("NOT-JOINED", f"task {message.task} before join", "join first, also after a restart")
        if message.session != joined[0]:
            raise refused("SESSION", "a task of another session", "the session that this site joined")
        _verify_round(message, layout.plan.training.rounds)
    _verify_inputs(message, layout)
    if message.task in (TRAIN, STEP, TRAIN_ALONE, COMPARE) and not layout.plan.protection.masked:
        _verify_numbers(message.numbers, 1 if message.task == TRAIN_ALONE or joined is None else joined[1])


def _verify_round(message: Message, rounds: int) -> None:
    able = range(rounds, rounds + 1) if message.task in (EVALUATE, FINISH) else range(rounds)
    if message.task in (SESSION, PREPARE, KEYS):  # a session can begin with the final evaluation, and keys are for it
        able = range(rounds + 1)
    if message.round not in able:
        raise refused("ROUND", f"{message.task} in round {message.round}", f"rounds below {rounds}, then the end")


def _verify_inputs(message: Message, layout: Layout) -> None:
    expected = layout.inputs(message.task)
    if set(message.vectors) != set(expected):
        raise refused("INPUT", f"inputs {sorted(message.vectors)}", f"inputs {sorted(expected)}")
    for label, (dtype, length) in expected.items():
        values = message.vectors[label]
        right = values.dtype == np.dtype(dtype) and values.ndim == 1 and values.size == (length or values.size)
        if not right or not np.isfinite(values).all():
            what = f"{length} finite numbers" if length else "numbers"
            raise refused("INPUT", f"an unusable '{label}'", f"{what} of type {dtype}")


def _verify_numbers(numbers: Mapping[str, float], least: int) -> None:
    """A share p_s above 1, or of nobody, would multiply this site's penalty: no total is below the site's own.

    The last totals may come from rounds that this site missed; then its share is held to 1.
    """
    records, sites = numbers.get("records", 0.0), numbers.get("sites", 0.0)
    if set(numbers) != {"records", "sites"} or not (least <= records < float("inf") and 1 <= sites < float("inf")):
        raise refused("INPUT", "unusable totals of records and sites", "finite totals that include this site")


def refused(code: str, got: str, expected: str) -> RoundError:
    """The error ``FF-ROUND-<code>`` of a site that does not do a task."""
    return RoundError(
        f"FF-ROUND-{code}",
        got=got,
        expected=expected,
        next_step="check that server and sites run the same version and plan; a restarted site must join again",
    )
