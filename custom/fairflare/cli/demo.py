# SPDX-License-Identifier: Apache-2.0
"""``fairflare demo``: FlexFair against FedAvg on four synthetic hospitals, through FLARE's simulator."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fairflare import presets

console = Console()

JOBS = ("heart_fedavg", "heart_flexfair")
MARK = ".fairflare-demo"


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo; an earlier demo in it is replaced.")] = Path(
        "runs/demo"
    ),
    records: Annotated[int, typer.Option(help="Records per synthetic hospital.", min=50)] = 600,
) -> None:
    """Train with FedAvg and with FlexFair on four synthetic hospitals, and compare them."""
    from fairflare.cli.report import report
    from fairflare.cli.run import SYNTHETIC_SITES, simulated
    from fairflare.data.synthetic import write_hospitals
    from fairflare.jobs import write_job

    started = time.monotonic()
    _prepare(out)
    console.print(f"[1/3] making four synthetic hospitals of {records} patients each (nobody's real data)")
    plans = [presets.shipped(name) for name in JOBS]
    catalog = write_hospitals((out / "hospitals").resolve(), plans[0], SYNTHETIC_SITES, records, seed=7)
    for plan in plans:
        console.print(f"[2/3] {plan.name}: FLARE needs about 15 s to start and 8 s to end")
        folder = out / plan.name
        simulated(plan, write_job(plan, folder / "job"), folder, catalog)
    console.print("[3/3] the comparison, on test patients that no choice was made on")
    report([out / name for name in JOBS], html=out / "report.html")
    console.print(f"{time.monotonic() - started:.0f} s in all; everything is in {out}")


def _prepare(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise typer.BadParameter(f"{out} holds something that is no demo; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()
