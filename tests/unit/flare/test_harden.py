# SPDX-License-Identifier: Apache-2.0
"""A kit that its holder made is hardened by its holder; afterwards nothing in it may change unseen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairflare.audit.auditor import audit_kit
from fairflare.cli import app
from fairflare.errors import KitError
from fairflare.flare.harden import add_to_roster, harden_own
from fairflare.flare.kit import KitCheck
from fairflare.flare.kit_manifest import MANIFEST_NAME
from fairflare.flare.kit_state import verify_start
from fairflare.flare.provision_files import Settings
from fairflare.policy.roster import read_roster
from fairflare.secagg.identity import key_hash
from tests.unit.audit import kits as provisioned
from tests.unit.flare import own_kits
from tests.unit.flare.own_kits import PERSON, SERVER, SITE

NAMES = (SITE, SERVER, PERSON)
OTHER = "ab" * 32


@pytest.fixture(scope="module", autouse=True)
def _removed() -> Iterator[None]:
    yield
    own_kits.remove()


@pytest.fixture(scope="module")
def hardened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kits of a site and of the server, hardened."""
    folder = tmp_path_factory.mktemp("hardened")
    for name in NAMES:
        harden_own(own_kits.packaged(name, folder), Settings())
    return folder


@pytest.fixture
def kit(hardened: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hardened / SITE, tmp_path / SITE))


def contents(kit: Path) -> dict[str, tuple[bytes, int]]:
    files = [file for file in kit.rglob("*") if file.is_file()]
    return {file.relative_to(kit).as_posix(): (file.read_bytes(), file.stat().st_mode) for file in files}


@pytest.mark.parametrize("name", NAMES)
def test_hardening_twice_gives_the_same_bytes(name: str, hardened: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(hardened / name, tmp_path / name))
    before = contents(copy)
    harden_own(copy, Settings())
    assert contents(copy) == before


@pytest.mark.parametrize("name", [SITE, SERVER])
def test_a_hardened_kit_may_start_and_one_that_is_not_may_not(name: str, hardened: Path, tmp_path: Path) -> None:
    verify_start(hardened / name)
    with pytest.raises(KitError, match="FF-KIT-OPEN"):
        verify_start(own_kits.packaged(name, tmp_path))


def findings(kit: Path) -> set[tuple[str, str]]:
    return {(one.rule.id, one.severity.value) for one in audit_kit(kit).findings}


@pytest.mark.parametrize("name", [SITE, SERVER])
def test_the_audit_finds_an_unhardened_kit_open_and_a_hardened_one_clean(
    name: str, hardened: Path, tmp_path: Path
) -> None:
    assert ("FFA-102", "high") in findings(own_kits.packaged(name, tmp_path))
    report = audit_kit(hardened / name)
    written_later = {("FFA-305", "medium"), ("FFA-306", "medium")} if name == SITE else set()
    assert findings(hardened / name) == written_later
    assert report.undecided == ()


def test_a_finished_site_is_clean(kit: Path) -> None:
    add_to_roster(kit, {f"hospital-{one}": f"{one}" * 64 for one in (2, 3, 4)})
    provisioned.finish(kit)
    assert findings(kit) == set()
    verify_start(kit)


@pytest.mark.parametrize("part", ["local", "startup"])
def test_the_same_kit_as_our_builder_makes(part: str, hardened: Path, tmp_path: Path) -> None:
    ours = provisioned.provision(tmp_path, stock=False) / "prod_00"
    for name, other in ((SITE, SITE), (SERVER, "fl-server")):
        own = {"kit_manifest.json", "roster.json", "signature.json"}
        names = {file.name for file in (hardened / name / part).iterdir()} - own
        assert names == {file.name for file in (ours / other / part).iterdir()} - own
        for file in names - {"client.crt", "client.key", "server.crt", "server.key", "rootCA.pem"}:
            texts = [(kit / part / file).read_text("utf-8") for kit in (hardened / name, ours / other)]
            if file.startswith("fed_"):  # name and port of the project differ
                found = [json.loads(text) for text in texts]
                assert sorted(found[0]) == sorted(found[1])
                assert [one["require_signed_jobs"] for one in found] == [True, True]
            else:
                assert texts[0].replace(" uid=", " ").replace("  ", " ") == texts[1].replace(" uid=", " ").replace(
                    "  ", " "
                ), file


