# SPDX-License-Identifier: Apache-2.0
"""What a hardened start-up kit holds in its ``local/`` folder; imports nothing of FLARE.

FLARE's template is written for trying things out: it lets jobs bring code, streams each site's error log to the server,
and keeps jobs in ``/tmp``. Here each of its files is written anew or changed. Files that FLARE reads with a fallback
(``resources.json`` else ``resources.json.default``) are hardened in the fallback, so that a site that removes its own
file falls back to a closed kit, not to an open one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fairflare import schema
from fairflare.flare.limits_file import LIMITS_NAME, STANDARD
from fairflare.jobs import AGGREGATOR, CONTROLLER, EXECUTOR
from fairflare.policy import CATALOG_NAME, POLICY_NAME, DataCatalog, Entry, standard_policy
from fairflare.policy.roster import ROSTER_FORMAT, ROSTER_NAME, Roster

Kind = Literal["server", "site"]
Role = Literal["server", "site", "person"]

SHUTTERS = "fairflare.flare.shutters.Shutters"
VALIDATOR = "fairflare.flare.validator.PlanValidator"
SEAL = "fairflare.flare.seal.SealFilter"
INTAKE = "fairflare.flare.intake.Intake"
VETOES = "fairflare.flare.vetoes.VetoNotes"
PRESENCE = "fairflare.flare.presence.ServerPresence"
LIMITS = "fairflare.flare.limits.ServerLimits"
QUOTA = "fairflare.flare.quota.ServerQuota"
RECOVERY = "fairflare.flare.recovery.ServerRecovery"
KIT = "fairflare.flare.kit.KitCheck"
STORAGE = "fairflare.flare.storage.KitStorage"

RESOURCES = "resources.json.default"
AUTHORIZATION = "authorization.json.default"
PRIVACY = "privacy.json"
#: Ending of a file that a person must fill in and rename: FLARE and this package read it under its own name only.
TEMPLATE = ".template"
#: Name of the only privacy scope; a job that asks for another one is refused.
SCOPE = "fairflare"
#: Folder inside the server's kit for jobs and snapshots.
STORE = "store"

#: The classes that FLARE may build for a job, one by one: no prefix, nothing of FLARE's own.
ALLOWED: Mapping[Kind, tuple[str, ...]] = {"server": (CONTROLLER, AGGREGATOR), "site": (EXECUTOR,)}

#: How FLARE starts a job's processes; ``nvflare deploy prepare`` puts another one into the same file.
_LAUNCHERS = ("process_launcher", "docker_launcher", "k8s_launcher", "slurm_launcher")
#: Parts of FLARE's template that a kit keeps, by id; whatever else stands there is taken out.
_KEPT: Mapping[Kind, tuple[str, ...]] = {
    "server": ("job_scheduler", "job_manager", "job_store", *_LAUNCHERS),
    "site": ("resource_manager", "resource_consumer", *_LAUNCHERS),
}

#: Right -> who has it, by role, at the server: its own file says what may be asked of the server.
_AT_SERVER: Mapping[str, Mapping[str, str]] = {
    "project_admin": {
        "submit_job": "none", "clone_job": "none", "manage_job": "any", "download_job": "none",
        "view": "any", "operate": "o:site",
    },
    "org_admin": {
        "submit_job": "none", "clone_job": "none", "manage_job": "o:submitter", "download_job": "none",
        "view": "any", "operate": "none",
    },
    "lead": {
        "submit_job": "any", "clone_job": "n:submitter", "manage_job": "n:submitter", "download_job": "n:submitter",
        "view": "any", "operate": "none",
    },
    "member": {
        "submit_job": "none", "clone_job": "none", "manage_job": "none", "download_job": "none",
        "view": "any", "operate": "none",
    },
}  # fmt: skip
_NOBODY = {"shell_commands": "none", "byoc": "none", "server-predeployed-flwr": "none"}


#: What the start script runs before FLARE, which looks for its configuration everywhere and takes the first it finds.
_CHECK = 'python3 -c "from fairflare.cli import main; main()" kit check "$WORKSPACE" || exit 1'
#: Lines of FLARE's start script, and what they become. FLARE puts /local/custom, and through the empty end of the list
#: also whatever folder it was started from, before the installed packages.
_START = (
    ("#!/usr/bin/env bash\n", "#!/usr/bin/env bash\numask 077\nexport PYTHONSAFEPATH=1\n"),
    ("export PYTHONPATH=/local/custom:$PYTHONPATH\n", 'export PYTHONPATH="${PYTHONPATH:-}"\n'),
    ('echo "PYTHONPATH is $PYTHONPATH"\n', f'echo "PYTHONPATH is $PYTHONPATH"\n{_CHECK}\n'),
)
#: ``nvflare package`` leaves out where a job's configuration is; FLARE would then look for ours in the wrong folder.
_NO_FOLDER = re.compile(r"\bconfig_folder=$", re.MULTILINE)
#: FLARE's start-up configuration of each kind, where it stands in ``startup/``.
_CONFIGS = ("fed_server.json", "fed_client.json")
_STEPS: Mapping[Role, tuple[str, ...]] = {
    "server": (
        "1. Copy this folder to the server, into a folder that only FLARE's user can read.",
        "2. Install fairflare there, in the version that all hospitals use.",
        "3. Let the hospitals' outgoing connections reach the one port of the project; nothing else.",
        "4. Start: startup/start.sh. Jobs and snapshots lie in store/, logs in this folder.",
        "5. The server needs no file of yours in local/; weight files go to local/weights/. Room: local/limits.json.",
        "6. See how it is, at any time: fairflare server health THIS_FOLDER",
    ),
    "site": (
        "1. Copy this folder to the machine that has the data, into a folder that only FLARE's user can read.",
        "2. Install fairflare there, in the version that all hospitals use.",
        "3. Make the folder named as 'store' in local/site_policy.json.template: backed up, never put back.",
        "4. Read local/site_policy.json.template, change it, save it as local/site_policy.json. Without it: no part.",
        "5. Fill in local/data_catalog.json.template, save it as local/data_catalog.json.",
        "6. Telephone the other hospitals, compare local/roster.json, write it into the policy as 'peers'.",
        "7. Approve plans by their hash (fairflare plan hash), or by signature (fairflare policy approve).",
        "8. Allow one outgoing connection, to the server's port. No incoming one.",
        "9. Start: startup/start.sh. Stop: startup/stop_fl.sh. Check: fairflare audit kit on this folder.",
    ),
    "person": (
        "1. Keep this folder to yourself: its key acts in your name.",
        "2. Install fairflare, in the version that all hospitals use.",
        "3. Hand a job in: nvflare job submit -j JOB --startup-kit THIS_FOLDER",
        "4. See how it goes: nvflare job meta ID --startup-kit THIS_FOLDER",
    ),
}


@dataclass(frozen=True)
class Settings:
    """What a project may choose about its kits.

    Attributes
    ----------
    heartbeat_seconds
        How long the server waits for a sign of life until it takes a site for lost; a job then goes on without it.
        FLARE's own ten minutes are longer than a job's deadlines: the job would be over and never end.
    schedule_tries
        How often the server offers a job to sites that are not there or not free, until it gives the job up.
    store
        Folder at each hospital, outside of the kit, below which its own folder for what must last stands.
    """

    heartbeat_seconds: int = 60
    schedule_tries: int = 6
    store: str = "/var/lib/fairflare"

    def __post_init__(self) -> None:
        # A site gives a sign of life every ten seconds. What comes from YAML may be of any type.
        _verify_whole("heartbeat_seconds", self.heartbeat_seconds, 12)
        _verify_whole("schedule_tries", self.schedule_tries, 1)
        _verify_absolute("store", self.store)


def harden_local(local: Path, kind: Kind, name: str, sites: Mapping[str, str], settings: Settings) -> None:
    """Close what FLARE's template leaves open in one ``local/`` folder; doing it again changes nothing.

    Parameters
    ----------
    local
        The folder, with FLARE's own ``resources.json.default`` in it.
    kind
        Whether it is the server's or a hospital's.
    name
        Name of the participant.
    sites
        Site name -> SHA-256 (hex) of its public key, of all sites of the project.
    settings
        What the project chose.
    """
    resources = json.loads((local / RESOURCES).read_text(encoding="utf-8"))
    harden = _server_resources if kind == "server" else _site_resources
    _write(local / RESOURCES, harden(resources, settings))
    _write(local / AUTHORIZATION, authorization(kind))
    _write(local / PRIVACY, privacy(kind))
    (local / f"{PRIVACY}.sample").unlink(missing_ok=True)
    if sites:  # the server of a project without a provisioner learns them later
        roster = Roster(format=ROSTER_FORMAT, sites=dict(sorted(sites.items())))
        (local / ROSTER_NAME).write_text(schema.pretty(roster), encoding="utf-8")
    if kind == "server" and not (local / LIMITS_NAME).exists():  # the operator's, once it is there
        (local / LIMITS_NAME).write_text(schema.pretty(STANDARD), encoding="utf-8")
    if kind == "site":
        policy = standard_policy(Path(settings.store) / name)
        (local / f"{POLICY_NAME}{TEMPLATE}").write_text(schema.pretty(policy), encoding="utf-8")
        (local / f"{CATALOG_NAME}{TEMPLATE}").write_text(schema.pretty(_catalog()), encoding="utf-8")


def harden_start(startup: Path) -> None:
    """Harden ``startup/``; raises :class:`ValueError` as :func:`start_texts`, and has changed nothing then.

    The start script makes files for their owner only, looks for modules in no folder that others may fill, and lets the
    kit be checked first. Jobs without a submitter's signature are refused.
    """
    for file, text in start_texts(startup).items():
        file.write_text(text, encoding="utf-8")


def start_texts(startup: Path) -> dict[Path, str]:
    """Files of ``startup/``, and what is in them when they are hardened.

    Raises
    ------
    ValueError
        For a start script that is not that of FLARE 2.9, and for connections without mutual TLS.
    """
    configs = [file for file in map(startup.joinpath, _CONFIGS) if file.exists()]
    files = {file: _signed_jobs(file.read_text(encoding="utf-8")) for file in configs}
    script = startup / "sub_start.sh"
    if not script.exists():
        return files  # FLARE has prepared the kit for a container, which starts in its own way
    text = script.read_text(encoding="utf-8")
    for found, wanted in _START:
        if wanted not in text:
            if text.count(found) != 1:
                raise ValueError(f"sub_start.sh is not that of NVIDIA FLARE 2.9: no line {found.strip()!r}")
            text = text.replace(found, wanted)
    return {**files, script: _NO_FOLDER.sub("config_folder=config", text)}


def close_to_others(kit: Path) -> None:
    """Take every right on a kit's files and folders from everybody but their owner."""
    for path in (kit, *kit.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)


