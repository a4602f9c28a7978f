# SPDX-License-Identifier: Apache-2.0
"""The training plan: everything a researcher chooses, in one reviewed file, ``plan.json``.

Server, sites, validator and auditor read the same plan through this schema. Every field is written out, unknown keys
are refused, and the vocabulary of each sensitive attribute is declared, so the layout of every vector that will ever
leave a site is fixed before anybody looks at data. A plan names a data set, never a path.
"""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fairflare import schema
from fairflare.errors import PlanError
from fairflare.methods import (
    METHODS,
    AnyParameters,
    FairFedParameters,
    FeasibilityParameters,
    FedNovaParameters,
    FlexFairParameters,
    Method,
    ReweightingParameters,
    ScaffoldParameters,
)
from fairflare.plan import rules
from fairflare.plan.networks import (
    AnyModel,
    CnnModel,
    FileStart,
    MlpModel,
    PartModel,
    ResNet18Model,
    ResNet50Model,
    SanetLightModel,
    SanetModel,
    SeedStart,
    UNetModel,
    WholeModel,
    model_words,
    names_of,
    network_of,
)
from fairflare.plan.privacy import DifferentialPrivacy, GroupNoise
from fairflare.plan.rules import RESERVED, Consent
from fairflare.plan.task import (
    Attribute,
    Cells,
    ClassificationTask,
    Feature,
    ImageInput,
    Intersection,
    SegmentationTask,
    TableInput,
)
from fairflare.plan.training import AdamW, Batch, Evaluation, Federation, Masking, Protection, Sgd, Training, Work
from fairflare.plan.words import Name, refuse_repeats
from fairflare.schema import StrictModel, rule

__all__ = [
    "FORMAT",
    "RESERVED",
    "AdamW",
    "AnyModel",
    "Attribute",
    "Batch",
    "Cells",
    "ClassificationTask",
    "CnnModel",
    "Consent",
    "DifferentialPrivacy",
    "Evaluation",
    "FairFedParameters",
    "FeasibilityParameters",
    "Feature",
    "FedNovaParameters",
    "Federation",
    "FileStart",
    "FlexFairParameters",
    "GroupNoise",
    "ImageInput",
    "Intersection",
    "Masking",
    "MlpModel",
    "PartModel",
    "Plan",
    "Protection",
    "ResNet18Model",
    "ResNet50Model",
    "ReweightingParameters",
    "SanetLightModel",
    "SanetModel",
    "ScaffoldParameters",
    "SeedStart",
    "SegmentationTask",
    "Sgd",
    "TableInput",
    "Training",
    "UNetModel",
    "WholeModel",
    "Work",
    "method_of",
    "model_words",
    "names_of",
    "network_of",
    "parse_plan",
    "read_plan",
]

FORMAT = "fairflare/plan/1"


class Plan(StrictModel):
    """The whole of ``plan.json``; see the module's docstring."""

    format: Literal["fairflare/plan/1"]
    name: Name
    task: Annotated[ClassificationTask | SegmentationTask, Field(discriminator="kind")]
    attributes: Annotated[tuple[Attribute, ...], Field(max_length=16)]
    intersections: Annotated[tuple[Intersection, ...], Field(max_length=16)]
    cells: Cells
    model: Annotated[AnyModel, Field(discriminator="name")]
    start: Annotated[SeedStart | FileStart, Field(discriminator="kind")]
    training: Training
    method: Annotated[AnyParameters, Field(discriminator="name")]
    protection: Protection
    differential_privacy: DifferentialPrivacy | None
    consents: tuple[Consent, ...]
    federation: Federation
    evaluation: Evaluation

    @model_validator(mode="after")
    def _check(self) -> Plan:
        refuse_repeats("attribute", [*(one.name for one in self.attributes), *(one.name for one in self.intersections)])
        for check in _RULES:
            check(self)
        for text in self.method.conflicts(rules.setting_of(self)):
            raise rule(text)
        if self.protection.encrypted and (self.method.counts_only or not method_of(self).measures()):
            raise rule(
                f"got statistics 'ckks' with method '{self.method.name}', expected 'masked': it has no group sums that "
                "only hospitals need, so there is nothing to encrypt"
            )
        return self

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the canonical form: what a site approves."""
        return hashlib.sha256(schema.canonical(self)).hexdigest()

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Names of the groups of each attribute, then of each intersection, in the order of every vector."""
        values = {attribute.name: attribute.values for attribute in self.attributes}
        crossed = {
            one.name: tuple("+".join(parts) for parts in product(*(values[name] for name in one.of)))
            for one in self.intersections
        }
        return {**values, **crossed}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of groups of each attribute and intersection."""
        return {name: len(values) for name, values in self.groups.items()}

    def attribute(self, name: str) -> Attribute:
        """The declared attribute called ``name``; ``KeyError`` if there is none."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise KeyError(name)


_RULES = (
    rules.check_intersections, rules.check_reserved, rules.check_task, rules.check_model, rules.check_steps,
    rules.check_consents, rules.check_masks, rules.check_privacy,
)  # fmt: skip


def method_of(plan: Plan) -> Method:
    """The plan's method, as the server and every site make it."""
    labels, kind = len(plan.task.labels), plan.task.kind
    return METHODS[plan.method.name](plan.method, plan.sizes, plan.cells.sites, labels, kind)


def parse_plan(text: str) -> Plan:
    """Read a plan from JSON text; raises :class:`PlanError`."""
    return schema.parse(Plan, text, error=PlanError, what="plan")


def read_plan(path: Path) -> Plan:
    """Read a plan from a file, or from a job's folder that holds one; raises :class:`PlanError`."""
    inside = path / "app" / "config" / "plan.json"
    return schema.read(Plan, inside if path.is_dir() else path, error=PlanError, what="plan")
