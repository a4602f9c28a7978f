# SPDX-License-Identifier: Apache-2.0
"""Two masked jobs over four synthetic hospitals as real FLARE processes, checked against the local engine.

``python -m poc.run provisioned``: kits from ``nvflare provision``, every party started from its own, mutual TLS.
``python -m poc.run distributed``: every party makes its own key, and hardens its own kit (``poc/distributed.py``); a
third job's group risks travel encrypted.
``python -m poc.run poc``: the same kits in ``nvflare poc``; and both jobs in ``nvflare simulator`` as well.

For each job: submit it as the researcher, download its record, verify it, and compare the plan's hash and the global
model's hash of every round with those of the same plan in one process. Masked sums are exact, so they must be equal.

Everything is in the folder of that name in ``runs``, which a new run replaces. However it ends, no process is left.
Exit status 0 only if every comparison held.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fairflare import presets
from fairflare.data.manifest import load
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.local import run_local
from fairflare.engine.verify import verify_run
from fairflare.errors import FairFlareError
from fairflare.flare.simulate import Simulation, end_processes, process_marks, signals_as_exceptions
from fairflare.jobs import write_job
from fairflare.plan import Plan, parse_plan
from fairflare.policy import DataCatalog, Entry
from fairflare.record import RunRecord
from poc.distributed import Distributed, verify_he_key_at_hospitals, verify_keys_at_home
from poc.federation import ROOT, SERVER, Federation, FederationError, Kits, Poc, events_in

SITES = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")
#: Job -> synthetic records of each hospital. Few: what is shown is that the parts fit, not that a model is good.
JOBS = {"heart_flexfair": 200, "skin_flexfair": 100}
#: What can be run, and in how many places each job runs then.
KINDS = {"poc": 3, "provisioned": 2, "distributed": 2}
OWN = ".fairflare-poc"
#: Seconds until a job is given up.
LONGEST = 400.0
STARTED = time.monotonic()


@dataclass
class Row:
    """One line of the summary: a job in one place, compared with the local engine."""

    job: str
    place: str
    seconds: float
    same_plan: bool
    same_models: int
    rounds: int

    @property
    def holds(self) -> bool:
        """Whether the plan and every round's model are the local engine's."""
        return self.same_plan and self.same_models == self.rounds > 0


@dataclass
class Study:
    """What is run, on which data, and what the local engine made of it."""

    folder: Path
    plans: list[Plan]
    catalog: DataCatalog
    rows: list[Row] = field(default_factory=list)
    reference: dict[str, RunRecord] = field(default_factory=dict)

    def compare(self, plan: Plan, place: str, found: RunRecord, seconds: float) -> None:
        expected = self.reference[plan.name]
        pairs = zip(expected.rounds, found.rounds, strict=False)
        same = sum(one.model_sha256 == other.model_sha256 for one, other in pairs)
        rounds = max(len(expected.rounds), len(found.rounds))
        row = Row(plan.name, place, seconds, expected.plan_sha256 == found.plan_sha256, same, rounds)
        self.rows.append(row)
        say(f"{plan.name} in {place}: {seconds:.0f} s, {same} of {rounds} models as in one process")


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def prepare(folder: Path, jobs: Sequence[str]) -> Study:
    """Replace what an earlier run left, and make the hospitals."""
    if folder.exists() and any(folder.iterdir()) and not (folder / OWN).exists():
        raise SystemExit(f"{folder} holds something that is no run of this script; choose another --out")
    for mark in {mark for mark in process_marks().values() if Path(mark).is_relative_to(folder)}:
        end_processes(mark)  # of a run whose power failed
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / OWN).touch()
    plans = [presets.shipped(name) for name in jobs]
    parts = []
    for plan in plans:
        say(f"{plan.name}: four synthetic hospitals of {JOBS[plan.name]} records each (nobody's real data)")
        home = folder / "hospitals" / plan.task.data_set
        parts.append(write_hospitals(home, plan, SITES, JOBS[plan.name], seed=7))
    sites: dict[str, dict[str, Entry]] = {site: {} for site in SITES}
    for part in parts:
        for site, entries in (part.sites or {}).items():
            sites[site].update(entries)
    return Study(folder, plans, DataCatalog(format=parts[0].format, data_sets=None, sites=sites))


def encrypted(plan: Plan) -> Plan:
    """The same plan, whose group risks travel encrypted; the hospitals made the key themselves."""
    data = plan.model_dump(mode="json")
    data["name"] = f"{plan.name}_ckks"
    data["protection"]["statistics"] = "ckks"
    return parse_plan(json.dumps(data))


def run_here(study: Study) -> None:
    """The reference: each plan in this process."""
    for plan in study.plans:
        started = time.monotonic()
        entries = {site: study.catalog.entry(site, plan.task.data_set) for site in SITES}
        loaders = {site: (lambda plan=plan, entry=entry: load(plan, entry)) for site, entry in entries.items()}
        study.reference[plan.name] = run_local(plan, loaders, study.folder / "local" / plan.name)
        study.compare(plan, "one process", study.reference[plan.name], time.monotonic() - started)


def run_simulator(study: Study) -> None:
    for plan in study.plans:
        started = time.monotonic()
        home = study.folder / "simulator" / plan.name
        simulation = Simulation(write_job(plan, home / "job"), home, study.catalog, SITES)
        simulation.run(rounds_of(plan), timeout=LONGEST)
        study.compare(plan, "simulator", verify_run(simulation.workspace), time.monotonic() - started)


def run_kits(study: Study, kits: Kits, place: str) -> None:
    """Every job over running kits: submit, follow, download, verify, compare."""
    for plan in study.plans:
        started = time.monotonic()
        job = kits.submit(write_job(plan, study.folder / "jobs"))
        say(f"{plan.name}: handed in as {job}")
        follow(plan, kits, job)
        status = kits.ended(job)
        if status != "FINISHED:COMPLETED":
            raise FederationError(f"{plan.name} ended as {status}: {'; '.join(kits.deploy_details(job))}")
        record = verify_run(kits.download(job))
        study.compare(plan, place, record, time.monotonic() - started)


def follow(plan: Plan, kits: Kits, job: str) -> None:
    """Say how it goes, until the run has ended."""
    watch, progress, started = rounds_of(plan), kits.progress(job), time.monotonic()
    asked = started
    while True:
        watch(progress)
        events = kits.events(job)
        if events and events[-1]["event"] == "end":
            return
        now = time.monotonic()
        if not events and now - asked > 15:
            asked = now  # FLARE's command takes seconds of computing time
            if str(kits.meta(job).get("status", "")).startswith("FINISHED"):
                return  # refused: there will be no event
        if now - started > LONGEST:
            raise FederationError(f"{plan.name} did not end within {LONGEST:.0f} s")
        time.sleep(0.5)


def rounds_of(plan: Plan) -> Callable[[Path], None]:
    """A watcher of a progress file that says every fifth of the rounds."""
    step, said = max(1, plan.training.rounds // 5), 0

    def watch(progress: Path) -> None:
        nonlocal said
        done = sum(event["event"] == "round" for event in events_in(progress))
        if done // step > said:
            said = done // step
            say(f"{plan.name}: round {done} of {plan.training.rounds}")

    return watch


@contextmanager
def stopped(kits: Kits) -> Iterator[None]:
    """Whatever happens, end all processes of the kits, see that none is left, and that their port is free."""
    try:
        yield
    finally:
        ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not break this off
        try:
            kits.stop()
        finally:
            signal.signal(signal.SIGINT, ignored)
    if kits.left():
        raise FederationError(f"{len(kits.left())} processes are left")
    project = yaml.safe_load((kits.base / "project.yml").read_text(encoding="utf-8"))
    (port,) = [one["fed_learn_port"] for one in project["participants"] if one["name"] == SERVER]
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
    say(f"no process is left, and port {port} is free")


def provisioned(study: Study) -> None:
    say("nvflare provision: a kit for the server, each hospital, and each person")
    kits = Federation(study.folder / "federation", study.catalog)
    with stopped(kits):
        kits.start(SERVER)
        kits.start(*SITES)
        say("the server and four hospitals run, each from its own kit, and are connected (mutual TLS)")
        run_kits(study, kits, "provisioned kits")


def distributed(study: Study) -> None:
    say("every party makes its key (nvflare cert), its kit (nvflare package), and hardens it (fairflare kit harden)")
    kits = Distributed(study.folder / "federation", study.catalog)
    with stopped(kits):
        kits.start(SERVER)
        kits.start(*SITES)
        say("the server and four hospitals run, each from the kit that it made itself (mutual TLS, pinned keys)")
        run_kits(study, kits, "own kits")
    keys, files = verify_keys_at_home(study.folder, kits.homes)
    say(f"{keys} private keys, each in its owner's folder only: {files} files were searched")
    copies = verify_he_key_at_hospitals(study.folder, kits.homes, SITES)
    say(f"{copies} copies of the key for encrypted statistics, at hospitals only")


def poc(study: Study) -> None:
    run_simulator(study)
    say("nvflare poc prepare: the same hardened kits")
    kits = Poc(study.folder / "federation", study.catalog)
    with stopped(kits):
        kits.start()
        say("nvflare poc start: the server and four hospitals run")
        run_kits(study, kits, "nvflare poc")
        kits.shut_down()
        say("nvflare poc stop: done")


def summary(rows: Sequence[Row]) -> str:
    """A table of all comparisons."""
    lines = [f"{'job':<20} {'place':<18} {'seconds':>7}  {'plan':<5} {'models':>7}  result"]
    for row in rows:
        models, plan = f"{row.same_models}/{row.rounds}", "same" if row.same_plan else "OTHER"
        result = "ok" if row.holds else "DIFFERENT"
        lines.append(f"{row.job:<20} {row.place:<18} {row.seconds:>7.0f}  {plan:<5} {models:>7}  {result}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--out", type=Path, help="folder, by default runs/<kind>; a run in it is replaced")
    parser.add_argument("--job", action="append", choices=sorted(JOBS), help="only this job (may be given twice)")
    given = parser.parse_args(arguments)
    folder = (given.out or ROOT / "runs" / given.kind).resolve()
    study = None
    try:
        with signals_as_exceptions():
            study = prepare(folder, given.job or list(JOBS))
            if given.kind == "distributed":
                study.plans.append(encrypted(study.plans[0]))
            run_here(study)
            globals()[given.kind](study)  # looked up now, so that a test can put another in its place
    except KeyboardInterrupt:
        say("interrupted; no process is left")
        return 130
    except (FairFlareError, FederationError, OSError) as problem:
        say(f"FAILED: {problem}")
        return 1
    finally:
        if study is not None and study.rows:
            print(f"\n{summary(study.rows)}\n\neverything is in {folder}", flush=True)
    return 0 if len(study.rows) == KINDS[given.kind] * len(study.plans) and all(row.holds for row in study.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