Spoil = Callable[[Path], object]
#: What somebody without the key does to a hardened kit -> code, and whether the auditor sees it by rule 102.
SPOILT: dict[str, tuple[Spoil, str]] = {
    "a changed script": (lambda kit: (kit / "startup/start.sh").write_text("true\n"), "CHANGED"),
    "another server": (
        lambda kit: (kit / "startup/fed_client.json").write_text(
            (kit / "startup/fed_client.json").read_text().replace("localhost", "elsewhere")
        ),
        "CHANGED",
    ),
    "other rights": (lambda kit: (kit / "local/authorization.json.default").write_text("{}"), "CHANGED"),
    "no seal": (lambda kit: (kit / "local/privacy.json").write_text("{}"), "CHANGED"),
    "a file in startup": (lambda kit: (kit / "startup/more.json").write_text("{}"), "ADDED"),
    "a file in a folder of startup": (
        lambda kit: ((kit / "startup/a").mkdir(), (kit / "startup/a/b.sh").write_text("")),
        "ADDED",
    ),
    "more components": (lambda kit: (kit / "local/x__resources.json").write_text("{}"), "ADDED"),
    "a file less": (lambda kit: (kit / "startup/stop_fl.sh").unlink(), "MISSING"),
    "no scope": (lambda kit: (kit / "local/privacy.json").unlink(), "MISSING"),
    "no manifest": (lambda kit: (kit / "local" / MANIFEST_NAME).unlink(), "OPEN"),
    "a manifest with other spaces": (lambda kit: rewrite(kit, lambda text: text.replace("\n", " \n")), ""),
    "a changed manifest": (
        lambda kit: rewrite(kit, lambda text: text.replace("startup/stop_fl.sh", "startup/start_fl.sh")),
        "MANIFEST",
    ),
    "a signature of nobody": (
        lambda kit: rewrite(kit, lambda text: text.replace('signature": "', 'signature": "AA')),
        "MANIFEST",
    ),
}  # fmt: skip


