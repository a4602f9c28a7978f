# SPDX-License-Identifier: Apache-2.0
"""Each rule: a good kit and job on which nothing is found, and breaks of one thing that exactly this rule finds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from fairflare import schema
from fairflare.audit.auditor import audit_job, audit_kit
from fairflare.audit.findings import Report
from fairflare.audit.folder import Entry, Folder
from fairflare.audit.rule import Check, Outcome, Severity
from fairflare.audit.rules import RULES
from fairflare.he.parameters import SMALL
from fairflare.plan import Plan
from tests.unit.audit import kits
from tests.unit.audit.kits import Authority, edit, edit_policy
from tests.unit.he.contexts import contexts

RESOURCES = "local/resources.json.default"
AUTHORIZATION = "local/authorization.json.default"


@dataclass(frozen=True)
class Case:
    """A broken kit or job; ``part`` is what is broken, ``worst`` the severity of the worst finding (None: a doubt)."""

    rule: str
    name: str
    part: str
    spoil: Callable[..., Any]
    worst: str | None


CASES: list[Case] = []


def case(rule: str, name: str, part: str = "site", worst: str | None = "") -> Callable[[Any], Any]:
    """Add a case; ``worst`` is by default the rule's own severity."""

    def add(spoil: Callable[..., Any]) -> Callable[..., Any]:
        CASES.append(Case(f"FFA-{rule}", name, part, spoil, RULES[f"FFA-{rule}"].severity if worst == "" else worst))
        return spoil

    return add


def resources(change: Callable[[Any], None]) -> Callable[[Path, Authority], None]:
    return lambda kit, _: edit(kit / RESOURCES, change)


def rights(role: str, right: str, who: Any) -> Callable[[Path, Authority], None]:
    return lambda kit, _: edit(kit / AUTHORIZATION, lambda data: data["permissions"][role].update({right: who}))


def scopes(change: Callable[[Any], None]) -> Callable[[Path, Authority], None]:
    return lambda kit, _: edit(kit / "local/privacy.json", change)


def policy(**changes: Any) -> Callable[[Path, Authority], None]:
    return lambda kit, _: edit_policy(kit, **changes)


def startup(change: Callable[[Any], None], file: str = "fed_client.json") -> Callable[[Path, Authority], None]:
    def spoil(kit: Path, authority: Authority) -> None:
        edit(kit / "startup" / file, change)
        authority.sign(kit)

    return spoil


def write(name: str, text: str = "{}") -> Callable[[Path, Authority], None]:
    def spoil(kit: Path, _: Authority) -> None:
        (kit / name).parent.mkdir(mode=0o700, exist_ok=True)
        (kit / name).write_text(text, encoding="utf-8")
        (kit / name).chmod(0o600)

    return spoil


def mode(name: str, bits: int) -> Callable[[Path, Authority], None]:
    return lambda kit, _: (kit / name).chmod(bits)


def without_component(name: str) -> Callable[[Path, Authority], None]:
    def change(data: Any) -> None:
        data["components"] = [one for one in data["components"] if one["id"] != name]

    return resources(change)


def component(path: str, **more: Any) -> Callable[[Any], None]:
    return lambda data: data["components"].append({"id": "another", "path": path, "args": {}, **more})


def shutters(change: Callable[[Any], None]) -> Callable[[Path, Authority], None]:
    return resources(lambda data: change(next(one for one in data["components"] if one["id"] == "shutters")))


# ------------------------------------------------------------------------------------------------- 1 connection, files

