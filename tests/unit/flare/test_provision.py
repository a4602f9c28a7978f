# SPDX-License-Identifier: Apache-2.0
"""Start-up kits: what FLARE's own stand open with, and that the project's file closes every one of them.

``FAIRFLARE_UPDATE_GOLDEN=1`` writes the golden ``local/`` folders anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.fuel.utils.class_loader import load_class
from nvflare.lighter.constants import CtxKey
from nvflare.lighter.utils import verify_folder_signature
from nvflare.security.security import COMMAND_CATEGORIES, CommandCategory, FLAuthorizer

from fairflare import schema
from fairflare.flare import provision_files as files
from fairflare.flare.limits_file import LIMITS_NAME, STANDARD, read_limits
from fairflare.flare.provision import HardeningBuilder
from fairflare.jobs import AGGREGATOR, CONTROLLER, EXECUTOR
from fairflare.policy import read_catalog, read_policy, standard_policy
from fairflare.policy.roster import read_roster
from fairflare.secagg.identity import key_hash

ROOT = Path(__file__).resolve().parents[3]
PROJECT = ROOT / "provision" / "project.yml"
GOLDEN = ROOT / "tests" / "golden" / "kit"
SERVER, SITE, LEAD, ADMIN = "fl-server", "hospital-2", "researcher@example.org", "admin@example.org"
SITES = ["hospital-1", "hospital-2", "hospital-3", "hospital-4"]
BUILDER = "fairflare.flare.provision.HardeningBuilder"


def nvflare(folder: Path, project: Path) -> subprocess.CompletedProcess[str]:
    """The command as it stands in the project's file, from the project's folder."""
    command = [Path(sys.executable).with_name("nvflare"), "provision", "-p", project, "-w", folder / "kits"]
    environment = {**os.environ, "HOME": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The project's file with something changed."""
    project = yaml.safe_load(PROJECT.read_text(encoding="utf-8"))
    change(project)
    file = folder / "project.yml"
    file.write_text(yaml.safe_dump(project, sort_keys=False), encoding="utf-8")
    return file


