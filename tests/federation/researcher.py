# SPDX-License-Identifier: Apache-2.0
"""A researcher's own process: hands many jobs in over one session of FLARE's API, and waits until each has ended.

``python researcher.py KIT ORDERS REPORT SECONDS``: ORDERS is a JSON list of ``{"name", "job", "zip"}``. ``zip``, if it
is not null, is an archive that is sent in the place of the one that FLARE would make of the folder: whoever submits has
FLARE's client in his own hands. REPORT becomes ``{name: {"error", "job", "meta"}}``: a job that was not taken has an
error; of one that was, it has FLARE's meta data as they are at its end.

A process of its own, because FLARE keeps its connections for the life of a process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poc.federation import RESEARCHER, ROOT, Federation

#: Seconds in which FLARE tells why a job could not run.
_WHY = 3.0


@dataclass(frozen=True)
class Answer:
    """What became of a job that was handed in: refused at once (``error``), or taken, and how it ended (``meta``)."""

    error: str | None
    job: str | None
    meta: dict[str, Any]

    @property
    def status(self) -> str:
        return str(self.meta.get("status", ""))

    @property
    def deployed(self) -> dict[str, str]:
        """What server and sites said when they got the job."""
        details = self.meta.get("job_deploy_detail") or []
        return dict(detail.split(": ", 1) for detail in details if ": " in detail)

    @property
    def reason(self) -> str:
        """All that the submitter can read about it."""
        return " | ".join(
            [self.error or "", *(self.meta.get("job_deploy_detail") or ()), *(self.meta.get("schedule_history") or ())]
        )


def hand_in(
    running: Federation, jobs: dict[str, Path | tuple[Path, Path]], seconds: float = 120, person: str = RESEARCHER
) -> dict[str, Answer]:
    """Hand all ``jobs`` (a folder, or a folder and the archive to send for it) in, and return how each ended."""
    folder = running.base / "handed-in" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    orders = []
    for name, what in jobs.items():
        job, archive = what if isinstance(what, tuple) else (what, None)
        orders.append({"name": name, "job": str(job), "zip": None if archive is None else str(archive)})
    (folder / "orders.json").write_text(json.dumps(orders), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, __file__, str(running.kits[person]), str(folder / "orders.json"), str(folder / "report.json"),
         str(seconds)],
        capture_output=True, text=True, check=False, timeout=seconds + 60, cwd=running.base,
        env={**running.environment, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"the researcher's process failed: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return {name: Answer(**one) for name, one in report.items()}


# --------------------------------------------------------------------------------------------------- inside the process


def _submit(session: Any, order: dict[str, Any]) -> dict[str, Any]:
    from nvflare.fuel.hci.client import file_transfer

    own = file_transfer.zip_directory_to_file
    if order["zip"] is not None:
        file_transfer.zip_directory_to_file = lambda root, name, target: shutil.copyfile(order["zip"], target)
    try:
        return {"error": None, "job": session.submit_job(order["job"]), "meta": {}}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "job": None, "meta": {}}
    finally:
        file_transfer.zip_directory_to_file = own


def _has_ended(meta: dict[str, Any], failed: dict[str, float]) -> bool:
    """FLARE says first that a job could not run, and then why, if it does so at all."""
    status = str(meta.get("status", ""))
    if not status.startswith("FINISHED") or "FAILED" not in status or meta.get("job_deploy_detail"):
        return status.startswith("FINISHED")
    return time.monotonic() - failed.setdefault(str(meta.get("job_id")), time.monotonic()) > _WHY


def main(kit: str, orders: str, report: str, seconds: str) -> None:
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    session = new_secure_session(Path(kit).name, kit, timeout=60.0)
    asked: Sequence[dict[str, Any]] = json.loads(Path(orders).read_text(encoding="utf-8"))
    found = {order["name"]: _submit(session, order) for order in asked}
    deadline = time.monotonic() + float(seconds)
    left, failed = [one for one in found.values() if one["job"] is not None], dict[str, float]()
    while left and time.monotonic() < deadline:
        time.sleep(0.5)
        for one in left:
            one["meta"] = session.get_job_meta(one["job"])
        left = [one for one in left if not _has_ended(one["meta"], failed)]
    session.close()
    Path(report).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