case("100", "a pipe", worst=None)(lambda kit, _: os.mkfifo(kit / "local" / "pipe", 0o600))
case("100", "a link out of the kit", worst=None)(lambda kit, _: (kit / "local" / "way").symlink_to("/etc/passwd"))
case("100", "a job with a pipe", "job", worst=None)(lambda job: os.mkfifo(job / "app" / "config" / "pipe"))
case("101", "no TLS")(startup(lambda data: data["client"].update(connection_security="clear")))
case("101", "TLS of one side")(startup(lambda data: data["client"].update(connection_security="tls")))
case("101", "a server without", "server")(
    startup(lambda data: data["servers"][0].update(connection_security="clear"), "fed_server.json")
)
case("101", "a person without", "person")(
    lambda kit, _: edit(kit / "startup/fed_admin.json", lambda data: data["admin"].update(connection_security="clear"))
)
case("101", "a relay without")(
    write("local/relay__resources.json", json.dumps({"relay_config": {"connection_security": "clear"}}))
)
case("101", "job processes on another host", worst="high")(
    write("local/comm_config.json", json.dumps({"internal": {"resources": {"host": "10.0.0.7"}}}))
)
case("101", "job processes that listen to every host", worst="high")(
    write("local/comm_config.json", json.dumps({"internal": {"resources": {"listen_host": "0.0.0.0"}}}))  # noqa: S104
)
case("101", "sites that speak to one another", worst="high")(
    write("local/comm_config.json", json.dumps({"allow_adhoc_conns": True}))
)
case("102", "a changed script")(write("startup/start.sh", "#!/bin/sh\n"))
case("102", "another file")(write("startup/more.sh", "#!/bin/sh\n"))
case("102", "no signatures")(lambda kit, _: (kit / "startup/signature.json").unlink())
case("102", "a file that is gone")(lambda kit, _: (kit / "startup/stop_fl.sh").unlink())
case("102", "a server's script", "server")(write("startup/start.sh", "#!/bin/sh\n"))
case("102", "a broken list", worst=None)(write("startup/signature.json", "{"))
case("103", "expired")(lambda kit, root: root.reissue(kit, timedelta(-9), timedelta(-1)))
case("103", "a wrong clock")(lambda kit, root: root.reissue(kit, timedelta(1), timedelta(90)))
case("103", "soon", worst="medium")(lambda kit, root: root.reissue(kit, timedelta(-9), timedelta(20)))
case("103", "of another root")(
    lambda kit, root: root.reissue(kit, timedelta(-9), timedelta(90), rsa.generate_private_key(65537, 2048))
)
case("103", "a server's", "server")(lambda kit, root: root.reissue(kit, timedelta(-9), timedelta(-1), name="server"))
case("104", "a key for all")(mode("startup/client.key", 0o640))
case("104", "a person's key for all", "person")(mode("startup/client.key", 0o604))
case("104", "another key", worst="critical")(write("local/more.pem", "-----BEGIN RSA PRIVATE KEY-----\n"))
case("104", "the project's key", "server", worst="critical")(write("transfer/rootCA.key", "x"))
case("105", "a file for all")(mode("local/privacy.json", 0o620))
case("105", "a folder for all")(mode("local", 0o722))
case("105", "the kit itself", "server")(mode(".", 0o702))


@case("106", "logs for all", worst="low")
def _open_folders(kit: Path, _: Authority) -> None:
    kit.chmod(0o711)
    (kit / "local").chmod(0o711)
    (kit / "local/privacy.json").chmod(0o604)


case("107", "a sub-folder")(write("local/old/resources.json"))
case("107", "another ending")(write("local/privacy.yml"))
case("107", "a server's", "server")(write("local/authorization.conf"))
# FLARE searches the whole workspace for its sections, so a list of classes, and for the connections.
case("107", "beside local")(write("resources.json", '{"class_allow_list": ["*"]}'))
case("107", "in any folder")(write("old/resources.json", '{"class_allow_list": ["*"]}'))
case("107", "of the startup folder in another one")(write("local/fed_client.json"))
case("107", "connections with another ending")(write("local/comm_config.yml", "comm_driver_path: /opt/drivers\n"))
case("107", "connections in a sub-folder")(write("local/old/comm_config.json", '{"comm_driver_path": "/opt"}'))
case("107", "a fallback for connections")(write("local/comm_config.json.default", '{"allow_adhoc_conns": true}'))

# ------------------------------------------------------------------------------------------------------------- 2 code

