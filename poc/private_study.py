# SPDX-License-Identifier: Apache-2.0
"""What differential privacy costs each group: real patients, masked jobs through FLARE, epsilon 8, 3, 1 and none.

What is compared stands in ``private_study.json``; learning rates (with noise, and without) and bounds were chosen on
validation data. A plan's noise is the least that keeps its epsilon (``fairflare plan privacy``), by privacy loss
distributions, for one patient (skin: one lesion) of the training split more or less, at each hospital. Hospitals run
with a policy whose budget is just this epsilon, so a round that cost more would be refused; afterwards each hospital's
ledger is looked at.

Noise is never the same twice, so no run can be had again bit by bit. Every run is counted, also one that learnt
nothing. Runs that are done stay: a call that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairflare import presets, schema
from fairflare.data.sources import SOURCES
from fairflare.engine.private import privacy_of
from fairflare.engine.verify import verify_run
from fairflare.errors import FairFlareError
from fairflare.flare.simulate import STORE, Simulation
from fairflare.jobs import write_job
from fairflare.plan import Plan, parse_plan
from fairflare.policy import DataCatalog, open_policy
from fairflare.policy.site import MostPrivacyLoss
from fairflare.privacy.ledger import Ledger
from fairflare.privacy.loss import Budget
from fairflare.privacy.solver import propose

HERE = Path(__file__).resolve().parent
Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One configuration: a task, one of its methods, epsilon (``None``: no differential privacy) and a seed."""

    task: Json
    method: str
    epsilon: float | None
    seed: int

    @property
    def name(self) -> str:
        """Also of the run's folder."""
        epsilon = "none" if self.epsilon is None else f"{self.epsilon:g}"
        task = self.task["name"].replace(", ", "_").replace(" ", "_")
        return f"{task}-{self.method}-epsilon_{epsilon}-seed_{self.seed}"

    def plan(self, settings: Json, weights: Path) -> Plan:
        """The plan, its noise solved for."""
        task = self.task
        method = _method(task["methods"][self.method])
        plan = getattr(presets, task["preset"])(f"private_{task['preset']}", method, self.seed)
        data = json.loads(schema.pretty(plan))
        data["training"].update(copy.deepcopy(task["training"]))
        if task["preset"] == "skin":  # so a part of a network can be trained on features that are kept
            data["task"]["input"]["augmentation"] = "none"
        if task["model"] is not None:
            data["model"] = {**task["model"], "network": data["model"]}
        if task["start"] == "pretrained":
            (file,) = weights.glob("*.safetensors")
            data["start"] = {"kind": "file", "sha256": file.stem, "tensors": "all"}
        if self.epsilon is None:
            data["training"]["optimizer"]["lr"] = task["lr_without_noise"]
            return parse_plan(json.dumps(data))
        return _private(data, self.epsilon, settings)


def _method(words: Json) -> Json:
    if words.get("name") == "fedavg":
        return words
    penalty = presets.penalty(words["attribute"], words["criterion"], words["strength"])
    bounds = {name: words[name] for name in ("min_weight", "max_weight", "utility_clip")}
    return {**presets.flexfair(penalty), **bounds, "refresh": {"rounds": words["every"]}}


def _private(data: Json, epsilon: float, settings: Json) -> Plan:
    """With the least noise in training that keeps epsilon; what the groups cost is in it."""
    fair = data["method"]["name"] == "flexfair"
    noise = settings["group_noise"][f"{epsilon:g}"]
    data["differential_privacy"] = {
        "clip": 1.0, "noise_multiplier": 1.0, "count_noise": settings["count_noise"], "records_per_unit": 1,
        "gradients": "hooks",
        "groups": {"noise_multiplier": noise, "groups_per_unit": 1, "shared": True} if fair else None,
    }  # fmt: skip
    data["consents"] += ["shared_noise"] if fair else []
    draft = parse_plan(json.dumps(data))
    privacy = privacy_of(draft)
    # Batches are a part of the site's patients, so nothing depends on how many these are.
    made = propose(draft, 1, Budget(epsilon, settings["delta"]), privacy)
    return draft.model_copy(update={"differential_privacy": made.privacy})


def is_done(target: Path, plan: Plan) -> bool:
    """Whether a verified run of exactly this plan is there; what is left of any other is removed."""
    try:
        record = verify_run(target)
        if record.plan_sha256 == plan.sha256 and record.status == "complete":
            return True
    except FairFlareError:
        pass
    shutil.rmtree(target, ignore_errors=True)
    return False


def flare_run(run: Run, settings: Json, data: DataCatalog, out: Path) -> str:
    """One run through FLARE, verified, and its ledgers looked at; returns a line for whoever watches."""
    started = time.monotonic()
    weights = out / "weights"
    plan, target = run.plan(settings, weights), out / "runs" / run.name
    sites = [site for site in data.site_names if site != run.task["without"]]
    if not is_done(target, plan):
        policy = open_policy(target / STORE)
        if run.epsilon is not None:
            most = MostPrivacyLoss(epsilon=run.epsilon, delta=settings["delta"], relation="add_remove")
            policy = policy.model_copy(update={"differential_privacy": most})
        files = list(weights.glob("*.safetensors")) if run.task["start"] == "pretrained" else []
        Simulation(write_job(plan, target / "job"), target, data, sites, weights=files, policy=policy).run()
    record = verify_run(target)
    if record.status != "complete" or any(line.refusals for line in record.rounds):
        raise RuntimeError(f"{run.name}: {record.status}, or somebody refused: {record.reason}")
    spent = {_spent(target / STORE / site, plan, settings["delta"]) for site in sites}
    if run.epsilon is not None and not all(0.98 * run.epsilon < one <= run.epsilon for one in spent):
        raise RuntimeError(f"{run.name}: ledgers that say {spent}")
    return f"{run.name}: epsilon {max(spent):.3f}, {time.monotonic() - started:.0f} s"