def rewrite(kit: Path, change: Callable[[str], str]) -> None:
    file = kit / "local" / MANIFEST_NAME
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize("what", SPOILT)
def test_whatever_changes_refuses_the_start_and_is_found(what: str, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, code = SPOILT[what]
    spoil(kit)
    monkeypatch.chdir(kit)
    if not code:
        KitCheck()
        assert "FFA-102" not in {rule for rule, _ in findings(kit)}
        return
    with pytest.raises(KitError) as caught:
        KitCheck()
    assert caught.value.code == f"FF-KIT-{code}"
    assert str(kit) not in str(caught.value)
    assert ("FFA-102", "high") in findings(kit)


def test_a_signature_that_flare_would_skip_opens_no_way_around(kit: Path) -> None:
    (kit / "startup/start.sh").write_text("true\n", encoding="utf-8")
    (kit / "local" / MANIFEST_NAME).unlink()
    (kit / "startup/signature.json").write_text("{}", encoding="utf-8")
    with pytest.raises(KitError, match="FF-KIT-ADDED"):
        verify_start(kit)
    (kit / "startup/signature.json").write_text("[", encoding="utf-8")
    with pytest.raises(KitError, match="FF-KIT-SIGNATURE"):
        verify_start(kit)


def test_a_manifest_that_cannot_be_read_refuses_the_start(kit: Path) -> None:
    rewrite(kit, lambda text: text[:40])
    with pytest.raises(KitError, match="FF-KIT-"):
        verify_start(kit)
    assert any(one.rule.id == "FFA-102" for one in audit_kit(kit).undecided)


def test_a_link_in_startup_refuses_the_start(kit: Path) -> None:
    script = kit / "startup/start.sh"
    script.rename(kit / "elsewhere")
    script.symlink_to(kit / "elsewhere")
    with pytest.raises(KitError, match="FF-KIT-LINK"):
        verify_start(kit)


def test_a_pipe_does_not_make_the_check_wait(kit: Path) -> None:
    os.mkfifo(kit / "startup/pipe")
    with pytest.raises(KitError, match="FF-KIT-FILE"):
        verify_start(kit)


def test_what_its_holder_writes_later_is_no_change(kit: Path) -> None:
    for name in ("site_policy.json", "data_catalog.json", "resume.json"):
        (kit / "local" / name).write_text("{}", encoding="utf-8")
    add_to_roster(kit, {"hospital-2": OTHER})
    (kit / "log.txt").write_text("", encoding="utf-8")
    verify_start(kit)


# ------------------------------------------------------------------------------------------- configurations that hide


HIDDEN = (
    "resources.json", "0/resources.json", "0/1/resources.conf", "local/resources.yml", "local/a/resources.json.default",
    "transfer/fed_client.json", "startup/comm_config.json", "comm_config.json",
)  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_a_second_configuration_refuses_the_start(name: str, kit: Path) -> None:
    (kit / name).parent.mkdir(parents=True, exist_ok=True)
    (kit / name).write_text("{}", encoding="utf-8")
    with pytest.raises(KitError, match=r"FF-KIT-(HIDDEN|ADDED)"):
        verify_start(kit)


def test_the_own_configuration_and_other_files_are_no_second_one(kit: Path) -> None:
    shutil.copyfile(kit / "local/resources.json.default", kit / "local/resources.json")
    (kit / "local/comm_config.json").write_text("{}", encoding="utf-8")
    for name in ("resources.txt", "resources.json.template", "my_resources.json", "resources"):
        (kit / name).write_text("{}", encoding="utf-8")
    verify_start(kit)


# ---------------------------------------------------------------------------------------------------- what is refused


def test_the_role_must_be_the_kits(kit: Path) -> None:
    with pytest.raises(KitError, match="FF-KIT-ROLE"):
        harden_own(kit, Settings(), "server")
    (kit / "startup/fed_admin.json").write_text("{}", encoding="utf-8")
    with pytest.raises(KitError, match="FF-KIT-ROLE"):
        harden_own(kit, Settings())


@pytest.mark.parametrize("spoil", ["no script of FLARE's", "no TLS", "no JSON"])
def test_what_is_no_kit_of_flare_is_refused_and_left_as_it_was(spoil: str, tmp_path: Path) -> None:
    kit = own_kits.packaged(SITE, tmp_path)
    config = kit / "startup/fed_client.json"
    if spoil == "no script of FLARE's":
        (kit / "startup/sub_start.sh").write_text("true\n", encoding="utf-8")
    elif spoil == "no TLS":
        config.write_text(config.read_text("utf-8").replace('"mtls"', '"clear"'), encoding="utf-8")
    else:
        config.write_text("[", encoding="utf-8")
    before = contents(kit)
    with pytest.raises(KitError, match="FF-KIT-HARDEN"):
        harden_own(kit, Settings())
    assert contents(kit) == before


def test_a_stock_kit_that_the_root_signed_is_refused(tmp_path: Path) -> None:
    kit = own_kits.packaged(SITE, tmp_path)
    (kit / "startup/signature.json").write_text("{}", encoding="utf-8")
    before = contents(kit)
    with pytest.raises(KitError, match="FF-KIT-SIGNED"):
        harden_own(kit, Settings())
    assert contents(kit) == before


def test_a_provisioned_kit_can_be_hardened_by_its_holder_too(tmp_path: Path) -> None:
    kit = provisioned.provision(tmp_path, stock=False) / "prod_00" / SITE
    before = contents(kit)
    verify_start(kit)
    harden_own(kit, Settings())
    after = contents(kit)
    assert set(after) - set(before) == {f"local/{MANIFEST_NAME}"}
    assert all(after[name] == before[name] for name in before)
    verify_start(kit)
    (kit / "local/authorization.json.default").write_text("{}", encoding="utf-8")
    with pytest.raises(KitError, match="FF-KIT-CHANGED"):
        verify_start(kit)


def test_a_provisioned_kit_that_was_prepared_for_containers_is_signed_by_its_holder(tmp_path: Path) -> None:
    kit = provisioned.provision(tmp_path, stock=False) / "prod_00" / SITE
    for name in ("start.sh", "stop_fl.sh", "sub_start.sh"):  # as `nvflare deploy prepare` does
        (kit / "startup" / name).unlink()
    (kit / "startup/start_docker.sh").write_text("docker run\n", encoding="utf-8")
    with pytest.raises(KitError, match="FF-KIT-ADDED"):
        verify_start(kit)
    harden_own(kit, Settings())
    verify_start(kit)
    assert "FFA-102" not in {rule for rule, _ in findings(kit)}
    config = kit / "startup/fed_client.json"
    config.write_text(config.read_text("utf-8") + " ", encoding="utf-8")
    harden_own(kit, Settings())  # whoever has the key may sign, but not for the root
    with pytest.raises(KitError, match="FF-KIT-CHANGED"):
        verify_start(kit)
    assert ("FFA-102", "high") in findings(kit)


# ------------------------------------------------------------------------------------------------------------- roster


def own_key(kit: Path) -> str:
    return key_hash((kit / "startup/client.crt").read_bytes())


def test_the_roster_begins_with_the_own_key_and_grows(kit: Path) -> None:
    assert read_roster(kit) == {SITE: own_key(kit)}
    add_to_roster(kit, {"hospital-2": OTHER})
    harden_own(kit, Settings())
    assert read_roster(kit) == {SITE: own_key(kit), "hospital-2": OTHER}


@pytest.mark.parametrize(
    "hashes", [{SITE: OTHER}, {"../x": OTHER}, {"hospital-2": "cd"}, {"hospital-2": "cd" * 32}, {"": OTHER}]
)
def test_a_roster_takes_no_other_key_unseen(hashes: dict[str, str], kit: Path) -> None:
    add_to_roster(kit, {"hospital-2": OTHER})
    with pytest.raises(KitError, match="FF-KIT-ROSTER"):
        add_to_roster(kit, hashes)
    assert read_roster(kit) == {SITE: own_key(kit), "hospital-2": OTHER}


def test_a_hospital_that_has_a_new_key_is_replaced_on_demand_but_never_oneself(kit: Path) -> None:
    add_to_roster(kit, {"hospital-2": OTHER})
    add_to_roster(kit, {"hospital-2": "cd" * 32}, replace=True)
    assert read_roster(kit)["hospital-2"] == "cd" * 32
    with pytest.raises(KitError, match="FF-KIT-ROSTER"):
        add_to_roster(kit, {SITE: OTHER}, replace=True)


def test_the_server_learns_the_names_and_a_person_has_no_roster(hardened: Path, tmp_path: Path) -> None:
    server = Path(shutil.copytree(hardened / SERVER, tmp_path / SERVER))
    assert not (server / "local/roster.json").exists()
    add_to_roster(server, {"hospital-2": OTHER})
    assert json.loads((server / "local/roster.json").read_text("utf-8"))["sites"] == {"hospital-2": OTHER}
    with pytest.raises(KitError, match="FF-KIT-ROLE"):
        add_to_roster(hardened / PERSON, {"hospital-2": OTHER})


# ------------------------------------------------------------------------------------------------------- command line


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["kit", *map(str, words)])
    code = getattr(done.exception, "code", "")
    return done.exit_code, f"{done.output}{code}"


