# SPDX-License-Identifier: Apache-2.0
"""Plans, hospitals with recognisable patients, and what the federation tests ask of a run's files."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fairflare.data.manifest import load
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.local import Loader, answer, local_masks, run_local, software
from fairflare.engine.roles import coordinator_of
from fairflare.engine.server import Coordinator, Phase, Start
from fairflare.engine.site import Site
from fairflare.flare.simulate import MARK, end_processes
from fairflare.plan import Plan, parse_plan
from fairflare.policy import DataCatalog
from fairflare.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
SITES = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")
#: Stands at the beginning of every id and every patient of the tests' manifests.
PATIENT = "SECRETPATIENT"
#: Stands in one cell of every tabular manifest of the tests.
VALUE = 247.86420135
RELEASES = Path("simulate_job") / "fairflare" / "releases.jsonl"


def changed(plan: Plan, **sections: Any) -> Plan:
    """The plan with some fields of some sections replaced."""
    data = plan.model_dump(mode="json")
    for name, value in sections.items():
        data[name] = {**(data[name] or {}), **value} if isinstance(value, Mapping) else value
    return parse_plan(json.dumps(data))


def make_hospitals(folder: Path, plan: Plan, sites: Sequence[str], records: int) -> DataCatalog:
    """Write synthetic hospitals whose patients, and one of whose values, can be told from everything else."""
    catalog = write_hospitals(folder, plan, sites, records, seed=11)
    for site in sites:
        path = Path(catalog.entry(site, plan.task.data_set).manifest)
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            row["id"], row["patient"] = PATIENT + row["id"], PATIENT + row["patient"]
            if "file" in row:
                row["file"] = _mark_image(path.parent / row["file"])
        if "chol" in rows[0]:
            rows[0]["chol"] = str(VALUE)
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return catalog


def _mark_image(file: Path) -> str:
    """Put the patient into the image's own text and into its name; returns the new path below the root."""
    text = PngInfo()
    text.add_text("PatientName", PATIENT)
    named = file.with_name(f"{PATIENT}_{file.name}")
    with Image.open(file) as image:
        image.save(named, pnginfo=text)
    file.unlink()
    return f"{named.parent.name}/{named.name}"


def loaders(plan: Plan, catalog: DataCatalog) -> dict[str, Loader]:
    """What loads each site's records."""
    entries = {site: catalog.entry(site, plan.task.data_set) for site in catalog.site_names}
    return {site: (lambda entry=entry: load(plan, entry)) for site, entry in entries.items()}


def local_run(plan: Plan, catalog: DataCatalog, folder: Path) -> RunRecord:
    """The same plan on the same data in this process."""
    return run_local(plan, loaders(plan, catalog), folder)


def replay(
    plan: Plan,
    catalog: DataCatalog,
    folder: Path,
    answering: Callable[[Site, Phase], None] = answer,
    after: Callable[[Coordinator], None] = lambda _: None,
) -> RunRecord:
    """The plan in this process: ``answering`` says what becomes of each task, ``after`` sees every phase's end."""
    sites = {
        name: Site(name, plan, load, folder / name, None, local_masks(plan, name))
        for name, load in loaders(plan, catalog).items()
    }
    coordinator = coordinator_of(plan, folder / "server", Start("session", "local", software()))
    for phase in coordinator.phases(sorted(sites)):
        after(coordinator)
        for name in phase.targets:
            answering(sites[name], phase)
    after(coordinator)
    return coordinator.record


def hooked(job: Path, *, executor: str | None = None, aggregator: str | None = None, **arguments: Any) -> Path:
    """Put a test's own executor (with ``arguments``) or aggregator in the place of a job's."""
    config = job / "app" / "config"
    ends = {end: config / f"config_fed_{end}.json" for end in ("client", "server")}
    data = {end: json.loads(file.read_text(encoding="utf-8")) for end, file in ends.items()}
    if executor is not None:
        data["client"]["executors"][0]["executor"] = {"path": executor, "args": arguments}
    if aggregator is not None:
        data["server"]["components"][0]["path"] = aggregator
    for end, file in ends.items():
        file.write_text(json.dumps(data[end]), encoding="utf-8")
    return job


def remembered(store: Path, site: str, plan: Plan, kind: str = "REVEALED") -> set[tuple[int, str]]:
    """Rounds and vectors of a plan that a site's own memory has events of this kind for."""
    file = store / site / plan.task.data_set / "reveals.sqlite"
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        events = [json.loads(text) for (text,) in connection.execute("SELECT event FROM events ORDER BY seq")]
    own = [event for event in events if event["kind"] == kind and event["plan"] == plan.sha256]
    return {(event["round"], event["label"]) for event in own}


def models(record: RunRecord) -> list[str]:
    """Hash of the global model after every round."""
    return [line.model_sha256 for line in record.rounds]


def releases(workspace: Path, site: str) -> list[dict[str, Any]]:
    """What a site's own list says that it let out."""
    lines = [json.loads(line) for line in (workspace / site / RELEASES).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == "release"]


def files_with(folder: Path, *needles: str | float) -> list[str]:
    """Files below ``folder`` that hold one of the texts, or one of the numbers as text or as raw floats."""
    wanted = [form for needle in needles for form in _forms(needle)]
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            found += [str(file)] if any(form in data for form in wanted) else []
    return found


def _forms(needle: str | float) -> Iterator[bytes]:
    yield str(needle).encode()
    if isinstance(needle, float):
        yield struct.pack("<d", needle)
        yield struct.pack("<f", needle)


def fairflare(*arguments: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would."""
    return subprocess.run(
        [Path(sys.executable).with_name("fairflare"), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip


def simulator(job: str, workspace: Path, sites: Sequence[str], timeout: float = 300) -> int:
    """FLARE's own command, from the project's folder; returns its exit status."""
    command = [
        sys.executable, "-m", "nvflare.cli", "simulator", job, "-w", str(workspace),
        "-c", ",".join(sites), "-t", str(len(sites)),
    ]  # fmt: skip
    with workspace.with_suffix(".log").open("wb") as log:
        try:
            return subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
                timeout=timeout, env={**os.environ, MARK: str(workspace)},
            ).returncode  # fmt: skip
        finally:
            end_processes(str(workspace))
