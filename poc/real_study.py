# SPDX-License-Identifier: Apache-2.0
"""FlexFair against FedAvg on real patients.

Heart disease (four hospitals), skin lesions (four sources) and retinal vessels (three data sets as hospitals).

What is compared stands in ``real_study.json`` and in the shipped plans, committed before anybody looked at test data.

1. Selection, on validation data only: every strength and every seed, through the local engine (one process per core).
   Of the strengths whose mean AUC (vessels: mean Dice) is at most ``quality_loss_allowed`` below FedAvg's, the one with
   the smallest gap.
2. The chosen strength and FedAvg, every seed, through ``nvflare simulator``: one process per hospital. Each run must
   verify, and its model must have the hash that the local engine found.
3. One table over seeds, of test data: mean, standard deviation, paired difference with its 95 % t interval.

Every run is in the table, also one that did not learn anything.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from judging import Judged, judge

from fairflare import presets, schema
from fairflare.data.manifest import load
from fairflare.data.sources import SOURCES
from fairflare.engine.local import run_local
from fairflare.engine.verify import verify_run
from fairflare.errors import FairFlareError
from fairflare.evaluation.statistics import paired_difference
from fairflare.evaluation.summary import Split
from fairflare.flare.simulate import Simulation
from fairflare.jobs import write_job
from fairflare.plan import ImageInput, Plan, parse_plan
from fairflare.policy import DataCatalog
from fairflare.record import RunRecord, read_record

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- real study: begin -->", "<!-- real study: end -->"

#: Runs that an earlier call of this script had finished, and FLARE runs of this call (a baseline serves several jobs).
KEPT: list[str] = []
MADE: set[str] = set()


@dataclass(frozen=True)
class Run:
    """One configuration: a job's plan with a strength (``None``: FedAvg) and a seed."""

    job: str
    strength: float | None
    seed: int

    @property
    def name(self) -> str:
        strength = "" if self.strength is None else f"-strength-{self.strength:g}"
        return f"{self.job}{strength}-seed-{self.seed}"

    def plan(self) -> Plan:
        data = json.loads(schema.pretty(presets.shipped(self.job)))
        data["training"]["seed"] = self.seed
        # Public data in one place: masks would protect nobody, and change a model's hash but not its results.
        data["protection"] = presets.UNPROTECTED
        for penalty in data["method"].get("penalties", ()):
            penalty["strength"] = self.strength
        return parse_plan(json.dumps(data))


def loaders(plan: Plan, catalog: DataCatalog) -> dict[str, Any]:
    entries = {site: catalog.entry(site, plan.task.data_set) for site in catalog.site_names}
    return {site: (lambda entry=entry: load(plan, entry)) for site, entry in entries.items()}


def is_done(target: Path, plan: Plan) -> bool:
    """Whether a verified run of exactly this plan is there; what is left of any other is removed."""
    try:
        if verify_run(target).plan_sha256 == plan.sha256:
            return True
    except FairFlareError:
        pass
    shutil.rmtree(target, ignore_errors=True)
    return False


def local_run(run: Run, catalog: DataCatalog, folder: Path) -> tuple[Run, float, bool]:
    """One run in this process (a worker of the pool), its seconds, and whether it was there already."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started, target, plan = time.monotonic(), folder / run.name, run.plan()
    kept = is_done(target, plan)
    if not kept:
        run_local(plan, loaders(plan, catalog), target)
    return run, time.monotonic() - started, kept


def flare_run(run: Run, catalog: DataCatalog, folder: Path, expected: str) -> RunRecord:
    """One run through FLARE; it must verify and give the local engine's model."""
    target, plan = folder / run.name, run.plan()
    if is_done(target, plan):
        KEPT.extend([run.name] if run.name not in MADE else [])
    else:
        MADE.add(run.name)
        Simulation(write_job(plan, target / "job"), target, catalog, catalog.site_names).run()
    record = verify_run(target)
    if record.rounds[-1].model_sha256 != expected:
        raise SystemExit(f"{run.name}: FLARE's model differs from the local engine's")
    return record


def choose(found: dict[float, list[Judged]], baseline: list[Judged], allowed: float) -> float:
    """The rule of the module's docstring; sees results on validation data only."""
    if any(one.split != "validation" for many in [*found.values(), baseline] for one in many):
        raise ValueError("selection must not see test data")
    quality = {strength: _mean(one.quality for one in many) for strength, many in found.items()}
    floor = _mean(one.quality for one in baseline) - allowed
    able = [strength for strength in found if quality[strength] >= floor] or [min(found)]
    gap = {strength: _mean(one.gap for one in found[strength]) for strength in able}
    return min(able, key=lambda strength: (gap[strength], strength))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def study_task(task: dict[str, Any], settings: dict[str, Any], out: Path, workers: int) -> list[str]:
    catalog = SOURCES[task["source"]](source_folder(task["source"]), _made(out / "data" / task["source"]))
    check_committed(task)
    seeds, allowed = settings["seeds"], settings["quality_loss_allowed"]
    base = [Run(task["baseline"], None, seed) for seed in seeds]
    tried = [Run(one["job"], s, seed) for one in task["candidates"] for s in one["strengths"] for seed in seeds]
    records = select(base, tried, catalog, out, workers)
    lines: list[str] = []
    for candidate in task["candidates"]:
        job = candidate["job"]

        def judged(run: Run, split: Split, place: str, job: str = job) -> Judged:
            return judge(presets.shipped(job), out / place / run.name, records[run], catalog, split)

        by = {s: [judged(Run(job, s, seed), "validation", "local") for seed in seeds] for s in candidate["strengths"]}
        chosen = choose(by, [judged(run, "validation", "local") for run in base], allowed)
        print(f"  {job}: strength {chosen:g} chosen on validation data", flush=True)
        pairs = []
        for seed in seeds:
            both = []
            for run in (Run(task["baseline"], None, seed), Run(job, chosen, seed)):
                started = time.monotonic()
                records[run] = flare_run(run, catalog, out / "flare", records[run].rounds[-1].model_sha256)
                print(f"  FLARE {run.name}: {time.monotonic() - started:.0f} s, same model as locally", flush=True)
                both.append(judged(run, "test", "flare"))
            pairs.append((both[0], both[1]))
        lines += table(task, job, chosen, pairs)
    return lines


