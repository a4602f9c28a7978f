# SPDX-License-Identifier: Apache-2.0
"""The data of a study's tasks: found or made once, and the same for every run, or the study is refused."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fairflare import schema
from fairflare.data.synthetic import write_hospitals
from fairflare.errors import FairFlareError, StudyError
from fairflare.plan import Plan
from fairflare.policy import DataCatalog, read_catalog
from fairflare.record import Sha256
from fairflare.schema import StrictModel
from fairflare.study.kept import write_json
from fairflare.study.spec import Task

SITES = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")
DATA, HASHES = "data", "data.json"


@dataclass(frozen=True)
class TaskData:
    """A task's plan, where its data lie, and the hash of its manifests."""

    plan: Plan
    catalog: DataCatalog
    sha256: str
    weights: Path | None

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites in the order of every roster."""
        return tuple(sorted(self.catalog.site_names))


class Hashes(StrictModel):
    """Hash of each task's manifests when the study began."""

    format: str
    tasks: dict[str, Sha256]


def task_data(task: Task, plan: Plan, home: Path, out: Path) -> TaskData:
    """Find a task's catalogue, or make synthetic hospitals below ``out``; ``home`` is the study file's folder.

    Raises
    ------
    StudyError
        ``FF-STUDY-SITES`` for a catalogue without sites, or with fewer than the plan needs.
    CatalogError
        If the catalogue cannot be read, or does not have the plan's data set for a site.
    """
    catalog = _catalog(task, plan, home, out)
    sites, least = catalog.site_names, plan.federation.min_sites
    if len(sites) < least:
        raise StudyError(
            "FF-STUDY-SITES",
            got=f"a catalogue with {len(sites)} sites for the task '{task.name}'",
            expected=f"one by site ('sites'), with at least {least}: the plan's min_sites",
            next_step="add sites to the catalogue, or change 'federation.min_sites' in the task's changes",
        )
    weights = None if task.weights is None else (home / task.weights).resolve()
    return TaskData(plan, catalog, data_sha256(catalog, plan.task.data_set), weights)


def _catalog(task: Task, plan: Plan, home: Path, out: Path) -> DataCatalog:
    if task.catalog is not None:
        return read_catalog(home / task.catalog)
    folder = (out / DATA / task.name).resolve()
    with suppress(FairFlareError):
        found = read_catalog(folder)
        entries = [found.entry(site, plan.task.data_set) for site in found.site_names]
        if all(Path(entry.manifest).is_relative_to(folder) for entry in entries):
            return found
    # Not there, or moved: the same seed writes the same files again.
    folder.mkdir(parents=True, exist_ok=True)
    return write_hospitals(folder, plan, SITES, task.records or 0, seed=plan.training.seed)


def data_sha256(catalog: DataCatalog, data_set: str) -> str:
    """One hash of the manifests and opt-out lists of all sites; images are known by their names only."""
    digest = hashlib.sha256()
    for site in sorted(catalog.site_names):
        entry = catalog.entry(site, data_set)
        for path in (entry.manifest, entry.opt_out):
            part = b"" if path is None else Path(path).read_bytes()
            digest.update(f"{site}\0{len(part)}\0".encode() + hashlib.sha256(part).digest())
    return digest.hexdigest()


def verify_same_data(found: dict[str, TaskData], out: Path) -> None:
    """Refuse data other than those that the study began with; notes those of tasks that are new."""
    file = out / HASHES
    known: dict[str, str] = {}
    if file.exists():
        known = dict(schema.read(Hashes, file, error=StudyError, what="list of data").tasks)
    for name, task in found.items():
        verify_data(name, known.get(name, task.sha256), task.sha256)
    known |= {name: task.sha256 for name, task in found.items()}
    write_json(file, {"format": "fairflare/study-data/1", "tasks": known})


def verify_data(task: str, expected: str, found: str) -> None:
    """Refuse a manifest that was changed; raises ``FF-STUDY-DATA``."""
    if found != expected:
        raise StudyError(
            "FF-STUDY-DATA",
            got=f"data of the task '{task}' that were changed since the study began",
            expected="the same manifests and opt-out lists for every run",
            next_step="put the data back as they were, or begin a new study in another folder",
        )