def next_steps(role: Role, name: str) -> str:
    """What whoever gets the kit does with it, in a few lines."""
    lines = [f"{name}: what to do with this kit", "", *_STEPS[role], "", "More: provision/README.md of FairFlare."]
    return "\n".join(lines) + "\n"


def authorization(kind: Kind) -> dict[str, Any]:
    """Every right of every role; at a site nobody operates or shuts down anything from outside."""
    roles = {}
    for role, rights in _AT_SERVER.items():
        own = {"operate": "none", "download_job": "none"} if kind == "site" else {}
        roles[role] = {**rights, **own, **_NOBODY}
    return {"format_version": "1.0", "permissions": roles}


def privacy(kind: Kind) -> dict[str, Any]:
    """One scope, which every job gets; at a site each result must carry the seal of the release gate.

    At the server the scope has no filter: FLARE would run it on what arrives, where no seal is left.
    """
    filters = [{"path": SEAL, "args": {}}] if kind == "site" else []
    scope = {"name": SCOPE, "properties": {}, "task_data_filters": [], "task_result_filters": filters}
    return {"scopes": [scope], "default_scope": SCOPE}


def _hardened(resources: dict[str, Any], kind: Kind) -> dict[str, Any]:
    return {
        **resources,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": list(ALLOWED[kind]),
        "app_validator": {"path": VALIDATOR, "args": {"policy": kind == "site"}},
        "components": [
            {"id": "kit", "path": KIT, "args": {}},
            *(one for one in resources["components"] if one["id"] in _KEPT[kind]),
        ],
    }


