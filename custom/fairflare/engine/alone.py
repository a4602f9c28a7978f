# SPDX-License-Identifier: Apache-2.0
"""Training in one process without a federation: one site alone, all sites' records in one pool, public data sets.

The plan's own settings are used (network, start, rounds, local work, batches, optimiser, seed). The method is FedAvg,
since a penalty between groups of all hospitals means nothing at one, and what a federation has to agree on (fewest
sites, consents, smallest cells, masks, noise) falls away: nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairflare.data.manifest import Records, SiteData
from fairflare.engine.at_site import ModelFile, read_model_file
from fairflare.engine.local import Loader, run_local
from fairflare.engine.results import FOLDER
from fairflare.engine.server import Coordinator
from fairflare.errors import RunError
from fairflare.methods.fedavg import FedAvgParameters
from fairflare.plan import Cells, Plan, Protection
from fairflare.record import RunRecord


@dataclass(frozen=True, eq=False)
class Trained:
    """The models after the last round and best on validation data, and the record of the training."""

    final: ModelFile
    best: ModelFile
    record: RunRecord

    def of_kind(self, kind: str) -> ModelFile:
        """``final`` or ``best``."""
        return self.best if kind == "best" else self.final


def alone_plan(plan: Plan, sites: int = 1) -> Plan:
    """The plan with FedAvg, for so many sites, none of which may fail; no consents, smallest cells, masks, noise."""
    return plan.model_copy(
        update={
            "method": FedAvgParameters(name="fedavg"),
            "consents": (),
            "cells": Cells(minimum=0, sites=1),
            "protection": Protection(update="none", statistics="none", masking=None),
            "differential_privacy": None,
            "federation": plan.federation.model_copy(update={"min_sites": sites, "max_missed": 1}),
        }
    )


def train_alone(
    plan: Plan,
    loaders: Mapping[str, Loader],
    folder: Path,
    *,
    weights: Path | None = None,
    watch: Callable[[Coordinator], None] = lambda _: None,
) -> Trained:
    """Train :func:`alone_plan` of ``plan`` on these sites.

    Parameters
    ----------
    plan
        Whose settings are used.
    loaders
        Site name -> what loads its records; names are part of the seeds.
    folder
        Gets everything that a run writes; whoever calls removes it.
    weights
        Folder of weight files, for a plan that starts from one.
    watch
        Called with the coordinator after every phase.

    Raises
    ------
    RunError
        ``FF-RUN-ALONE`` if the training stopped, or a site was refused.
    """
    record = run_local(alone_plan(plan, len(loaders)), loaders, folder, weights=weights, watch=watch)
    if record.status != "complete":
        raise RunError(
            "FF-RUN-ALONE",
            got=f"a training that stopped: {'' if record.reason is None else record.reason.text}",
            expected="a training to the last round",
            next_step="'fairflare data check' finds what is wrong with data; a training that diverges needs a lower "
            "learning rate",
        )
    kept = folder / "sites" / min(loaders) / FOLDER
    final, best = (read_model_file(kept / f"{kind}.safetensors") for kind in ("final", "best"))
    return Trained(final, best, record)


def pooled(sites: Sequence[SiteData]) -> SiteData:
    """Training and validation records of all sites as if one hospital had them; no test records."""
    nobody = sites[0].test.take(np.zeros(0, dtype=np.int64))
    return SiteData(
        _joined([one.training for one in sites]),
        _joined([one.validation for one in sites]),
        nobody,
        sum(one.opted_out for one in sites),
    )


def _joined(parts: Sequence[Records]) -> Records:
    masks = [part.masks for part in parts if part.masks is not None]
    # Nobody is a patient of two sites, as far as anybody knows.
    patients = [np.stack([np.full(len(part), place), part.units], axis=1) for place, part in enumerate(parts)]
    return Records(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.labels for part in parts]),
        {name: np.concatenate([part.groups[name] for part in parts]) for name in parts[0].groups},
        np.concatenate(masks) if masks else None,
        np.unique(np.concatenate(patients), axis=0, return_inverse=True)[1].reshape(-1),
    )