def test_the_commands(tmp_path: Path) -> None:
    kit = own_kits.packaged(SITE, tmp_path)
    assert run("check", kit) == (1, "FF-KIT-OPEN")
    status, said = run("harden", kit, "--role", "site")
    assert (status, said.splitlines()[0]) == (0, f"hardened: the kit of the site {SITE}")
    assert run("check", kit)[0] == 0
    assert run("roster", kit, "--add", f"hospital-2={OTHER.upper()}")[0] == 0
    assert read_roster(kit)["hospital-2"] == OTHER
    twice = ("--add", f"hospital-3={OTHER}", "--add", f"hospital-3={OTHER}")
    assert run("roster", kit, *twice) == (1, "FF-KIT-ROSTER")
    assert run("harden", kit, "--heartbeat", "1") == (1, "FF-KIT-SETTING")
    assert run("check", tmp_path) == (1, "FF-KIT-ROLE")


def test_a_timer_hears_of_the_end_before_it_comes(kit: Path) -> None:
    assert run("check", kit, "--days", "300")[0] == 0
    assert run("check", kit, "--days", "5000") == (1, "FF-KIT-SOON")


def test_a_persons_kit_is_checked_for_its_certificate(hardened: Path) -> None:
    assert run("check", hardened / PERSON)[0] == 0


def test_the_settings_reach_the_kit(tmp_path: Path) -> None:
    site, server = own_kits.packaged(SITE, tmp_path), own_kits.packaged(SERVER, tmp_path)
    run("harden", server, "--heartbeat", 30, "--tries", 9)
    made = json.loads((server / "local/resources.json.default").read_text("utf-8"))
    assert made["servers"][0]["heart_beat_timeout"] == 30
    run("harden", site, "--store", "/data/store")
    template = json.loads((site / "local/site_policy.json.template").read_text("utf-8"))
    assert template["store"] == f"/data/store/{SITE}"
