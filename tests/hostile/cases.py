# SPDX-License-Identifier: Apache-2.0
"""Jobs as a researcher can submit them: what is spoilt, the code expected, and what FLARE itself says to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairflare.jobs import EXECUTOR

Spoil = Callable[[Path], None]
CONFIG = Path("app") / "config"
PLAN = CONFIG / "plan.json"
CLIENT = CONFIG / "config_fed_client.json"
SERVER = CONFIG / "config_fed_server.json"
META = Path("meta.json")
#: What the code of a hostile job writes when anybody runs it, into the folder that this variable names.
CANARY = "FAIRFLARE_TEST_CANARY"
CODE = f"""import os, pathlib
pathlib.Path(os.environ.get("{CANARY}", "/tmp"), "fairflare_canary").write_text("run")
from nvflare.apis.executor import Executor
class Evil(Executor):
    pass
"""


@dataclass(frozen=True)
class HostileJob:
    """A good job's folder with one thing spoilt.

    Attributes
    ----------
    spoil
        Changes a good job's folder.
    code
        A code that the check of the whole job gives.
    where
        Who can see it: ``app`` (server's and site's validator), or ``meta`` (``check_job``, and the site's door).
    flare
        Words with which FLARE itself refuses it at submission, at the researcher's or at the server; ``None``: it
        takes it.
    """

    spoil: Spoil
    code: str
    where: str = "app"
    flare: str | None = None


def _write(name: Path | str, text: str = "", *, data: bytes | None = None) -> Spoil:
    def spoil(job: Path) -> None:
        file = job / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if data is None else data)

    return spoil


def _folder(name: str) -> Spoil:
    return lambda job: (job / name).mkdir(parents=True)


def _edit(name: Path, change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(job: Path) -> None:
        data = json.loads((job / name).read_text(encoding="utf-8"))
        change(data)
        (job / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    return spoil


def _set(name: Path, *keys: str | int, value: object) -> Spoil:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return _edit(name, change)


def _bytes(name: Path, change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(job: Path) -> None:
        (job / name).write_bytes(change((job / name).read_bytes()))

    return spoil


def _meta(key: str, value: object) -> Spoil:
    return _set(META, key, value=value)


def _renamed(name: Path, new: str, text: str | None = None) -> Spoil:
    def spoil(job: Path) -> None:
        file = job / name
        if text is None:
            file.rename(file.with_name(new))
        else:
            file.unlink()
            file.with_name(new).write_text(text, encoding="utf-8")

    return spoil


def _link(name: Path, *, folder: bool) -> Spoil:
    def spoil(job: Path) -> None:
        outside = job.parent / "outside"
        shutil.move(job / name, outside)
        (job / name).symlink_to(outside, target_is_directory=folder)

    return spoil


def _app_named(name: str) -> Spoil:
    def spoil(job: Path) -> None:
        (job / "app").rename(job / name)
        _meta("deploy_map", {name: ["@ALL"]})(job)

    return spoil


def _two_apps(job: Path) -> None:
    shutil.copytree(job / "app", job / "other")
    _set(Path("other/config/plan.json"), "training", "rounds", value=7)(job)
    _meta("deploy_map", {"app": ["server", "hospital-1"], "other": ["hospital-2"]})(job)


def _second_key(job: Path) -> None:
    text = (job / PLAN).read_text(encoding="utf-8")
    (job / PLAN).write_text(text.replace('"cells":', '"cells": {"minimum": 20, "sites": 3},\n  "cells":', 1), "utf-8")


def _plan_as_folder(job: Path) -> None:
    (job / PLAN).unlink()
    (job / PLAN).mkdir()


def _evil(path: str) -> dict[str, Any]:
    return {"tasks": ["steal"], "executor": {"path": path, "args": {}}}


_FILTER = {"tasks": ["train"], "filters": [{"path": "nvflare.app_common.filters.ExcludeVars", "args": {}}]}
_NESTED = {"inner": {"path": "nvflare.app_common.np.np_trainer.NPTrainer", "args": {}}}
#: FLARE's own command line refuses them, when it signs the job.
_NO_LINKS = "symbolic links are not allowed"
_CONF = 'include "/etc/hostname"\nexecutors = []\n'
_LOG = json.dumps({"version": 1, "handlers": {"net": {"class": "logging.handlers.SocketHandler"}}})

_FILES: dict[str, HostileJob] = {
    "code in custom": HostileJob(_write("app/custom/evil.py", CODE), "FF-JOB-CODE"),
    "empty file in custom": HostileJob(_write("app/custom/empty"), "FF-JOB-CODE"),
    "empty folder custom": HostileJob(_folder("app/custom"), "FF-JOB-CODE"),
    "folder Custom in capitals": HostileJob(_folder("app/Custom"), "FF-JOB-CODE"),
    "code beside the configuration": HostileJob(_write("app/config/sitecustomize.py", CODE), "FF-JOB-CODE"),
    "code at the top": HostileJob(_write("setup.py", CODE), "FF-JOB-CODE", "meta"),
    "shared library": HostileJob(_write("app/config/fast.so"), "FF-JOB-CODE"),
    "pickled model": HostileJob(_write("app/config/model.pt"), "FF-JOB-CODE"),
    "model file": HostileJob(_write("app/config/model.safetensors"), "FF-JOB-FILE"),
    "client configuration as .conf": HostileJob(_renamed(CLIENT, "config_fed_client.conf", _CONF), "FF-JOB-MISSING"),
    "client configuration as .yml": HostileJob(
        _renamed(CLIENT, "config_fed_client.yml", "executors: []\n"), "FF-JOB-MISSING"
    ),
    "server configuration as .yaml": HostileJob(
        _renamed(SERVER, "config_fed_server.yaml", "workflows: []\n"), "FF-JOB-MISSING", flare="omegaconf"
    ),
    "another configuration beside as .conf": HostileJob(
        _write("app/config/config_fed_client.conf", _CONF), "FF-JOB-FILE"
    ),
    "another configuration beside as .yml": HostileJob(
        _write("app/config/config_fed_server.yml", "workflows: []\n"), "FF-JOB-FILE"
    ),
    "configuration in a subfolder": HostileJob(
        _write("app/config/a/config_fed_client.json", '{"executors": []}'), "FF-JOB-FILE"
    ),
    "default name of a configuration": HostileJob(_renamed(CLIENT, "config_fed_client.json.default"), "FF-JOB-MISSING"),
    "log configuration": HostileJob(_write("app/config/log_config.json", _LOG), "FF-JOB-FILE"),
    "resources of the site": HostileJob(_write("app/config/resources.json", "{}"), "FF-JOB-FILE"),
    "decomposers": HostileJob(_write("app/config/decomposers/x.json", "{}"), "FF-JOB-FILE"),
    "hidden file": HostileJob(_write("app/.hidden"), "FF-JOB-FILE"),
    "signature of another name": HostileJob(_write("app/config/.__nvfl_sig.json.bak", "{}"), "FF-JOB-FILE"),
    "notes at the top": HostileJob(_write("README.md", "hello"), "FF-JOB-FILE", "meta"),
    "second meta": HostileJob(_write("meta.yml", "name: x\n"), "FF-JOB-FILE", "meta"),
    "plan as a folder": HostileJob(_plan_as_folder, "FF-JOB-FILE"),
    "no plan": HostileJob(lambda job: (job / PLAN).unlink(), "FF-JOB-MISSING"),
    "no client configuration": HostileJob(
        lambda job: (job / CLIENT).unlink(), "FF-JOB-MISSING", flare="client config is missing"
    ),
    "plan in capitals": HostileJob(_renamed(PLAN, "Plan.json"), "FF-JOB-MISSING"),
    "link to a file": HostileJob(_link(PLAN, folder=False), "FF-JOB-LINK", flare=_NO_LINKS),
    "link to a folder": HostileJob(_link(Path("app/config"), folder=True), "FF-JOB-LINK", flare=_NO_LINKS),
    "link that leads nowhere": HostileJob(
        lambda job: (job / "app/config/x").symlink_to("nowhere"), "FF-JOB-LINK", flare=_NO_LINKS
    ),
}
_CONFIGS: dict[str, HostileJob] = {
    "unknown executor": HostileJob(
        _set(CLIENT, "executors", 0, "executor", "path", value="evil.Evil"), "FF-JOB-CONFIG"
    ),
    "second executor": HostileJob(
        _edit(CLIENT, lambda data: data["executors"].append(_evil("evil.Evil"))), "FF-JOB-CONFIG"
    ),
    "our executor twice": HostileJob(
        _edit(CLIENT, lambda data: data["executors"].append(_evil(EXECUTOR))), "FF-JOB-CONFIG"
    ),
    "our executor with arguments": HostileJob(
        _set(CLIENT, "executors", 0, "executor", "args", value={"policy": None}), "FF-JOB-CONFIG"
    ),
    "our executor for every task": HostileJob(_set(CLIENT, "executors", 0, "tasks", value=["*"]), "FF-JOB-CONFIG"),
    "filter before, at the sites": HostileJob(_set(CLIENT, "task_data_filters", value=[_FILTER]), "FF-JOB-CONFIG"),
    "filter after, at the sites": HostileJob(_set(CLIENT, "task_result_filters", value=[_FILTER]), "FF-JOB-CONFIG"),
    "filter before, at the server": HostileJob(_set(SERVER, "task_data_filters", value=[_FILTER]), "FF-JOB-CONFIG"),
    "filter after, at the server": HostileJob(_set(SERVER, "task_result_filters", value=[_FILTER]), "FF-JOB-CONFIG"),
    "component nested in arguments": HostileJob(
        _set(CLIENT, "executors", 0, "executor", "args", value=_NESTED), "FF-JOB-CONFIG"
    ),
    "component at the sites": HostileJob(
        _set(CLIENT, "components", value=[{"id": "x", "path": "evil.Evil", "args": {}}]), "FF-JOB-CONFIG"
    ),
    "component at the server": HostileJob(
        _edit(SERVER, lambda data: data["components"].append({"id": "x", "path": "evil.Evil"})), "FF-JOB-CONFIG"
    ),
    "another workflow": HostileJob(_set(SERVER, "workflows", 0, "path", value="evil.Evil"), "FF-JOB-CONFIG"),
    "unknown key": HostileJob(_set(CLIENT, "site_config", value={"a": 1}), "FF-JOB-CONFIG"),
    "same meaning in other bytes": HostileJob(
        _bytes(CLIENT, lambda data: json.dumps(json.loads(data)).encode()), "FF-JOB-CONFIG"
    ),
    "line ends of another system": HostileJob(
        _bytes(SERVER, lambda data: data.replace(b"\n", b"\r\n")), "FF-JOB-CONFIG"
    ),
}
_PLANS: dict[str, HostileJob] = {
    "path in the plan's name": HostileJob(_set(PLAN, "name", value="../x"), "FF-JOB-PLAN"),
    "path in the data set's name": HostileJob(_set(PLAN, "task", "data_set", value="heart/../../x"), "FF-JOB-PLAN"),
    "look-alike letter in the name": HostileJob(_set(PLAN, "name", value="he\u0430rt_flexfair"), "FF-JOB-PLAN"),
    "line feed after the name": HostileJob(_set(PLAN, "name", value="heart_flexfair\n"), "FF-JOB-PLAN"),
    "path of a weight file": HostileJob(
        _set(PLAN, "start", value={"kind": "file", "sha256": "/etc/passwd", "tensors": "all"}), "FF-JOB-PLAN"
    ),
    "huge plan": HostileJob(_write(PLAN, data=b'{"a": "' + b"x" * 20_000_000 + b'"}'), "FF-JOB-SIZE"),
    "deep plan": HostileJob(_write(PLAN, "[" * 100_000 + "]" * 100_000), "FF-JOB-PLAN"),
    "thousands of unknown keys": HostileJob(
        _edit(PLAN, lambda data: data.update({f"k{at}": 0 for at in range(50_000)})), "FF-JOB-PLAN"
    ),
    "unknown keys within the limits": HostileJob(
        _edit(PLAN, lambda data: data.update({f"k{at}": 0 for at in range(15_000)})), "FF-JOB-PLAN"
    ),
    "key written twice": HostileJob(_second_key, "FF-JOB-PLAN"),
    "not a number": HostileJob(_set(PLAN, "training", "optimizer", "lr", value=float("nan")), "FF-JOB-PLAN"),
    "infinity": HostileJob(_set(PLAN, "training", "optimizer", "lr", value=float("inf")), "FF-JOB-PLAN"),
    "text for a number": HostileJob(_set(PLAN, "cells", "minimum", value="11"), "FF-JOB-PLAN"),
    "true for an integer": HostileJob(_set(PLAN, "training", "rounds", value=True), "FF-JOB-PLAN"),
    "float for an integer": HostileJob(_set(PLAN, "training", "rounds", value=20.0), "FF-JOB-PLAN"),
    "unknown key in the plan": HostileJob(_set(PLAN, "protection", "off", value=True), "FF-JOB-PLAN"),
    "byte order mark": HostileJob(_bytes(PLAN, lambda data: b"\xef\xbb\xbf" + data), "FF-JOB-PLAN"),
    "UTF-16": HostileJob(_bytes(PLAN, lambda data: data.decode().encode("utf-16")), "FF-JOB-PLAN"),
    "garbage after the plan": HostileJob(_bytes(PLAN, lambda data: data + b"{}"), "FF-JOB-PLAN"),
    "empty plan": HostileJob(_write(PLAN), "FF-JOB-PLAN"),
    "plan that is a list": HostileJob(_write(PLAN, "[]"), "FF-JOB-PLAN"),
    "number of a million digits": HostileJob(_write(PLAN, '{"format": ' + "1" * 1_000_000 + "}"), "FF-JOB-PLAN"),
}
_METAS: dict[str, HostileJob] = {
    "image for docker": HostileJob(
        _meta("launcher_spec", {"default": {"docker": {"image": "evil:latest"}}}), "FF-JOB-META", "meta"
    ),
    "image for kubernetes": HostileJob(
        _meta("launcher_spec", {"hospital-1": {"k8s": {"image": "evil:latest"}}}), "FF-JOB-META", "meta"
    ),
    "Python path of a launcher": HostileJob(
        _meta("launcher_spec", {"default": {"docker": {"python_path": "/opt/evil"}}}), "FF-JOB-META", "meta"
    ),
    "entry point of a launcher": HostileJob(
        _meta("launcher_spec", {"default": {"docker": {"entrypoint": "/bin/sh"}}}), "FF-JOB-META", "meta"
    ),
    "privileged container": HostileJob(
        _meta("launcher_spec", {"default": {"docker": {"privileged": True}}}),
        "FF-JOB-META",
        "meta",
        flare="unsupported job-controlled Docker option",
    ),
    "command of a slurm launcher": HostileJob(
        _meta("launcher_spec", {"default": {"slurm": {"additional_node_command": "curl evil"}}}), "FF-JOB-META", "meta"
    ),
    "GPUs": HostileJob(_meta("resource_spec", {"hospital-1": {"num_of_gpus": 8}}), "FF-JOB-META", "meta"),
    "image in the resources": HostileJob(
        _meta("resource_spec", {"hospital-1": {"docker": {"image": "evil"}}}), "FF-JOB-META", "meta"
    ),
    "unknown scope": HostileJob(_meta("scope", "no_such_scope"), "FF-JOB-META", "meta"),
    "study": HostileJob(_meta("study", "oncology"), "FF-JOB-META", "meta"),
    "statistics pools": HostileJob(_meta("stats_pool_config", {"x": 1}), "FF-JOB-META", "meta"),
    "custom properties": HostileJob(_meta("custom_props", {"x": 1}), "FF-JOB-META", "meta"),
    "code announced": HostileJob(_meta("byoc", True), "FF-JOB-META", "meta"),
    "mandatory clients": HostileJob(_meta("mandatory_clients", ["hospital-1"]), "FF-JOB-META", "meta"),
    "job id of one's own": HostileJob(_meta("job_id", "../../x"), "FF-JOB-META", "meta", flare="invalid job_id"),
    "fewer sites than the plan": HostileJob(_meta("min_clients", 1), "FF-JOB-META", "meta"),
    "more sites than the plan": HostileJob(_meta("min_clients", 99), "FF-JOB-META", "meta"),
    "no number of sites": HostileJob(_edit(META, lambda data: data.pop("min_clients")), "FF-JOB-META", "meta"),
    "number of sites as text": HostileJob(_meta("min_clients", "3"), "FF-JOB-META", "meta"),
    "number of sites true": HostileJob(_meta("min_clients", True), "FF-JOB-META", "meta"),
    "name of another plan": HostileJob(_meta("name", "heart_fedavg"), "FF-JOB-META", "meta"),
    "path in the job's name": HostileJob(_meta("name", "../../x"), "FF-JOB-META", "meta"),
    "some sites only": HostileJob(
        _meta("deploy_map", {"app": ["server", "hospital-1"]}), "FF-JOB-META", "meta", flare="min 3 clients required"
    ),
    "two apps with two plans": HostileJob(_two_apps, "FF-JOB-META", "meta", flare="min 3 clients required"),
    "app of another name": HostileJob(_app_named("evil"), "FF-JOB-META", "meta"),
    "app named as a path": HostileJob(
        _meta("deploy_map", {"../app": ["@ALL"]}), "FF-JOB-META", "meta", flare="invalid job app name"
    ),
    "key written twice in meta": HostileJob(
        _bytes(META, lambda data: data.replace(b"{", b'{"min_clients": 99,', 1)), "FF-JOB-META", "meta"
    ),
    "meta that is a list": HostileJob(_write(META, "[]"), "FF-JOB-META", "meta", flare="not existing"),
    "huge meta": HostileJob(_edit(META, lambda data: data.update({"name": "x" * 100_000})), "FF-JOB-SIZE", "meta"),
    "no meta": HostileJob(lambda job: (job / META).unlink(), "FF-JOB-MISSING", "meta", flare="not existing"),
}

#: Name of the defect -> the job. All of them are refused; none of them differs from a good job in anything else.
CASES: dict[str, HostileJob] = {**_FILES, **_CONFIGS, **_PLANS, **_METAS}
