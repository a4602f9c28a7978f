# SPDX-License-Identifier: Apache-2.0
"""What a site keeps of a finished run: the final and the best model, the record of the run, and a model card.

The models come from the server; a site keeps them only if they are the ones that the record names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fairflare import schema
from fairflare.engine.verify import check_results
from fairflare.errors import FairFlareError, RoundError, RunError
from fairflare.evaluation.card import model_card
from fairflare.models import build, frozen_sha256, vector_sha256, whole_arrays
from fairflare.models.vector import Tensors, Vector
from fairflare.models.weights import write_weights
from fairflare.plan import Plan
from fairflare.record import FILE_NAME, RunRecord, write_atomically

FOLDER, CARD = "models", "model_card.md"
MODEL_FORMAT = "fairflare/model/1"
#: The record of many rounds and groups is a few megabytes; reading one takes ten times its size.
_LONGEST_RECORD = 32 * 1024 * 1024


def received_record(data: bytes, plan: Plan) -> RunRecord:
    """A run's record as the server sends it; raises :class:`RoundError` unless it is one of ``plan`` with results."""
    try:
        if len(data) > _LONGEST_RECORD:
            raise ValueError("too long")
        record = schema.parse(RunRecord, data.decode("utf-8"), error=RunError, what="record")
    except (FairFlareError, ValueError):
        raise _refused("a record that cannot be read", "the record of this run") from None
    if record.plan != plan or record.plan_sha256 != plan.sha256 or record.final is None:
        raise _refused("the record of another plan, or without results", "the record of this run")
    return record


def keep_models(folder: Path, record: RunRecord, final: Vector, best: Vector, frozen: Tensors) -> None:
    """Write both models, the record and the card into ``folder/models``; :class:`RoundError` for other models.

    A model's file has all of the network, also what is ``frozen`` in both of them, so that it can be used alone.
    """
    results = record.final
    if results is None or vector_sha256(final) != results.model_sha256:
        raise _refused("a record of another final model", "the model that this site evaluated")
    if vector_sha256(best) != results.best_model_sha256:
        raise _refused("another best model than the record names", "the model with the hash in the record")
    text = schema.canonical(record)
    digest = hashlib.sha256(text).hexdigest()
    try:  # before anything is written: numbers that nobody can have measured may fail anywhere on their way to a card
        defects = len(list(check_results(record)))
        card = model_card(record, digest).encode("utf-8")
    except Exception:
        raise _refused("a record with results that cannot be", "results that follow the plan's layout") from None
    if defects or not record.sessions:
        got = f"a record with {defects} defects in its rounds or results" if defects else "a record without a session"
        raise _refused(got, "rounds, results and models that follow from one another")
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / FILE_NAME, text)
    network = build(record.plan)
    for kind, vector, rounds in (("final", final, len(record.rounds)), ("best", best, results.best_rounds)):
        write_weights(
            target / f"{kind}.safetensors",
            whole_arrays(network, vector, frozen),
            model_metadata(record.plan, vector, frozen, kind=kind, rounds=rounds, record_sha256=digest),
        )
    write_atomically(target / CARD, card)


def model_metadata(
    plan: Plan, vector: Vector, frozen: Tensors, *, kind: str, rounds: int, record_sha256: str
) -> dict[str, str]:
    """What a model's file says about itself: enough to build its network and to find its record.

    ``model_sha256`` is of what was trained, as in the record; the hash of what was frozen is beside it.
    """
    about = {"frozen_sha256": frozen_sha256(frozen)} if frozen else {}
    return {
        **about,
        "format": MODEL_FORMAT,
        "kind": kind,
        "rounds": str(rounds),
        "plan": schema.canonical(plan).decode("utf-8"),
        "plan_sha256": plan.sha256,
        "model_sha256": vector_sha256(vector),
        "record_sha256": record_sha256,
    }


def _refused(got: str, expected: str) -> RoundError:
    return RoundError(
        "FF-ROUND-RECORD",
        got=got,
        expected=expected,
        next_step="do not use these models; ask the server's operator for the run's record",
    )