def without_hardening(project: dict[str, Any]) -> None:
    project["builders"] = [one for one in project["builders"] if one["path"] != BUILDER]
    for one in project["builders"]:
        one.get("args", {}).pop("require_signed_jobs", None)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the plain command makes of the project's file."""
    folder = tmp_path_factory.mktemp("hardened")
    done = nvflare(folder, PROJECT.relative_to(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "kits" / "fairflare"


@pytest.fixture(scope="module")
def kits(project: Path) -> Path:
    return project / "prod_00"


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same project as FLARE's template makes it, with the modes of a usual umask."""
    folder = tmp_path_factory.mktemp("stock")
    mask = os.umask(0o022)
    try:
        done = nvflare(folder, changed(folder, without_hardening))
    finally:
        os.umask(mask)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "kits" / "fairflare" / "prod_00"


def loaded(kit: Path, name: str) -> Any:
    """A file of ``local/`` as FLARE finds it: its own name, else the fallback."""
    local = kit / "local"
    found = [file for file in (local / name, local / f"{name}.default") if file.exists()]
    return json.loads(found[0].read_text(encoding="utf-8")) if found else {}


def resources(kit: Path) -> Any:
    return loaded(kit, "resources.json")


def parts(kit: Path) -> dict[str, Any]:
    return {one["id"]: one for one in resources(kit)["components"]}


def validator(kit: Path) -> dict[str, Any]:
    return dict(resources(kit).get("app_validator", {}))


def scope(kit: Path) -> Any:
    return loaded(kit, "privacy.json").get("default_scope")


def may(
    kit: Path, right: str, role: str, user: str = "u", submitter: str = "u", org: str = "o", own: bool = True
) -> bool:
    """FLARE's own answer to whether somebody has a right in a kit; ``own``: a user of the party's organisation."""
    authorizer = FLAuthorizer(org if own else "elsewhere", loaded(kit, "authorization.json"))
    person = Person(user, org, role)
    return bool(authorizer.authorize(AuthzContext(right, person, Person(submitter, org, "lead")))[0])


ROLES = ("project_admin", "org_admin", "lead", "member")
SHELL = [name for name, category in COMMAND_CATEGORIES.items() if category == CommandCategory.SHELL_COMMANDS]
OPERATE = [name for name, category in COMMAND_CATEGORIES.items() if category == CommandCategory.OPERATE]


def nobody(kit: Path, *rights: str) -> bool:
    return not any(may(kit, right, role) for right in rights for role in ROLES)


def closed(kit: Path) -> bool:
    return not any(path.stat().st_mode & 0o077 for path in (kit, *kit.rglob("*")))


def signed(kit: Path) -> bool:
    startup = kit / "startup"
    return bool(verify_folder_signature(startup, startup / "rootCA.pem", True, "signature.json"))


@dataclass(frozen=True)
class Hardening:
    """Something that FLARE's template leaves open, in whose kits, and how one sees that it is closed."""

    holds: Callable[[Path], bool]
    names: tuple[str, ...] = (SERVER, SITE)


HARDENINGS = {
    "no class of FLARE's own for jobs": Hardening(
        lambda kit: not set(resources(kit)["class_allow_list"]) & set(DEFAULT_CLASS_ALLOW_LIST)
    ),
    "a validator of plans": Hardening(lambda kit: validator(kit).get("path") == files.VALIDATOR),
    "the site's policy in the validator": Hardening(
        lambda kit: validator(kit).get("args") == {"policy": True}, (SITE,)
    ),
    "shutters, before everything else": Hardening(
        lambda kit: resources(kit)["components"][0] == {"id": "shutters", "path": files.SHUTTERS, "args": {}}, (SITE,)
    ),
    "no log streaming": Hardening(lambda kit: resources(kit)["allow_log_streaming"] is False, (SITE,)),
    "no streamer of the error log": Hardening(lambda kit: "LogStreamer" not in json.dumps(resources(kit)), (SITE,)),
    "no receiver of logs": Hardening(lambda kit: "LogReceiver" not in json.dumps(resources(kit)), (SERVER,)),
    "jobs and snapshots in the kit": Hardening(lambda kit: "/nvflare/" not in json.dumps(resources(kit)), (SERVER,)),
    "a lost site is noticed in a minute": Hardening(
        lambda kit: resources(kit)["servers"][0]["heart_beat_timeout"] == 60, (SERVER,)
    ),
    "one job at a time": Hardening(lambda kit: parts(kit)["job_scheduler"]["args"]["max_jobs"] == 1, (SERVER,)),
    "a job that is not taken is given up": Hardening(
        lambda kit: parts(kit)["job_scheduler"]["args"].get("max_schedule_count") == 6, (SERVER,)
    ),
    "a job's meta data are checked when it is handed in": Hardening(
        lambda kit: files.INTAKE in json.dumps(resources(kit)), (SERVER,)
    ),
    "a job is looked at when it is handed in": Hardening(
        lambda kit: files.INTAKE in json.dumps(resources(kit)), (SERVER,)
    ),
    "who refuses or is absent is noted": Hardening(lambda kit: files.VETOES in json.dumps(resources(kit)), (SERVER,)),
    "a kit that cannot work says so": Hardening(lambda kit: files.KIT in json.dumps(resources(kit))),
    "no address of the public network": Hardening(lambda kit: "http" not in json.dumps(resources(kit)), (SERVER,)),
    "no code from jobs": Hardening(lambda kit: nobody(kit, "byoc", "server-predeployed-flwr")),
    "no shell": Hardening(lambda kit: nobody(kit, *SHELL)),
    "nobody operates a hospital from outside": Hardening(lambda kit: nobody(kit, *OPERATE), (SITE,)),
    "the project's admin hands in no jobs": Hardening(lambda kit: not may(kit, "submit_job", "project_admin")),
    "the project's admin downloads no results": Hardening(lambda kit: not may(kit, "download_job", "project_admin")),
    "a privacy scope for every job": Hardening(lambda kit: scope(kit) == "fairflare"),
    "a seal on every result": Hardening(lambda kit: files.SEAL in json.dumps(loaded(kit, "privacy.json")), (SITE,)),
    "no sample of a privacy scope": Hardening(lambda kit: not (kit / "local" / "privacy.json.sample").exists()),
    "signed jobs by name": Hardening(
        lambda kit: '"require_signed_jobs": true' in next((kit / "startup").glob("fed_*.json")).read_text()
    ),
    "a start-up folder that is signed": Hardening(signed),
    "nothing for other users": Hardening(closed, (SERVER, SITE, LEAD, ADMIN)),
    "nothing for other users while it runs": Hardening(
        lambda kit: "\numask 077\n" in (kit / "startup" / "sub_start.sh").read_text()
    ),
    "no modules from /local/custom": Hardening(
        lambda kit: "/local/custom" not in (kit / "startup" / "sub_start.sh").read_text()
    ),
    "no modules from the folder it is started from": Hardening(
        lambda kit: "\nexport PYTHONSAFEPATH=1\n" in (kit / "startup" / "sub_start.sh").read_text()
    ),
}  # fmt: skip
CASES = [(what, name) for what, one in HARDENINGS.items() for name in one.names]


@pytest.mark.parametrize(("what", "name"), CASES)
def test_it_is_closed(kits: Path, what: str, name: str) -> None:
    assert HARDENINGS[what].holds(kits / name)


@pytest.mark.parametrize(("what", "name"), CASES)
def test_it_stands_open_in_flares_own_kit(stock: Path, what: str, name: str) -> None:
    # So that each check above is known to see what it looks for.
    assert not HARDENINGS[what].holds(stock / name)


# ----------------------------------------------------------------------------------------------------- the whole folder


def texts(kit: Path) -> dict[str, str]:
    """Every file of ``local/``, and what to do with the kit; hashes of keys differ from run to run."""
    found = [*sorted((kit / "local").iterdir()), kit / "readme.txt"]
    return {
        file.name: re.sub(r"\b[0-9a-f]{64}\b", "<key>", file.read_text(encoding="utf-8"))
        for file in found
        if file.name != "log_config.json.default"  # FLARE's own, unchanged
    }


@pytest.mark.parametrize(("name", "kind"), [(SERVER, "server"), (SITE, "hospital"), (LEAD, "person")])
def test_the_local_folder_is_the_golden_one(kits: Path, name: str, kind: str) -> None:
    found, golden = texts(kits / name), GOLDEN / kind
    if os.environ.get("FAIRFLARE_UPDATE_GOLDEN") == "1":
        shutil.rmtree(golden, ignore_errors=True)
        golden.mkdir(parents=True)
        for file, text in found.items():
            (golden / file).write_text(text, encoding="utf-8")
    wanted = {file.name: file.read_text(encoding="utf-8") for file in golden.iterdir()}
    assert found == wanted, "set FAIRFLARE_UPDATE_GOLDEN=1 if the change is meant"


def test_every_party_gets_a_kit(kits: Path) -> None:
    assert sorted(kit.name for kit in kits.iterdir()) == sorted([SERVER, LEAD, ADMIN, *SITES])


def test_hardening_again_changes_nothing(kits: Path, tmp_path: Path) -> None:
    for name, kind in ((SERVER, "server"), (SITE, "site")):
        kit = Path(shutil.copytree(kits / name, tmp_path / name))
        before = {file: file.read_bytes() for file in kit.rglob("*") if file.is_file()}
        files.harden_local(kit / "local", kind, name, read_roster(kits / SITE), files.Settings())
        files.harden_start(kit / "startup")
        assert {file: file.read_bytes() for file in kit.rglob("*") if file.is_file()} == before


def test_hardening_again_leaves_the_operators_own_limits(kits: Path, tmp_path: Path) -> None:
    kit = Path(shutil.copytree(kits / SERVER, tmp_path / SERVER))
    assert read_limits(kit / "local") == STANDARD
    own = STANDARD.model_copy(update={"continuations": 0})
    (kit / "local" / LIMITS_NAME).write_text(schema.pretty(own), encoding="utf-8")
    files.harden_local(kit / "local", "server", SERVER, read_roster(kits / SITE), files.Settings())
    assert read_limits(kit / "local") == own
    assert not (kits / SITE / "local" / LIMITS_NAME).exists()


def test_deploying_with_containers_keeps_the_hardening(kits: Path, tmp_path: Path) -> None:
    config = tmp_path / "docker.yaml"
    config.write_text("runtime: docker\nparent: {docker_image: image}\n", encoding="utf-8")
    command = [Path(sys.executable).with_name("nvflare"), "deploy", "prepare", kits / SITE, "--config", config]
    subprocess.run(
        [*command, "--output", tmp_path / SITE], check=True, capture_output=True, timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    prepared = tmp_path / SITE
    assert "docker_launcher" in parts(prepared)
    scripts = ("nothing for other users", "no modules from")  # FLARE takes the scripts out: a container has its own
    for what, one in HARDENINGS.items():
        if SITE in one.names and not what.startswith(scripts):
            assert one.holds(prepared) or what == "a start-up folder that is signed", what
    before = resources(prepared)
    files.harden_local(prepared / "local", "site", SITE, read_roster(kits / SITE), files.Settings())
    assert resources(prepared) == before


def test_a_site_begins_without_a_policy_and_so_takes_part_in_nothing(kits: Path) -> None:
    assert not (kits / SITE / "local" / "site_policy.json").exists()
    assert not (kits / SITE / "local" / "data_catalog.json").exists()


def test_the_templates_can_be_read_once_they_are_renamed(kits: Path) -> None:
    local = kits / SITE / "local"
    policy = read_policy(local / "site_policy.json.template")
    assert policy == standard_policy(Path("/var/lib/fairflare") / SITE)
    assert read_catalog(local / "data_catalog.json.template").data_sets is not None


@pytest.mark.parametrize("name", [SERVER, *SITES])
def test_every_kit_has_the_same_roster_of_keys(kits: Path, name: str) -> None:
    roster = json.loads((kits / name / "local" / "roster.json").read_text(encoding="utf-8"))
    keys = {site: key_hash((kits / site / "startup" / "client.crt").read_bytes()) for site in SITES}
    assert roster == {"format": "fairflare/roster/1", "sites": keys}


def test_the_projects_own_key_is_for_its_owner_only(project: Path) -> None:
    assert (project / "state").stat().st_mode & 0o077 == 0
    assert (project / "state" / "cert.json").stat().st_mode & 0o077 == 0
    assert "root_pri_key" in json.loads((project / "state" / "cert.json").read_text(encoding="utf-8"))


def test_whatever_must_be_changed_is_marked() -> None:
    lines = [line for line in PROJECT.read_text(encoding="utf-8").splitlines() if "example.org" in line]
    assert [line for line in lines if "CHANGE" not in line] == []


def test_all_connections_are_authenticated_on_both_sides_and_on_one_port(kits: Path) -> None:
    server = json.loads((kits / SERVER / "startup" / "fed_server.json").read_text(encoding="utf-8"))["servers"][0]
    client = json.loads((kits / SITE / "startup" / "fed_client.json").read_text(encoding="utf-8"))
    admin = json.loads((kits / LEAD / "startup" / "fed_admin.json").read_text(encoding="utf-8"))["admin"]
    target = "fl-server.example.org:8002"
    assert (server["connection_security"], server["admin_port"]) == ("mtls", 8002)
    assert (client["client"]["connection_security"], client["servers"][0]["service"]["target"]) == ("mtls", target)
    assert (admin["connection_security"], f"{admin['host']}:{admin['port']}") == ("mtls", target)


# --------------------------------------------------------------------------------------------------------------- rights

#: Right -> roles that have it, where user and submitter are one person of the party's own organisation.
AT_SERVER = {
    "submit_job": {"lead"},
    "clone_job": {"lead"},
    "byoc": set(),
    "server-predeployed-flwr": set(),
    CommandCategory.MANAGE_JOB: {"project_admin", "org_admin", "lead"},
    CommandCategory.DOWNLOAD_JOB: {"lead"},
    CommandCategory.VIEW: set(ROLES),
    CommandCategory.OPERATE: {"project_admin"},
    CommandCategory.SHELL_COMMANDS: set(),
}
AT_SITE = {**AT_SERVER, CommandCategory.OPERATE: set(), CommandCategory.DOWNLOAD_JOB: set()}


@pytest.mark.parametrize(("name", "wanted"), [(SERVER, AT_SERVER), (SITE, AT_SITE)])
def test_who_has_which_right(kits: Path, name: str, wanted: dict[str, set[str]]) -> None:
    for right in {*COMMAND_CATEGORIES, "submit_job", "clone_job", "byoc", "server-predeployed-flwr"}:
        found = {role for role in ROLES if may(kits / name, right, role)}
        assert found == wanted[COMMAND_CATEGORIES.get(right, right)], right


@pytest.mark.parametrize("name", [SERVER, SITE])
def test_every_right_of_every_role_is_written_out(kits: Path, name: str) -> None:
    roles = loaded(kits / name, "authorization.json")["permissions"]
    assert {role: set(rights) for role, rights in roles.items()} == {role: set(AT_SERVER) for role in ROLES}


def test_what_has_no_category_and_no_name_of_its_own_nobody_may(kits: Path) -> None:
    commands = {value for key, value in vars(AdminCommandNames).items() if key.isupper()}
    for right in commands - set(COMMAND_CATEGORIES) - set(AT_SERVER):
        assert nobody(kits / SERVER, right), right


def test_a_researcher_reaches_only_their_own_jobs(kits: Path) -> None:
    for right in ("download_job", "abort_job", "delete_job", "clone_job"):
        assert may(kits / SERVER, right, "lead", user="a", submitter="a")
        assert not may(kits / SERVER, right, "lead", user="a", submitter="b")


def test_the_server_is_looked_after_by_its_own_organisation(kits: Path) -> None:
    assert may(kits / SERVER, "shutdown", "project_admin")
    assert not may(kits / SERVER, "shutdown", "project_admin", own=False)


# ----------------------------------------------------------------------------------------------- what FLARE makes of it


def allowed(kit: Path, path: str) -> bool:
    try:
        ComponentPathAuthorizer().authorize_component_config({"path": path}, workspace=Workspace(str(kit)))
    except UnsafeComponentError:
        return False
    return True


def test_flare_lets_a_job_build_our_classes_and_no_others(kits: Path) -> None:
    ours = {SERVER: {CONTROLLER, AGGREGATOR}, SITE: {EXECUTOR}}
    tried = {CONTROLLER, AGGREGATOR, EXECUTOR, *DEFAULT_CLASS_ALLOW_LIST, files.SHUTTERS, files.STORAGE}
    for name, wanted in ours.items():
        assert {path for path in tried if allowed(kits / name, path)} == wanted


def test_a_name_that_begins_like_ours_is_not_ours(kits: Path) -> None:
    for name in (f"{EXECUTOR}2", EXECUTOR[:-1], EXECUTOR.rpartition(".")[0]):
        assert not allowed(kits / SITE, name)
    # FLARE takes each entry for a prefix at a dot. There is nothing behind ours: a class is no module.
    assert allowed(kits / SITE, f"{EXECUTOR}.inner")
    with pytest.raises(Exception, match="not a package"):
        load_class(f"{EXECUTOR}.inner")


@pytest.mark.parametrize("name", [SERVER, SITE])
def test_every_class_of_a_kit_can_be_loaded(kits: Path, name: str) -> None:
    text = json.dumps([resources(kits / name), loaded(kits / name, "privacy.json")])
    paths = re.findall(r'"path": "([^"]+)"', text)
    assert len(paths) >= 5
    for path in [*paths, *resources(kits / name)["class_allow_list"]]:
        assert callable(load_class(path))


def test_flare_falls_back_to_the_hardened_files(kits: Path) -> None:
    workspace = Workspace(str(kits / SITE))
    assert workspace.get_resources_file_path().endswith("resources.json.default")
    assert workspace.get_authorization_file_path().endswith("authorization.json.default")
    assert Path(workspace.get_site_privacy_file_path()).exists()


@pytest.mark.parametrize("name", ["fed_client.json", "client.crt", "client.key", "rootCA.pem", "sub_start.sh"])
def test_a_changed_file_of_a_start_up_folder_is_found(kits: Path, tmp_path: Path, name: str) -> None:
    kit = Path(shutil.copytree(kits / SITE, tmp_path / SITE))
    assert signed(kit)
    file = kit / "startup" / name
    file.write_bytes(file.read_bytes().replace(b"e", b"f", 1))
    assert not signed(kit)


def test_flare_does_not_start_from_a_changed_kit(kits: Path, tmp_path: Path) -> None:
    kit = Path(shutil.copytree(kits / SITE, tmp_path / SITE))
    file = kit / "startup" / "fed_client.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"mtls"', '"clear"'), encoding="utf-8")
    done = subprocess.run(
        [str(kit / "startup" / "sub_start.sh"), "--once"], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "FF-KIT-CHANGED" in done.stderr
    assert "startup/fed_client.json" in done.stderr
    assert "Start NVFlare" not in done.stdout


# ------------------------------------------------------------------------------------------------------- wrong projects


def first(project: dict[str, Any]) -> None:
    project["builders"].insert(0, next(one for one in project["builders"] if one["path"] == BUILDER))


def test_a_builder_in_the_wrong_place_makes_no_kits(tmp_path: Path) -> None:
    done = nvflare(tmp_path, changed(tmp_path, first))
    assert done.returncode != 0
    assert "after CertBuilder" in done.stdout + done.stderr
    assert list((tmp_path / "kits" / "fairflare").glob("prod_*")) == []


class Parties:
    """What the builder asks a project for before it makes anything."""

    def __init__(self, *names: str, relays: int = 0, listens: bool = False) -> None:
        host = object() if listens else None
        self.sites = [SimpleNamespace(name=name, get_listening_host=lambda: host) for name in names]
        self.relays = [object()] * relays

    def get_clients(self) -> list[Any]:
        return self.sites

    def get_relays(self) -> list[Any]:
        return self.relays


@pytest.mark.parametrize(
    ("parties", "got"),
    [
        (Parties("hospital-1", relays=1), "relays: got one"),
        (Parties("hospital-1", listens=True), "hospital-1: got listening_host"),
        (Parties("hospital-1", "server"), "server: got a name"),
        (Parties("-hospital"), "-hospital: got a name"),
    ],
)
def test_parties_that_would_stay_open_are_refused(parties: Parties, got: str) -> None:
    with pytest.raises(ValueError, match=got):
        HardeningBuilder().build(parties, {CtxKey.ROOT_PRI_KEY: object()})


def test_under_any_umask_nobody_else_may_put_a_kit_in_place_of_another(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        done = nvflare(tmp_path, PROJECT.relative_to(ROOT))
    finally:
        os.umask(mask)
    assert done.returncode == 0
    kits = tmp_path / "kits" / "fairflare"
    assert [path for path in (kits, *kits.rglob("*")) if path.stat().st_mode & 0o022] == []


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"heartbeat_seconds": 11}, "heartbeat_seconds: got 11"),
        ({"heartbeat_seconds": "60"}, "heartbeat_seconds: got '60'"),
        ({"heartbeat_seconds": True}, "heartbeat_seconds: got True"),
        ({"schedule_tries": 0}, "schedule_tries: got 0"),
        ({"store": "fairflare"}, "store: got no absolute path"),
        ({"store": 5}, "store: got no absolute path"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(arguments: dict[str, Any], got: str) -> None:
    with pytest.raises(ValueError, match=got):
        HardeningBuilder(**arguments)


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(TypeError):
        HardeningBuilder(heartbeat=60)


def test_another_start_script_than_flares_is_refused(kits: Path, tmp_path: Path) -> None:
    script = tmp_path / "sub_start.sh"
    script.write_text("#!/bin/sh\nexec python3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not that of NVIDIA FLARE"):
        files.harden_start(tmp_path)