case("201", "a role")(rights("lead", "byoc", "any"))
case("201", "a list")(rights("lead", "byoc", ["none", "o:site"]))
case("201", "not none is everybody")(rights("member", "BYOC ", "not none"))
case("201", "at the server", "server")(rights("project_admin", "byoc", "n:submitter"))
case("201", "other code", "server")(rights("org_admin", "server-predeployed-flwr", "any"))
case("202", "switched off")(startup(lambda data: data.update(require_signed_jobs=False)))
case("202", "at the server", "server")(startup(lambda data: data.update(require_signed_jobs=False), "fed_server.json"))
case("203", "a component")(resources(component("nvflare.app_common.widgets.convert_to_fed_event.ConvertToFedEvent")))
case("203", "in arguments", "server")(
    resources(lambda data: data["components"][1]["args"].update(more={"path": "os.system", "args": {}}))
)
case("203", "in another file")(
    write("local/x__resources.json", json.dumps({"components": [{"id": "x", "path": "a.B", "args": {}}]}))
)
case("203", "in arguments, by its name", "server")(
    resources(lambda data: data["components"][1]["args"].update(more={"name": "PTFileModelPersistor", "args": {}}))
)
case("203", "code in the kit")(write("local/custom/mine.py", ""))
case("203", "in the privacy scope")(scopes(lambda data: data["scopes"][0].update(task_data_filters=[{"name": "X"}])))
case("203", "beside the privacy scope")(scopes(lambda data: data.update(components=[{"id": "x", "path": "a.B"}])))
case("203", "drivers")(write("local/comm_config.json", '{"comm_driver_path": "/opt/drivers"}'))
case("203", "a module that is no name")(resources(component("a-b.C")))
case("205", "a number for a truth value")(resources(lambda data: data["app_validator"]["args"].update(policy=1)))
case("204", "a wildcard", worst="critical")(resources(lambda data: data["class_allow_list"].append("*")))
case("204", "a prefix", worst="critical")(resources(lambda data: data["class_allow_list"].append("nvflare.")))
case("204", "another class")(resources(lambda data: data["class_allow_list"].append("nvflare.app_common.np.Np")))
case("204", "no list", "server")(resources(lambda data: data.pop("class_allow_list")))
case("204", "a warning only", worst="critical")(resources(lambda data: data.update(class_list_enforcement_mode="warn")))
case("205", "none")(resources(lambda data: data.pop("app_validator")))
case("205", "another", "server")(resources(lambda data: data["app_validator"].update(path="fairflare.jobs.Other")))
case("205", "disabled")(resources(lambda data: data["app_validator"].update(disabled=True)))
case("205", "without a policy")(resources(lambda data: data["app_validator"].update(args={"policy": False})))
case("205", "two")(write("local/x__resources.json", json.dumps({"app_validator": {"args": {"policy": False}}})))
case("206", "none")(resources(lambda data: data["components"].pop(0)))
case("206", "disabled")(shutters(lambda one: one.update(disabled=True)))
case("206", "with arguments")(shutters(lambda one: one.update(args={"open": True})))
case("206", "the right to the shell", worst="high")(rights("lead", "shell_commands", "o:site"))
case("206", "one command", worst="high")(rights("lead", "cat", "any"))
case("206", "at the server", "server", worst="high")(rights("lead", "shell_commands", "any"))


case("207", "no look at the certificate")(without_component("kit"))
case("207", "no intake", "server")(without_component("intake"))
case("207", "no notes of refusals", "server")(without_component("vetoes"))
case("207", "no limits of messages", "server")(without_component("limits"))
case("207", "no limit of the disk", "server")(without_component("quota"))


@case("206", "in job processes only")
def _elsewhere(kit: Path, _: Authority) -> None:
    taken: list[Any] = []
    edit(kit / RESOURCES, lambda data: taken.append(data["components"].pop(0)))
    write("local/x__j_resources.json", json.dumps({"components": taken}))(kit, _)


# ----------------------------------------------------------------------------------------------------- 3 gate, policy

FILTERS = "task_result_filters"
case("301", "none")(scopes(lambda data: data["scopes"][0].update({FILTERS: []})))
case("301", "the other direction")(scopes(lambda data: data["scopes"][0][FILTERS][0].update(direction="in")))
case("301", "disabled")(scopes(lambda data: data["scopes"][0][FILTERS][0].update(disabled=True)))
case("301", "one more")(scopes(lambda data: data["scopes"][0][FILTERS].append({"path": "a.B", "args": {}})))
case("303", "no default")(scopes(lambda data: data.update(default_scope=None)))
case("303", "two")(scopes(lambda data: data["scopes"].append({**data["scopes"][0], "name": "other"})))
case("304", "a data set", "both")(policy(data_sets=("skin",)))
case("304", "an attribute", "both")(policy(attributes=("age",)))
case("304", "a method", "both")(policy(methods=("fedavg",)))
case("305", "none", worst="medium")(lambda kit, _: (kit / "local/site_policy.json").unlink())
case("305", "broken")(write("local/site_policy.json", '{"format": "fairflare/policy/1"}'))
case("305", "over", worst="medium")(policy(expires="2020-01-01"))
case("305", "another package", worst="medium")(policy(package="ab" * 32))
case("306", "none")(lambda kit, _: (kit / "local/data_catalog.json").unlink())
case("306", "broken", worst="high")(write("local/data_catalog.json"))
case("307", "any plan")(policy(plans=None))
case("307", "another plan", "both")(policy(plans=("0" * 64,)))