def select(
    base: Sequence[Run], tried: Sequence[Run], catalog: DataCatalog, out: Path, workers: int
) -> dict[Run, RunRecord]:
    """Every run of the selection, through the local engine."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(local_run, run, catalog, out / "local") for run in [*base, *tried]]
        for number, future in enumerate(futures, 1):
            run, seconds, kept = future.result()
            if kept:
                KEPT.append(run.name)
            print(f"  local {number:>2}/{len(futures)} {run.name}: {seconds:.0f} s", flush=True)
    return {run: read_record(out / "local" / run.name) for run in [*base, *tried]}


def check_committed(task: dict[str, Any]) -> None:
    """The shipped plans must be what the study's file says."""
    for job in [task["baseline"], *(one["job"] for one in task["candidates"])]:
        plan = presets.shipped(job)
        given = plan.task.input
        size = [given.height, given.width] if isinstance(given, ImageInput) else None
        if plan.training.rounds != task["rounds"] or size != task["image"]:
            raise SystemExit(f"{job}: rounds or image size differ from real_study.json")


def table(task: dict[str, Any], job: str, strength: float, pairs: list[tuple[Judged, Judged]]) -> list[str]:
    """Lines of the README's table for one method against FedAvg, of test data; no seed is left out."""
    lines = []
    for words in pairs[0][0].rows:
        first, second = ([pair[side].rows[words] for pair in pairs] for side in (0, 1))
        result = paired_difference(first, second)
        spread = [0.0 if sd is None else sd for sd in (result.sd_baseline, result.sd_other)]
        interval = "" if result.low is None or result.high is None else f" [{result.low:+.3f}, {result.high:+.3f}]"
        lines.append(
            f"| {task['data_set']} | {job} ({strength:g}) | {words} | {result.mean_baseline:.3f} ± {spread[0]:.3f} "
            f"| {result.mean_other:.3f} ± {spread[1]:.3f} | {result.difference:+.3f}{interval} |"
        )
    collapsed = [sum(pair[side].collapsed for pair in pairs) for side in (0, 1)]
    if any(collapsed):
        counts = " | ".join(f"{number} of {len(pairs)}" for number in collapsed)
        lines.append(f"| {task['data_set']} | {job} ({strength:g}) | seeds whose model learnt nothing | {counts} | |")
    return lines


def source_folder(source: str) -> Path:
    """Folder of a public data set; ``fundus`` is three of them side by side."""
    return data_folder() if source == "fundus" else data_folder() / source


def data_folder() -> Path:
    folder = Path(os.environ.get("FAIRFLARE_DATA") or HERE.parents[1] / "shared" / "data")
    if not folder.is_dir():
        raise SystemExit("no folder of public data sets: set FAIRFLARE_DATA (poc/README.md says how it is laid out)")
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def put_into(readme: Path, lines: list[str]) -> None:
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "runs" / "real", help="folder; runs that are done stay"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of the selection")
    parser.add_argument("--readme", type=Path, help="put the table into this file, between its marks")
    arguments = parser.parse_args()
    settings = json.loads((HERE / "real_study.json").read_text(encoding="utf-8"))
    started = time.monotonic()
    lines = []
    for task in settings["tasks"]:
        print(f"{task['data_set']}: {task['rounds']} rounds, seeds {settings['seeds']}", flush=True)
        lines += study_task(task, settings, _made(arguments.out.resolve()), arguments.workers)
    minutes = (time.monotonic() - started) / 60
    today = datetime.now(tz=timezone.utc).date().isoformat()
    kept = f" (not counting {len(KEPT)} runs that were there already)" if KEPT else ""
    head = [
        f"`make real`, {today}, {len(settings['seeds'])} seeds, {minutes:.0f} minutes{kept}, test data, mean ± "
        "standard deviation over seeds; difference with its 95 % t interval:",
        "",
        "| data | job (strength) | metric | FedAvg | FlexFair | paired difference |",
        "|---|---|---|---|---|---|",
    ]
    text = [*head, *lines]
    (arguments.out / "table.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))
    if arguments.readme:
        put_into(arguments.readme, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