def _site_resources(resources: dict[str, Any], settings: Settings) -> dict[str, Any]:
    del settings
    made = _hardened(resources, "site")
    # First of all: FLARE builds components in this order, and connects when all are built.
    made["components"].insert(0, {"id": "shutters", "path": SHUTTERS, "args": {}})
    return {**made, "allow_log_streaming": False}


def _server_resources(resources: dict[str, Any], settings: Settings) -> dict[str, Any]:
    made = _hardened(resources, "server")
    (server,) = made["servers"]
    server.pop("download_job_url", None)  # a placeholder of FLARE's, on the public network
    made["servers"] = [{**server, "heart_beat_timeout": settings.heartbeat_seconds}]
    storage = {"path": STORAGE, "args": {"root_dir": f"{STORE}/snapshots", "uri_root": "/"}}
    made["snapshot_persistor"]["args"]["storage"] = storage
    parts = {
        # One job at a time: a data set's memory of what was revealed is used by one.
        "job_scheduler": {
            "max_jobs": 1,
            "max_schedule_count": settings.schedule_tries,
            "min_schedule_interval": 10.0,
            "max_schedule_interval": 160.0,
        },
        # A relative name, below the store's root: FLARE makes the folder itself in the kit, where its process works.
        "job_manager": {"uri_root": f"{STORE}/jobs", "job_store_id": "job_store"},
    }
    for one in made["components"]:
        if one["id"] == "job_store":
            one.update({"path": STORAGE, "args": {"root_dir": ".", "uri_root": "/"}})
        one["args"] = parts.get(one["id"], one.get("args", {}))
    made["components"].append({"id": "intake", "path": INTAKE, "args": {}})
    made["components"].append({"id": "vetoes", "path": VETOES, "args": {}})
    made["components"].append({"id": "quota", "path": QUOTA, "args": {}})
    made["components"].append({"id": "limits", "path": LIMITS, "args": {}})
    made["components"].append({"id": "presence", "path": PRESENCE, "args": {}})
    made["components"].append({"id": "recovery", "path": RECOVERY, "args": {}})
    return made


def _signed_jobs(text: str) -> str:
    """A start-up configuration that asks for signed jobs, by name."""
    config = json.loads(text)
    for part in (*config["servers"], config.get("client", {})):
        if part.get("connection_security", "mtls") != "mtls":
            raise ValueError("connection_security: expected 'mtls': without it anybody may pose as a party")
    if config.get("require_signed_jobs") is True:
        return text
    return json.dumps({**config, "require_signed_jobs": True}, indent=2) + "\n"


def _verify_whole(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name}: got {value!r}, expected a whole number of at least {least}")


def _verify_absolute(name: str, value: object) -> None:
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise ValueError(f"{name}: got no absolute path, expected one, such as {Settings.store}")


def _catalog() -> DataCatalog:
    entry = Entry(manifest="/CHANGE-ME/manifest.csv", root=None, opt_out="/CHANGE-ME/opt_out.txt", public=False)
    return DataCatalog(format="fairflare/catalog/1", data_sets={"change_me": entry}, sites=None)


def _write(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