# ------------------------------------------------------------------------------------------------------- 4 to 6, sums

BUDGET = {"epsilon": 3.0, "delta": 1e-5, "relation": "add_remove"}
case("401", "asked for", "both")(policy(differential_privacy=BUDGET))
case("402", "a budget that promises nothing")(policy(differential_privacy={**BUDGET, "epsilon": 9.0}))
case("403", "a promise that may fail")(policy(differential_privacy={**BUDGET, "delta": 2e-5}))
case("407", "a ledger that is gone")(write("anchors/ledger-heart", f"{'ab' * 32}\n"))
case("501", "small cells")(policy(cells_minimum=5))
case("501", "cells of two sites", worst="medium")(policy(cells_sites=2))
case("501", "a plan with smaller cells", "both")(policy(cells_minimum=20))
case("502", "fine histograms", "both")(policy(most_score_bins=100))
case("502", "no risks", "both")(policy(metrics=()))
case("601", "in clear")(policy(protection={"update": "none", "statistics": "masked"}))
case("601", "two sites")(policy(least_sites=2))
case("602", "made up")(policy(identities="development"))
case("602", "no pins", worst="medium")(policy(peers=None))
case("603", "another pin")(
    lambda kit, _: edit(kit / "local/site_policy.json", lambda data: data["peers"].update({"hospital-2": "0" * 64}))
)
case("603", "a missing pin", worst="medium")(
    lambda kit, _: edit(kit / "local/site_policy.json", lambda data: data["peers"].pop("hospital-2"))
)
case("603", "a broken roster", worst=None)(write("local/roster.json", "[]"))
case("604", "changes of cohort")(policy(cohort_changes=1))
case("605", "more colluders", "both")(policy(colluders=2))
case("605", "coarser weights", "both")(policy(weight_unit=100))

# ------------------------------------------------------------------------------------------------- 7, 8 logs, operation

case("701", "streaming")(resources(lambda data: data.update(allow_log_streaming=True)))
case("701", "by default")(resources(lambda data: data.pop("allow_log_streaming")))
case("701", "a streamer")(resources(component("nvflare.app_common.logging.site_log_streamer.SiteLogStreamer")))
case("701", "a receiver", "server")(resources(component("nvflare.app_common.logging.job_log_receiver.JobLogReceiver")))
LOG = "local/log_config.json"
case("701", "a handler that sends")(write(LOG, '{"handlers": {"x": {"class": "logging.handlers.HTTPHandler"}}}'))
case("701", "a handler of somebody's", "server")(write(LOG, '{"handlers": {"x": {"()": "evil.Handler"}}}'))
case("701", "an object of somebody's")(write(LOG, '{"handlers": {"x": {"stream": "ext://evil.stream"}}}'))
case("701", "broken", worst=None)(write(LOG, "{"))
case("802", "more sites", "both")(policy(least_sites=4))
case("803", "fewer rounds", "both")(policy(most_rounds=5))
case("804", "in a shared folder")(policy(store="/tmp/fairflare"))  # noqa: S108
case("804", "snapshots", "server")(
    resources(lambda data: data["snapshot_persistor"]["args"]["storage"]["args"].update(root_dir="/tmp/nvflare"))  # noqa: S108
)
case("805", "late", "server")(resources(lambda data: data["servers"][0].update(heart_beat_timeout=600)))
case("805", "FLARE's own", "server")(resources(lambda data: data["servers"][0].pop("heart_beat_timeout")))


@case("101", "a part that is no object", worst=None)
def _no_client(kit: Path, authority: Authority) -> None:
    edit(kit / "startup/fed_client.json", lambda data: data.update(client=[]))
    authority.sign(kit)


case("101", "a broken configuration of cells", worst=None)(write("local/comm_config.json", "{"))


@case("104", "no key", worst=None)
def _no_key(kit: Path, authority: Authority) -> None:
    (kit / "startup/client.key").unlink()
    authority.sign(kit)


@case("104", "a link instead of a key", worst=None)
def _linked_key(kit: Path, authority: Authority) -> None:
    (kit / "startup/client.key").unlink()
    (kit / "startup/client.key").symlink_to("client.crt")
    authority.sign(kit)


