# SPDX-License-Identifier: Apache-2.0
"""One hospital's parent process as far as it handles admin requests: a real hardened kit, FLARE's code, our door."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nvflare.apis.fl_constant import SiteType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.lighter.utils import load_private_key_file, sign_folders
from nvflare.private.admin_defs import Message
from nvflare.private.defs import RequestHeader
from nvflare.private.fed.app.fl_app_validator import FLAppValidator
from nvflare.private.fed.app.fl_conf import create_privacy_manager
from nvflare.private.fed.client.client_engine_internal_spec import ClientEngineInternalSpec
from nvflare.private.fed.client.training_cmds import DeployProcessor
from nvflare.private.fed.utils.app_authz import AppAuthzService
from nvflare.private.fed.utils.app_deployer import AppDeployer
from nvflare.private.privacy_manager import PrivacyService

from fairflare.flare.door import inspect_request
from fairflare.flare.validator import PlanValidator
from fairflare.policy import DataCatalog, Entry, SitePolicy, write_catalog, write_policy
from fairflare.privacy.decisions import Decision, read_decisions
from poc.federation import write_project
from tests.hostile import archive_of

SITE, SERVER, RESEARCHER = "hospital-1", "fl-server", "researcher@example.org"
_SUBMITTERS = (RequestHeader.SUBMITTER_NAME, RequestHeader.SUBMITTER_ORG, RequestHeader.SUBMITTER_ROLE)
_USERS = (RequestHeader.USER_NAME, RequestHeader.USER_ORG, RequestHeader.USER_ROLE)
SUBMITTER = {"submitter_name": RESEARCHER, "submitter_org": "university", "submitter_role": "lead"}


def provision(base: Path) -> Path:
    """Hardened kits of the project's own file, by FLARE's own command; returns the folder that holds them."""
    project = write_project(base / "project.yml", [SITE, "hospital-2", "hospital-3"])
    nvflare = Path(sys.executable).with_name("nvflare")
    subprocess.run(
        [nvflare, "provision", "-p", project, "-w", base / "kits"], check=True, capture_output=True,
        env={**os.environ, "HOME": str(base)},
    )  # fmt: skip
    return next((base / "kits").glob("*/prod_00"))


class Engine(ClientEngineInternalSpec):
    """What FLARE's handler of deployments asks its engine for; ``deploy_app`` is as in FLARE's ``ClientEngine``."""

    def __init__(self, kit: Path, name: str) -> None:
        self.args, self.name = SimpleNamespace(workspace=str(kit)), name

    def get_client_name(self) -> str:
        return self.name

    def deploy_app(self, app_name: str, job_id: str, job_meta: Any, client_name: str, app_data: Any) -> str:
        workspace = Workspace(root_dir=self.args.workspace, site_name=client_name)
        err = AppDeployer().deploy(workspace, job_id, job_meta, app_name, app_data, FLContext())
        return f"NVFLARE_ERROR: {err}" if err else ""


Engine.__abstractmethods__ = frozenset()  # the handler of deployments asks for nothing else


class Party:
    """A kit and FLARE's services in this process; ``policy``: whether it is a hospital's."""

    def __init__(self, kit: Path, name: str, monkeypatch: Any, *, policy: bool = True) -> None:
        self.kit, self.name = kit, name
        monkeypatch.chdir(kit)  # as FLARE's parent process does
        kind = SiteType.CLIENT if policy else SiteType.SERVER
        monkeypatch.setattr(AppAuthzService, "app_validator", FLAppValidator(kind, [PlanValidator(policy=policy)]))
        manager = create_privacy_manager(Workspace(str(kit), name), names_only=True)
        monkeypatch.setattr(PrivacyService, "manager", manager)

    def folder(self, job: str) -> Path:
        return self.kit / job

    def handle(self, message: Message) -> str:
        """FLARE's own handling of a deployment, without the door; what it answers, "" if it took the job."""
        reply = DeployProcessor().process(message, Engine(self.kit, self.name))
        return "" if reply.get_header("_rtnCode") == "_ok" else str(reply.body)

    def deploy(self, message: Message) -> str:
        """The door first, as the shutters do, then FLARE."""
        return inspect_request("train.deploy", message.headers, message.body) or self.handle(message)


class Hospital(Party):
    """A hospital with a policy, a catalogue and a data set."""

    def __init__(self, kits: Path, base: Path, policy: SitePolicy, monkeypatch: Any) -> None:
        kit = base / SITE
        shutil.copytree(kits / SITE, kit)
        self.store = Path(policy.store)
        self.store.mkdir(mode=0o700)
        write_policy(kit / "local", policy)
        manifest = base / "secret place" / "manifest.csv"
        manifest.parent.mkdir()
        manifest.touch()
        self.manifest = manifest
        entry = Entry(manifest=str(manifest), root=None, opt_out=None, public=False)
        catalog = DataCatalog(format="fairflare/catalog/1", data_sets={"heart": entry}, sites=None)
        write_catalog(kit / "local", catalog)
        super().__init__(kit, SITE, monkeypatch)

    def decisions(self) -> tuple[Decision, ...]:
        return read_decisions(self.store / "decisions.jsonl")


def sign(job: Path, kits: Path, person: str = RESEARCHER) -> None:
    """Sign a job's folder as FLARE's command line does at submission."""
    startup = kits / person / "startup"
    sign_folders(str(job), load_private_key_file(str(startup / "client.key")), str(startup / "client.crt"))


def deployment(job: Path, *, body: object = None, app: str = "app", **changes: Any) -> Message:
    """The request with which FLARE's server hands a job to a site; ``changes``: of its headers."""
    number = str(uuid.uuid4())
    try:
        written = json.loads((job / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        written = {}
    meta = {
        **(written if isinstance(written, dict) else {}), **SUBMITTER, "job_id": number, "study": "default",
        "job_folder_name": job.name, "status": "SUBMITTED", "submit_time": 1.0, "data_storage_format": 2,
        "schedule_count": 1, "schedule_history": ["now: scheduled"],
    }  # fmt: skip
    message = Message("train.deploy", archive_of(job / app) if body is None else body)
    said = dict(zip(_SUBMITTERS + _USERS, 2 * tuple(SUBMITTER.values()), strict=True))
    message.headers = {
        RequestHeader.REQUIRE_AUTHZ: "true", RequestHeader.ADMIN_COMMAND: "submit_job", RequestHeader.JOB_ID: number,
        RequestHeader.APP_NAME: app, RequestHeader.JOB_META: meta, **said, **changes,
    }  # fmt: skip
    return message
