# SPDX-License-Identifier: Apache-2.0
"""What is not trained of a plan's network: it never travels, so server and sites make sure that they have the same."""

from __future__ import annotations

from pathlib import Path

from fairflare.engine.incoming import refused
from fairflare.engine.messages import JOIN, Message
from fairflare.engine.training import Trainer
from fairflare.models import frozen_sha256, frozen_tensors
from fairflare.plan import PartModel, Plan

#: The hash (hex) of the server's frozen tensors, in ``Message.text`` of every task but ``join``, where a plan has any.
FROZEN = "frozen_sha256"


def frozen_text(plan: Plan, weights: Path | None) -> dict[str, str]:
    """What the server's messages say of the frozen tensors: nothing where all of the network is trained."""
    return {FROZEN: frozen_sha256(frozen_tensors(plan, weights))} if isinstance(plan.model, PartModel) else {}


def verify_frozen(message: Message, trainer: Trainer | None) -> None:
    """Raise :class:`RoundError` unless the server's frozen tensors are this site's; before ``join`` it has none.

    Another version of torch may draw other numbers from the same seed. Then the sites would train different networks,
    and nothing in what they send would show it.
    """
    if trainer is None or message.task == JOIN:
        return
    if message.text.get(FROZEN) != trainer.frozen_sha256:
        raise refused("FROZEN", "other frozen weights at the server than at this site", "the same, from the plan")