case("204", "no list of classes", worst=None)(resources(lambda data: data.update(class_allow_list="nvflare")))
case("301", "no list of filters", worst=None)(scopes(lambda data: data["scopes"][0].update({FILTERS: {}})))


def context(place: str, data: str, record: str = "", bits: int = 0o600) -> Callable[[Path, Authority], None]:
    """A context in a kit, with the record that it needs, or another one."""

    def spoil(kit: Path, authority: Authority) -> None:
        made, file = contexts(SMALL), kit / place
        named = made.record.model_copy(update={"context_sha256": "0" * 64}) if record == "of another" else made.record
        file.write_bytes(b"no context" if data == "broken" else getattr(made, data))
        file.chmod(bits)
        if record != "none":
            (file.parent / "he.json").write_text(schema.pretty(named), encoding="utf-8")
            (file.parent / "he.json").chmod(0o600)
        if place.startswith("startup"):
            authority.sign(kit)

    return spoil


case("606", "the hospitals' key", "server")(context("local/server_context.tenseal", "client"))
case("606", "the hospitals' file", "server")(context("startup/client_context.tenseal", "client"))
case("606", "at a person's", "person")(context("local/client_context.tenseal", "client"))
case("606", "no context", "server", worst=None)(context("local/server_context.tenseal", "broken"))
case("607", "one key, by design", worst="low")(context("startup/client_context.tenseal", "client"))
case("607", "made by a hospital", worst="low")(context("local/client_context.tenseal", "client"))
case("607", "without a record", worst="medium")(context("local/client_context.tenseal", "client", "none"))
case("607", "a record of another key")(context("local/client_context.tenseal", "client", "of another"))
case("607", "no context")(context("local/client_context.tenseal", "broken"))


@case("607", "two keys", worst="medium")
def _two_keys(kit: Path, authority: Authority) -> None:
    for part in ("startup", "local"):
        context(f"{part}/client_context.tenseal", "client")(kit, authority)


@case("603", "a roster of another project")
def _other_roster(kit: Path, _: Authority) -> None:
    for file, key in (("roster", "sites"), ("site_policy", "peers")):
        edit(kit / f"local/{file}.json", lambda data, key=key: data[key].update({"hospital-1": "0" * 64}))


case("805", "no server", "server", worst=None)(resources(lambda data: data.update(servers=[])))


def found(report: Report) -> set[str]:
    """Rules that did not hold or were not decided."""
    return {one.rule.id for one in report.findings} | {one.rule.id for one in report.undecided}


NAMES = {"site": kits.SITE, "server": kits.SERVER, "person": kits.PERSON, "both": kits.SITE}


@pytest.mark.parametrize("part", ["site", "server", "person"])
def test_nothing_is_found_in_a_good_kit(hardened, part):
    report = audit_kit(hardened / "prod_00" / NAMES[part])
    assert (report.findings, report.undecided) == ((), ())
    assert report.exit_status(Severity.low) == 0


def test_nothing_is_found_in_a_good_job_at_a_good_site(hardened, tmp_path):
    report = audit_job(kits.good_job(tmp_path), kit=hardened / "prod_00" / kits.SITE)
    assert (report.findings, report.undecided) == ((), ())
    # All rules but those of the server's kit, of keys and of private training were applied.
    private = ["FFA-402", "FFA-403", "FFA-405", "FFA-407", "FFA-409", "FFA-410"]
    assert [one.rule.id for one in report.not_checked] == [*private, "FFA-606", "FFA-607", "FFA-805"]


@pytest.mark.parametrize("one", CASES, ids=lambda one: f"{one.rule} {one.name}")
def test_one_broken_thing_is_found_by_exactly_its_rule(hardened, tmp_path, one):
    if one.part == "job":
        job = kits.good_job(tmp_path)
        one.spoil(job)
        report = audit_job(job)
        assert one.rule in found(report)
    else:
        kit = kits.copy(hardened, NAMES[one.part], tmp_path)
        one.spoil(kit, Authority(hardened))
        report = audit_job(kits.good_job(tmp_path / "jobs"), kit=kit) if one.part == "both" else audit_kit(kit)
        assert found(report) == {one.rule}
    worst = report.findings[0].severity.value if report.findings and one.part != "job" else None
    assert worst == one.worst
    assert report.exit_status(Severity.low) == (1 if report.findings else 2)