def _spent(store: Path, plan: Plan, delta: float) -> float:
    ledger = Ledger(store / plan.task.data_set / "ledger.sqlite")
    return ledger.epsilon(delta).value


def pretrain(settings: Json, catalog: Path, out: Path) -> None:
    """The skin network, on the one source that is no participant afterwards; once.

    Not on either Vienna camera: nine lesions were photographed by both, and the sites would refuse such weights.
    """
    task = next((one for one in settings["tasks"] if one["start"] == "pretrained"), None)
    weights = out / "weights"
    if task is None or list(weights.glob("*.safetensors")):
        return
    plan = presets.skin("skin_pretrained", presets.FEDAVG)
    (out / "pretrain.json").write_text(schema.pretty(plan), encoding="utf-8")
    command = [
        Path(sys.executable).with_name("fairflare"), "pretrain", out / "pretrain.json", "--catalog", catalog,
        "--site", task["without"], "--out", weights,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def table(settings: Json, out: Path) -> list[str]:
    """Lines of the README's table, of test data, from 'fairflare report --privacy'; no seed is left out."""
    lines = [
        "| data, trained | method | epsilon | noise | everybody | groups by sex | groups by age | worst | gap by sex |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in settings["tasks"]:
        for method in task["methods"]:
            names = [
                Run(task, method, epsilon, seed).name for epsilon in settings["epsilons"] for seed in settings["seeds"]
            ]
            found = out / "table.json"
            command = [Path(sys.executable).with_name("fairflare"), "report", "--privacy", "--json", found]
            runs = [out / "runs" / name for name in names]
            subprocess.run([*command, *runs], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            told = json.loads(found.read_text(encoding="utf-8"))["settings"]
            ordered = sorted(told, key=lambda one: -_epsilon(one))
            lines += [f"| {task['name']} | {method} | {_row(one)} |" for one in ordered]
    return lines


def _epsilon(one: Json) -> float:
    return float("inf") if one["cost"] is None else float(one["cost"]["add_remove"])


def _row(one: Json) -> str:
    numbers = one["numbers"]
    cells = {name: [_number(n) for n in numbers if n["attribute"] == name and n["kind"] == "group"] for name in
             ("all", "sex", "age")}  # fmt: skip
    worst = [n for n in numbers if n["kind"] == "worst" and n["attribute"] in ("sex", "age")]
    gap = next((n for n in numbers if n["kind"] == "gap" and n["attribute"] == "sex"), None)
    epsilon = "none" if one["cost"] is None else f"{_epsilon(one):.2f}"
    noise = "" if one["noise"] is None else f"{one['noise']:g}"
    parts = [epsilon, noise, *("; ".join(cells[name]) for name in ("all", "sex", "age"))]
    lowest = min(worst, key=lambda n: float("inf") if n["value"] is None else n["value"], default=None)
    return " | ".join([*parts, "" if lowest is None else _number(lowest), "" if gap is None else _number(gap)])


def _number(n: Json) -> str:
    """Mean over seeds, its standard deviation over seeds, the 95 % interval over patients, n, and the change."""
    if n["value"] is None:
        return f"{n['group']} none".strip()
    least, most = min(n["records"]), max(n["records"])
    size = f", n {least}" if least == most else f", n {least} to {most}"
    spread = "" if n["sd"] is None else f" ± {n['sd']:.3f}"
    interval = "" if n["low"] is None else f" ({n['low']:.2f} to {n['high']:.2f}{size if n['kind'] == 'group' else ''})"
    change = "" if not n["change"] else f", change {n['change']['difference']:+.3f}"
    return f"{n['group']} {n['value']:.3f}{spread}{interval}{change}".strip()


def main() -> int:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "private", help="runs that are done stay")
    parser.add_argument("--workers", type=int, default=2, help="jobs at the same time")
    parser.add_argument("--only", help="tasks whose name has this in it")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    settings = json.loads((HERE / "private_study.json").read_text(encoding="utf-8"))
    data = Path(os.environ.get("FAIRFLARE_DATA") or HERE.parents[1] / "shared" / "data")
    catalogs = {}
    for source in {task["source"] for task in settings["tasks"]}:
        folder = out / "data" / source
        folder.mkdir(parents=True, exist_ok=True)
        catalogs[source] = SOURCES[source](data / source, folder)
    pretrain(settings, out / "data" / "ham10000", out)
    # By seed first: whoever stops early has all of some seeds.
    runs = [
        Run(task, method, epsilon, seed)
        for seed in settings["seeds"]
        for task in settings["tasks"]
        if arguments.only is None or arguments.only in task["name"]
        for method in task["methods"]
        for epsilon in settings["epsilons"]
    ]
    failed = 0
    with ThreadPoolExecutor(arguments.workers) as pool:
        jobs = [pool.submit(flare_run, run, settings, catalogs[run.task["source"]], out) for run in runs]
        for number, job in enumerate(as_completed(jobs), 1):
            problem = job.exception()
            failed += problem is not None
            print(f"[{number}/{len(jobs)}] {job.result() if problem is None else problem}", flush=True)
    if failed == 0 and arguments.only is None:
        text = "\n".join(table(settings, out))
        (out / "table.md").write_text(text + "\n", encoding="utf-8")
        print(text)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
