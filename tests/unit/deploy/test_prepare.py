# SPDX-License-Identifier: Apache-2.0
"""What ``nvflare deploy prepare`` makes of our kits: exactly what it changes, and that nothing of ours is opened.

FLARE's own process, not ours, writes these files, so that another FLARE is noticed here. ``provision/deploy/README.md``
tells hospitals the same list.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairflare.audit.auditor import audit_kit
from fairflare.errors import KitError
from fairflare.flare import topics
from fairflare.flare.harden import harden_own
from fairflare.flare.kit_state import verify_start
from fairflare.flare.provision_files import Settings
from fairflare.policy import standard_policy, write_policy

Prepare = Callable[[Path, str], Path]
RESOURCES = "local/resources.json.default"
SCRIPTS = {"startup/start.sh", "startup/sub_start.sh", "startup/stop_fl.sh"}
LOCAL = {"local/comm_config.json", "local/study_runtime.yaml"}
#: Runtime -> files that are taken out, and put in; the chart beside them.
CHANGES = {
    "docker": (SCRIPTS, {"startup/start_docker.sh", *LOCAL}),
    "k8s": (SCRIPTS, LOCAL),
    "slurm": (SCRIPTS - {"startup/sub_start.sh"}, {"startup/start_slurm.sh", *LOCAL}),
}
#: Components that FLARE takes out of our ``resources.json.default``, and puts in.
OUT = {"process_launcher", "resource_manager", "resource_consumer"}
PASSTHROUGH = "nvflare.app_common.resource_managers.passthrough_resource_manager.PassthroughResourceManager"
LAUNCHERS = {"docker": "docker_launcher.{}DockerJobLauncher", "k8s": "k8s_launcher.{}K8sJobLauncher",
             "slurm": "slurm.{}SlurmJobLauncher"}  # fmt: skip
PARTIES = ("hospital-1", "fl-server")
EACH = pytest.mark.parametrize("runtime", CHANGES)
BOTH = pytest.mark.parametrize("party", PARTIES)


@pytest.fixture
def kit(kits: Path, tmp_path: Path, party: str) -> Path:
    """A kit as its holder has filled it in."""
    made = tmp_path / "kits" / party
    shutil.copytree(kits / party, made)
    if party == "hospital-1":
        write_policy(made / "local", standard_policy(tmp_path / "store"))
        for name in ("data_catalog.json", "approvals/a.json", "weights/b.safetensors"):
            (made / "local" / name).parent.mkdir(exist_ok=True)
            (made / "local" / name).write_bytes(b"the hospital's own")
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def resources(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / RESOURCES).read_text(encoding="utf-8"))
    return found


@EACH
@BOTH
def test_every_file_survives_byte_for_byte_but_those_named(kit: Path, prepare: Prepare, runtime: str) -> None:
    before, after = files(kit), files(prepare(kit, runtime))
    gone, added = CHANGES[runtime]
    assert before.keys() - after.keys() == gone
    assert {name for name in after.keys() - before.keys() if not name.startswith("helm_chart/")} == added
    assert {name for name in before.keys() & after.keys() if before[name] != after[name]} == {RESOURCES}
    assert files(kit) == before  # the kit itself is only read


@EACH
@BOTH
def test_of_the_resources_only_the_launcher_changes(kit: Path, prepare: Prepare, runtime: str, party: str) -> None:
    before, after = resources(kit), resources(prepare(kit, runtime))
    added = [one for one in after["components"] if one not in before["components"]]
    workspace = {"docker": "/var/tmp/nvflare/workspace", "k8s": "/opt/fairflare/kit"}  # noqa: S108
    expected = [one for one in before["components"] if one["id"] not in OUT]
    if party == "fl-server":
        root = workspace.get(runtime, str(kit.parents[1] / f"slurm-{party}"))
        (manager,) = [one for one in expected if one["id"] == "job_manager"]
        manager["args"]["uri_root"] = f"{root}/jobs-storage"
        before["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = f"{root}/snapshot-storage"
        added.remove(manager)
    # Shutters and KitCheck are the first two of a hospital, as before: FLARE builds them before it connects.
    assert after["components"][: len(expected)] == expected
    assert [one["id"] for one in added] == ["resource_manager", f"{runtime}_launcher"]
    side = "Server" if party == "fl-server" else "Client"
    assert [one["path"] for one in added] == [
        PASSTHROUGH, f"nvflare.app_opt.job_launcher.{LAUNCHERS[runtime].format(side)}",
    ]  # fmt: skip
    # Validator, list of classes, log streaming: all the rest.
    assert {**after, "components": None} == {**before, "components": None}


@EACH
def test_a_resources_file_of_the_hospitals_own_is_lost(
    kits: Path, tmp_path: Path, prepare: Prepare, runtime: str
) -> None:
    """Our kits have none; whoever wrote one must know."""
    made = tmp_path / "kits" / "hospital-1"
    shutil.copytree(kits / "hospital-1", made)
    (made / "local" / "resources.json").write_bytes((made / RESOURCES).read_bytes())
    assert not (prepare(made, runtime) / "local" / "resources.json").exists()


LOAD = """
import sys
from nvflare.fuel.sec.security_content_service import SecurityContentManager
print(SecurityContentManager(sys.argv[1]).load_json(sys.argv[2])[1].name)
"""


def loaded(file: Path) -> str:
    """What FLARE says of a start-up file; in a process of its own, since FLARE leaves files open."""
    command = [sys.executable, "-c", LOAD, str(file.parent), file.name]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@EACH
@BOTH
def test_flares_own_check_of_signatures_still_holds(kit: Path, prepare: Prepare, runtime: str, party: str) -> None:
    startup = prepare(kit, runtime) / "startup"
    start = startup / ("fed_server.json" if party == "fl-server" else "fed_client.json")
    assert loaded(start) == "OK"
    start.write_bytes(start.read_bytes() + b"\n")
    assert loaded(start) == "INVALID_SIGNATURE"


@EACH
@BOTH
def test_a_prepared_kit_starts_only_once_its_holder_has_signed_it(
    kit: Path, prepare: Prepare, runtime: str, party: str
) -> None:
    verify_start(kit)
    prepared = prepare(kit, runtime)
    with pytest.raises(KitError, match=r"FF-KIT-(ADDED|MISSING)"):
        verify_start(prepared)
    before = resources(prepared)
    role, name = harden_own(prepared, Settings())
    verify_start(prepared)
    assert (role, name) == ("server" if party == "fl-server" else "site", party)
    assert f"{runtime}_launcher" in {one["id"] for one in resources(prepared)["components"]}
    if party == "hospital-1":
        assert resources(prepared) == before  # what FLARE left in the file is as a hardened kit has it


@EACH
@pytest.mark.parametrize("party", ["hospital-1"])
def test_the_audit_says_what_is_no_longer_ours(kit: Path, prepare: Prepare, runtime: str) -> None:
    before = {(one.rule.id, one.place) for one in audit_kit(kit).findings}
    found = {(one.rule.id, one.place) for one in audit_kit(prepare(kit, runtime)).findings} - before
    assert {f"{RESOURCES}:components[2]", f"{RESOURCES}:components[3]"} == {
        place for rule, place in found if rule == "FFA-203"
    }
    gone, added = CHANGES[runtime]
    assert {place for rule, place in found if rule == "FFA-102"} == {*gone, *added} - LOCAL


def test_a_hospitals_shutters_close_what_pods_of_jobs_fetch() -> None:
    """Why FLARE's launcher for Kubernetes does not run here."""
    source = Path(topics.__file__).read_text(encoding="utf-8")
    assert re.search(r'"workspace_transfer": "Fetches a workspace into a container', source)