def test_the_servers_own_context_is_as_it_should_be(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SERVER, tmp_path)
    context("startup/server_context.tenseal", "server")(kit, Authority(hardened))
    assert found(audit_kit(kit)) == set()


@pytest.mark.parametrize("part", ["startup", "local"])
def test_a_hospitals_key_that_others_can_read_is_a_key_that_they_have(hardened, tmp_path, part):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    context(f"{part}/client_context.tenseal", "client", bits=0o644)(kit, Authority(hardened))
    report = audit_kit(kit)
    assert ("FFA-104", Severity.high) in {(one.rule.id, one.severity) for one in report.findings}
    text = " ".join(f"{one.got} {one.allowed}" for one in report.findings if one.rule.id == "FFA-607")
    assert "the same at every hospital, by design" in text
    assert "with the server it opens totals" in text


def test_a_store_inside_the_kit_is_one_that_flare_may_erase(hardened, tmp_path, monkeypatch):
    monkeypatch.setattr("fairflare.audit.rules.operation._SHARED", ())
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    (tmp_path / "link").symlink_to(kit)
    for store in (kit / "store", tmp_path / "link" / "store"):
        edit_policy(kit, store=str(store))
        assert found(audit_kit(kit)) == {"FFA-804"}
    edit_policy(kit, store=str(tmp_path / "store"))
    assert found(audit_kit(kit)) == set()


OPEN = {
    ("site", "startup/fed_client.json"): {"101", "202", "203", "205", "206", "207", "701"},
    ("site", "startup/client.crt"): {"103"},
    ("site", "startup/rootCA.pem"): {"102", "103"},
    ("site", RESOURCES): {"101", "203", "204", "205", "206", "207", "701"},
    ("server", RESOURCES): {"101", "203", "204", "205", "207", "701", "804", "805"},
    ("site", AUTHORIZATION): {"201", "206"},
    ("site", "local/privacy.json"): {"301", "303"},
    ("site", "local/log_config.json.default"): {"701"},
}


@pytest.mark.parametrize(("part", "file"), OPEN)
def test_a_file_that_cannot_be_read_leaves_every_rule_open_that_needs_it(hardened, tmp_path, part, file):
    kit = kits.copy(hardened, NAMES[part], tmp_path)
    (kit / file).write_text("{", encoding="utf-8")
    if file != "startup/rootCA.pem":
        Authority(hardened).sign(kit)
    assert {one.rule.id.removeprefix("FFA-") for one in audit_kit(kit).undecided} == OPEN[part, file]


def test_a_file_of_another_owner_is_found(hardened, tmp_path, monkeypatch):
    monkeypatch.setattr("fairflare.audit.folder.Folder.owner", -1)
    assert "FFA-104" in found(audit_kit(hardened / "prod_00" / kits.SITE))


@pytest.mark.parametrize(("owner", "wanted"), [(0, set()), (12_345, {"FFA-105"})])
def test_a_file_that_another_user_owns_is_one_that_another_user_can_change(hardened, monkeypatch, owner, wanted):
    found_by = Folder._stat
    own = os.getuid()

    def stat(folder: Folder, name: str) -> Entry:
        return replace(found_by(folder, name), owner=owner if name == "local/privacy.json" else own)

    monkeypatch.setattr(Folder, "_stat", stat)
    assert found(audit_kit(hardened / "prod_00" / kits.SITE)) == wanted


def test_what_could_not_be_searched_leaves_open_what_flare_reads(hardened, monkeypatch):
    monkeypatch.setattr("fairflare.audit.folder.MOST_NAMES", 5)
    report = audit_kit(hardened / "prod_00" / kits.SITE)
    assert ({one.rule.id for one in report.undecided}, report.findings) == ({"FFA-107", "FFA-407"}, ())


