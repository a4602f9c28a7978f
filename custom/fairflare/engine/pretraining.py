# SPDX-License-Identifier: Apache-2.0
"""A first model from public data: trained by the plan's settings, its file says whom it has seen.

Members of all splits are listed, validation and test too. The final model is taken, so these splits chose nothing by
themselves; but whoever pretrains sees their numbers and tries again, and a patient whom a model was chosen by is no
fresh test. Refusing a site too often costs a model; refusing it too seldom flatters one.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from fairflare import schema
from fairflare.data.manifest import load
from fairflare.data.members import SALT_BYTES, Members, members_of, to_metadata
from fairflare.engine.alone import train_alone
from fairflare.engine.loading import PRETRAINED
from fairflare.engine.server import Coordinator
from fairflare.errors import CatalogError, DataError, PlanError
from fairflare.models import build, frozen_tensors, vector_sha256, whole_arrays, write_weights
from fairflare.models.header import MAX_HEADER
from fairflare.models.vector import Vector
from fairflare.plan import Plan, SeedStart
from fairflare.policy import Entry

#: Bytes of a header that are kept for the plan and the names of tensors.
_RESERVE = 256 * 1024


def verify_pretrainable(plan: Plan, entries: Mapping[str, Entry]) -> None:
    """Refuse, before any work, a plan that starts from a file, and data sets that are not declared public.

    Raises
    ------
    PlanError, CatalogError
        ``FF-PLAN-PRETRAIN-START``, ``FF-CAT-NOT-PUBLIC`` with the names of the sites.
    """
    if not isinstance(plan.start, SeedStart):
        raise PlanError(
            "FF-PLAN-PRETRAIN-START",
            got="a plan that starts from a weight file itself",
            expected='"start": {"kind": "seed"}: else the new file would have to list the old one\'s members as well',
            next_step="write a plan with a start from the seed",
        )
    private = [site for site, entry in entries.items() if not entry.public]
    if private:
        raise CatalogError(
            "FF-CAT-NOT-PUBLIC",
            got=f"the data set '{plan.task.data_set}' of {', '.join(private)}, not declared public",
            expected='"public": true in its entry: the list of members that the weight file carries can be searched '
            "for guessed names",
            next_step="choose public sites by --site; declare an entry public only if its owner has made the data so",
        )


def list_members(plan: Plan, entries: Mapping[str, Entry]) -> Members:
    """Members of all splits of all sites under one salt; raises :class:`DataError` if they are too many for a file."""
    salt = os.urandom(SALT_BYTES)
    found = [members_of(plan, entry, salt).hashes for entry in entries.values()]
    members = Members(salt, frozenset[str]().union(*found))
    if sum(map(len, to_metadata(members).values())) > MAX_HEADER - _RESERVE:
        raise DataError(
            "FF-DATA-MEMBERS-MANY",
            got=f"{len(members.hashes)} hashes of members",
            expected=f"a list that fits into a weight file's header of {MAX_HEADER} bytes",
            next_step="pretrain on fewer records",
        )
    return members


def pretrain(
    plan: Plan, entries: Mapping[str, Entry], scratch: Path, watch: Callable[[Coordinator], None]
) -> tuple[Plan, Vector]:
    """The plan that was really trained (FedAvg, no consents), and its final model."""
    loaders = {site: (lambda entry=entry: load(plan, entry)) for site, entry in entries.items()}
    trained = train_alone(plan, loaders, scratch, watch=watch)
    return trained.final.plan, trained.final.vector


def write_pretrained(folder: Path, plan: Plan, vector: Vector, members: Members) -> str:
    """Write ``<sha256>.safetensors`` into ``folder`` and return the hash."""
    metadata = {
        "format": PRETRAINED,
        "plan": schema.canonical(plan).decode("utf-8"),
        "plan_sha256": plan.sha256,
        "model_sha256": vector_sha256(vector),
        **to_metadata(members),
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{uuid.uuid4().hex}.new"  # the name follows from the bytes
    digest = write_weights(temporary, whole_arrays(build(plan), vector, frozen_tensors(plan)), metadata)
    temporary.replace(folder / f"{digest}.safetensors")
    return digest
