# SPDX-License-Identifier: Apache-2.0
"""``fairflare run``: run a job in FLARE's simulator or in one process, verify a run, go on with one that stopped."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fairflare.cli.files import MADE
from fairflare.errors import RunError, WeightsError
from fairflare.plan import Plan, read_plan
from fairflare.policy import CATALOG_NAME, POLICY_NAME, DataCatalog, SitePolicy, read_catalog, read_policy
from fairflare.record import RunRecord

app = typer.Typer(help="Run a job, verify a run, go on with one that stopped.", no_args_is_help=True)
console = Console()

SYNTHETIC_SITES = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")

Job = Annotated[Path, typer.Argument(help="A job's folder, or a plan.json.")]
Catalog = Annotated[
    Path | None,
    typer.Option(help="Data catalogue with an entry per site; without it, four synthetic hospitals are made."),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/<plan's name>.")]
Records = Annotated[
    int | None,
    typer.Option(help="Records per synthetic hospital; by default 400, of images with masks 60.", min=50),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Folder of weight files, for a plan that starts from one.", show_default=False),
]


Policy = Annotated[
    Path | None,
    typer.Option(help="Policy of every site (site_policy.json); by default one for public data.", show_default=False),
]


@app.command()
def simulate(
    job: Job,
    catalog: Catalog = None,
    out: Out = None,
    records: Records = None,
    weights: Weights = None,
    policy: Policy = None,
) -> None:
    """Run a job with real FLARE processes, one per hospital; exit status 0 only if the run verifies."""
    from fairflare.jobs import write_job

    plan = read_plan(job)
    files = _weight_files(plan, weights)
    terms = None if policy is None else read_policy(policy)
    if terms is not None:
        terms.verify(plan)  # each site would refuse it, but only once FLARE has started
    folder = _new_folder(out or Path("runs") / plan.name)
    data = _catalog(catalog, plan, folder, records)
    copy = write_job(plan, folder / "job")
    simulated(plan, copy, folder, data, weights=files, policy=terms)


def simulated(
    plan: Plan,
    job: Path,
    folder: Path,
    catalog: DataCatalog,
    resume: Path | None = None,
    weights: Sequence[Path] = (),
    policy: SitePolicy | None = None,
) -> None:
    """Run one session in the simulator, show its progress, and verify it; raises :class:`RunError`."""
    from fairflare.cli.progress import Watcher
    from fairflare.engine.verify import verify_run
    from fairflare.flare.simulate import Simulation

    simulation = Simulation(job, folder, catalog, catalog.site_names, resume=resume, weights=weights, policy=policy)
    console.print(f"{plan.name}: nvflare simulator with {len(simulation.sites)} processes; log in {simulation.log}")
    with Watcher(console, plan.name) as watcher:
        simulation.run(watcher)
    record = verify_run(simulation.workspace)
    console.print(_outcome(record), markup=False)


def _outcome(record: RunRecord) -> str:
    if record.plan.method.counts_only:
        return f"{record.plan.name}: complete and consistent; read it with 'fairflare feasibility'"
    return f"{record.plan.name}: complete and consistent; final model {record.rounds[-1].model_sha256[:16]}"


@app.command()
def local(job: Job, catalog: Catalog = None, out: Out = None, records: Records = None, weights: Weights = None) -> None:
    """Run a job in this process, without FLARE: the same sites and server, the same hash."""
    from fairflare.cli.progress import Watcher
    from fairflare.engine.loading import load_apart
    from fairflare.engine.local import run_local
    from fairflare.engine.verify import verify_run
    from fairflare.record import PROGRESS_NAME

    plan = read_plan(job)
    _weight_files(plan, weights)
    folder = _new_folder(out or Path("runs") / f"{plan.name}-local")
    data = _catalog(catalog, plan, folder, records)
    entries = {site: data.entry(site, plan.task.data_set) for site in data.site_names}
    loaders = {site: (lambda entry=entry: load_apart(plan, entry, weights)) for site, entry in entries.items()}
    with Watcher(console, plan.name) as watcher:
        run_local(plan, loaders, folder, weights=weights, watch=lambda _: watcher(folder / PROGRESS_NAME))
        watcher(folder / PROGRESS_NAME)
    record = verify_run(folder, weights)
    console.print(_outcome(record), markup=False)


@app.command()
def verify(
    workspace: Annotated[Path, typer.Argument(help="A run's folder or a FLARE workspace.")],
    weights: Weights = None,
) -> None:
    """Recompute what follows from a run's record: exit status 0 only for a complete and consistent run.

    It finds numbers that were changed where others depend on them or bound them. It cannot know whether numbers that
    agree with one another were all invented together: what a hospital really sent, only that hospital knows.
    """
    from fairflare.engine.verify import verify_run
    from fairflare.evaluation.participation import without_in_words

    record = verify_run(workspace, weights)
    sessions = f" in {len(record.sessions)} sessions" if len(record.sessions) > 1 else ""
    console.print(f"{record.plan.name}: complete and consistent, {len(record.rounds)} rounds{sessions}")
    for absent in without_in_words(record):
        console.print(f"  ran without {absent}", markup=False)
    for notice in record.notices:
        console.print(f"  note: {notice}", markup=False)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder made by 'fairflare run simulate'.")],
    catalog: Annotated[
        Path | None,
        typer.Option(help="Data catalogue of the new session, whose sites may be others; by default the last one's."),
    ] = None,
) -> None:
    """Go on from the last complete round of a run that stopped, as a new session."""
    from fairflare.engine.describe import verify_resumable
    from fairflare.flare.names import WEIGHTS
    from fairflare.flare.simulate import latest_record_folder
    from fairflare.record import read_record

    source = latest_record_folder(folder)
    record = read_record(source)
    job = folder / "job" / record.plan.name
    verify_resumable(record, read_plan(job))
    own = source.parents[2] / "local"
    data = _read_catalog(catalog or own / CATALOG_NAME, record.plan)
    files = _weight_files(record.plan, own / WEIGHTS)
    terms = read_policy(own) if (own / POLICY_NAME).exists() else None
    console.print(f"{record.plan.name}: going on after {len(record.rounds)} complete rounds; optimisers start anew")
    simulated(record.plan, job, folder, data, resume=source, weights=files, policy=terms)


def _weight_files(plan: Plan, weights: Path | None) -> tuple[Path, ...]:
    """The weight file that the plan starts from, looked at before anything is started; none if it needs none."""
    if plan.start.kind == "seed":
        return ()
    from fairflare.models import find_weights, initial_vector

    if weights is None:
        raise WeightsError(
            "FF-WEIGHTS-MISSING",
            got="a plan that starts from a weight file, and no folder of weight files",
            expected=f"the file {plan.start.sha256}.safetensors in a folder",
            next_step="name that folder with --weights",
        )
    initial_vector(plan, weights)
    return (find_weights(weights, plan.start.sha256),)


def _new_folder(folder: Path) -> Path:
    if any(folder.glob("session-*")) or (folder / "record.json").exists():
        raise RunError(
            "FF-RUN-EXISTS",
            got="a folder that holds a run already",
            expected="a new folder",
            next_step="choose another --out, go on with 'fairflare run resume', or remove the folder",
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _catalog(catalog: Path | None, plan: Plan, folder: Path, records: int | None) -> DataCatalog:
    """The catalogue named, or four synthetic hospitals made for this plan; every entry is looked at before work."""
    if catalog is None:
        from fairflare.data.synthetic import write_hospitals

        _verify_enough(plan, SYNTHETIC_SITES)
        records = records or (60 if plan.task.kind == "segmentation" else 400)
        console.print(f"no --catalog: making {len(SYNTHETIC_SITES)} synthetic hospitals of {records} records")
        target = folder / MADE
        shutil.rmtree(target, ignore_errors=True)
        return write_hospitals(target, plan, SYNTHETIC_SITES, records, seed=plan.training.seed)
    return _read_catalog(catalog, plan)


def _read_catalog(file: Path, plan: Plan) -> DataCatalog:
    found = read_catalog(file)
    if not found.site_names:
        raise RunError(
            "FF-RUN-CATALOG",
            got="a catalogue of one hospital",
            expected="one with an entry per site ('sites'), since the simulator plays all of them",
            next_step="write the 'sites' form: see the README of poc/",
        )
    _verify_enough(plan, found.site_names)
    for site in found.site_names:
        found.entry(site, plan.task.data_set)
    return found


def _verify_enough(plan: Plan, sites: Sequence[str]) -> None:
    least = plan.federation.min_sites
    if len(sites) < least:
        raise RunError(
            "FF-RUN-SITES",
            got=f"{len(sites)} sites",
            expected=f"at least {least}, the plan's min_sites",
            next_step="add sites to the catalogue (--catalog), or lower federation.min_sites in the plan of a new run",
        )