def test_a_short_key_is_found(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    Authority(hardened).reissue(kit, timedelta(-9), timedelta(90), public=rsa.generate_private_key(65537, 1024))  # noqa: S505
    assert {"FFA-103", "FFA-603"} <= found(audit_kit(kit))


def test_a_role_with_all_rights_has_the_shell_and_brings_code(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    edit(kit / AUTHORIZATION, lambda data: data["permissions"].update(project_admin="any"))
    assert found(audit_kit(kit)) == {"FFA-201", "FFA-206"}


def test_without_a_root_certificate_jobs_need_not_be_signed(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    edit(kit / "startup/fed_client.json", lambda data: data.pop("require_signed_jobs"))
    Authority(hardened).sign(kit)
    assert found(audit_kit(kit)) == set()  # FLARE's default, as long as there is a root
    (kit / "startup/rootCA.pem").unlink()
    assert "FFA-202" in {one.rule.id for one in audit_kit(kit).findings}


def test_without_a_privacy_file_there_is_no_seal_and_every_scope(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    (kit / "local/privacy.json").unlink()
    assert {one.rule.id for one in audit_kit(kit).findings} == {"FFA-301", "FFA-303"}


def test_a_catalogue_behind_a_link_is_not_followed(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    (kit / "local/data_catalog.json").rename(tmp_path / "elsewhere")
    (kit / "local/data_catalog.json").symlink_to(tmp_path / "elsewhere")
    assert {one.rule.id for one in audit_kit(kit).undecided} == {"FFA-100", "FFA-306"}


def test_a_job_of_two_sites_is_too_small_without_any_policy(tmp_path):
    report = audit_job(kits.good_job(tmp_path, JOB_BREAKS["FFA-802"](kits.good_plan())))
    assert {"FFA-601", "FFA-802"} == found(report)


def test_a_plan_that_cannot_be_read_leaves_its_rules_open(hardened, tmp_path):
    job = kits.good_job(tmp_path)
    (job / "app/config/plan.json").write_text("{}", encoding="utf-8")
    report = audit_job(job, kit=hardened / "prod_00" / kits.SITE)
    open_ = {"304", "307", "401", "402", "405", "409", "410", "501", "502", "503", "601", "605", "802", "803"}
    assert {one.rule.id.removeprefix("FFA-") for one in report.undecided} == open_
    assert {one.rule.id for one in report.findings} == {"FFA-203"}


JOB_BREAKS: dict[str, Callable[[Plan], Plan]] = {
    "FFA-503": lambda plan: plan.model_copy(update={"consents": ("open_hospital_risks",)}),
    "FFA-601": lambda plan: plan.model_copy(
        update={"protection": plan.protection.model_validate(
            {"update": "none", "statistics": "none", "masking": None}
        )}
    ),
    "FFA-802": lambda plan: plan.model_copy(
        update={
            "federation": plan.federation.model_copy(update={"min_sites": 2}),
            "protection": plan.protection.model_validate({"update": "none", "statistics": "none", "masking": None}),
        }
    ),
}  # fmt: skip


def test_every_rule_is_in_the_table():
    # Rules of private jobs have cases of their own (test_privacy_budget).
    assert {one.rule for one in CASES} | set(JOB_BREAKS) | {"FFA-405", "FFA-409", "FFA-410"} == set(RULES)


def test_a_consent_that_the_policy_does_not_give(hardened, tmp_path):
    plan = JOB_BREAKS["FFA-503"](kits.good_plan())
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    edit_policy(kit, plans=(plan.sha256,))
    assert found(audit_job(kits.good_job(tmp_path / "jobs", plan), kit=kit)) == {"FFA-503"}


def test_a_plan_in_clear_is_critical_without_any_policy(tmp_path):
    report = audit_job(kits.good_job(tmp_path, JOB_BREAKS["FFA-601"](kits.good_plan())))
    assert found(report) == {"FFA-601"}
    assert {one.severity for one in report.findings} == {Severity.critical}


def test_a_rule_that_breaks_has_passed_nothing(hardened, monkeypatch):
    def broken(_: object) -> list[Outcome]:
        raise ZeroDivisionError("/home/somebody")

    rule = replace(RULES["FFA-106"], checks=(Check(("site",), broken),))
    monkeypatch.setattr("fairflare.audit.auditor.RULES", {rule.id: rule})
    report = audit_kit(hardened / "prod_00" / kits.SITE)
    assert report.exit_status(Severity.low) == 2
    assert [one.reason for one in report.undecided] == [
        "the rule could not be applied to these files (ZeroDivisionError)"
    ]
    assert report.hold == ()


def test_rights_that_cannot_be_read_are_no_pass(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    edit(kit / AUTHORIZATION, lambda data: data.pop("permissions"))
    assert {one.rule.id for one in audit_kit(kit).undecided} == {"FFA-201", "FFA-206"}


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_a_rule_says_what_a_person_must_know(rule):
    for text in (rule.why, rule.remedy):
        assert text.endswith(".")
        assert len(text) < 160
    assert rule.title
    assert rule.standard
    assert rule.targets
