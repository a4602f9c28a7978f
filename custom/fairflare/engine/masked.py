# SPDX-License-Identifier: Apache-2.0
"""What both halves of a masked job must work out alike: parameters, weights, and the digest D of a task's inputs."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from fairflare.engine.messages import COMPARE, STEP, TRAIN, TRAIN_ALONE, Layout, Message
from fairflare.errors import SecaggError
from fairflare.methods import UPDATE
from fairflare.plan import Masking, Plan
from fairflare.secagg.envelope import Item
from fairflare.secagg.fixedpoint import STATISTICS_FRACTION_BITS, UpdateCodec
from fairflare.secagg.params import Cipher, Params, VectorParams
from fairflare.secagg.parts import PartsCodec
from fairflare.secagg.protection import Floats, VectorSpec
from fairflare.secagg.schedule import task_digest, tensor_digest
from fairflare.secagg.transcript import refuse

#: Which totals act in a round, as ``Message.text["totals"]`` says it.
ACT, NONE = "act", "none"
#: Whether the optimiser's state goes on from the last round, as ``Message.text["optimizer"]`` says it: at all sites, or
#: at none. Otherwise rounds that one site alone was left out of could make the others' updates vanish beside its own.
KEEP, RESET = "keep", "reset"
#: Sums that act: of groups, and of sites' distances from them.
TOTALS, DISTANCES = "totals", "distances"
#: Closed vectors that decide about later ones: what a site was shown as their parts is an input of its work.
DECIDING = ("counts", "cells")
#: Closed vectors whose total only sites need; under protection ``ckks`` they travel encrypted.
ENCRYPTED = ("risk_sums", DISTANCES)

#: Sums that act, as D binds them; or, where the server does not know them, the digest of what sites opened them from.
Acting = Floats | bytes


def masking_of(plan: Plan) -> Masking:
    """The plan's ``protection.masking``; raises ``FF-SECAGG-PLAN`` for a plan without masks."""
    if plan.protection.masking is None:
        raise SecaggError(
            "FF-SECAGG-PLAN",
            got="a plan without masks",
            expected="protection 'masked'",
            next_step="this is a defect of FairFlare: report it",
        )
    return plan.protection.masking


def update_codec(layout: Layout) -> PartsCodec:
    """How the update and its further parts become words."""
    masking = masking_of(layout.plan)
    codecs = {UPDATE: (UpdateCodec(masking.clip, masking.norm_clip), layout.vectors[UPDATE].length)}
    for label, part in layout.parts.items():
        clip = masking.clip if part.clip is None else part.clip
        codecs[label] = (UpdateCodec(clip, None), part.length)
    return PartsCodec(codecs)


def oldest_totals(plan: Plan) -> int:
    """Rounds after which group sums are too old to act; server and sites decide alike."""
    return (1 if plan.method.lagged else plan.method.measured_every - 1) + masking_of(plan).max_stale


def is_noised(plan: Plan, label: str) -> bool:
    """Whether a closed vector holds noise, so that its sums may be below zero."""
    return plan.differential_privacy is not None and label == "risk_sums"


def params_of(layout: Layout, identities: str, cipher: Cipher | None = None) -> Params:
    """What every JOIN of the job must say; ``identities`` is ``kit`` or ``development``.

    ``cipher``: for a plan with encrypted statistics; raises ``FF-SECAGG-CIPHER`` without.
    """
    plan = layout.plan
    masking = masking_of(plan)
    if plan.protection.encrypted and cipher is None:
        refuse("CIPHER", "a plan with statistics 'ckks' and no cipher", "a context of CKKS at server and sites")

    def vector(spec: VectorSpec) -> VectorParams:
        if spec.label == UPDATE:
            return update_codec(layout).vector(UPDATE)
        plain = VectorParams(spec.label, "closed", spec.length, 64, STATISTICS_FRACTION_BITS, 0.0)
        if not plan.protection.encrypted or cipher is None or spec.label not in ENCRYPTED:
            return plain
        return replace(plain, cipher=cipher.fingerprint, sizes=cipher.sizes(spec.length))

    own = {label: spec for label, spec in layout.vectors.items() if label not in layout.parts}
    vectors = tuple(vector(spec) for _, spec in sorted(own.items()))
    return Params(
        plan.sha256, identities, plan.federation.min_sites, masking.colluders, masking.weight_unit,
        masking.norm_clip or 0.0, vectors,
    )  # fmt: skip


def coarse_records(records: int, unit: int) -> int:
    """A site's records rounded to whole units, at least one: what weighs its update."""
    return max(1, (2 * records + unit) // (2 * unit)) * unit


def inputs_digest(message: Message, acting: Mapping[str, Acting], openings: Mapping[str, bytes]) -> bytes:
    """D of a task: every tensor, number and text that the site's work depends on, and the sums that act, by label.

    ``openings``: what was opened of each vector of :data:`DECIDING` so far (:func:`opening_digest`). A colluding site
    can sign two versions of its part, so two sites could be shown two totals; then their views differ here. And where
    optimisers go on, as ``state``, V of the last update: so the whole past of their state is the same everywhere. The
    model of ``train`` came with ``measure``; here its hash stands for it.
    """
    vectors: dict[str, np.ndarray] = dict(message.vectors)
    vectors.update({name: sums for name, sums in acting.items() if not isinstance(sums, bytes)})
    tensors = [_tensor(label, values) for label, values in vectors.items()]
    numbers = [(name, struct.pack(">d", value)) for name, value in message.numbers.items()]
    texts = [(name, value.encode("utf-8")) for name, value in message.text.items()]
    opened = [(f"opened.{label}", found) for label, found in openings.items()]
    opened += [(f"acting.{name}", sums) for name, sums in acting.items() if isinstance(sums, bytes)]
    return task_digest(message.task, message.round, message.step, tensors, [*numbers, *texts, *opened])


def opening_digest(item: Item) -> bytes:
    """What an opening showed: everybody's signed upload and its words."""
    return hashlib.sha256(item.data).digest()


def _tensor(label: str, values: np.ndarray) -> bytes:
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return tensor_digest(label, little.dtype.str, values.shape, little.data.cast("B"))


def label_steps(labels: Iterable[str], params: Params, mode: str) -> list[str]:
    """Those of ``labels`` that travel in ``mode`` as vectors of their own, in a fixed order."""
    return sorted(one.label for one in params.vectors if one.label in set(labels) and one.mode == mode)


def sums_in(task: str) -> tuple[str, ...]:
    """Statistics of all sites that act in a task, under the names by which its D binds them."""
    return {STEP: (TOTALS,), COMPARE: (TOTALS,), TRAIN: (TOTALS, DISTANCES), TRAIN_ALONE: (TOTALS,)}.get(task, ())
