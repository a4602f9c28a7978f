# SPDX-License-Identifier: Apache-2.0
"""A job on its way through a hospital's parent process: by FLARE's own code, with real signatures and a real kit."""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from nvflare.private.defs import RequestHeader
from nvflare.private.scheduler_constants import ShareableHeader

from fairflare import presets
from fairflare.errors import DecisionError
from fairflare.flare import deploys, door, scrub, shutters, validator
from fairflare.flare.validator import PlanValidator
from fairflare.jobs import write_job
from fairflare.policy import open_policy, write_policy
from fairflare.policy.approvals import sign_approval
from fairflare.policy.package import installed_digest
from fairflare.privacy.decisions import DecisionLog
from tests.hostile import CASES, WEAKER, archive_of, terms
from tests.hostile.cases import CANARY
from tests.unit.flare.hospital import SERVER, SITE, Hospital, Party, deployment, sign

PLAN = presets.shipped("heart_flexfair")
JOBS = Path(__file__).resolve().parents[3] / "jobs"


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A parent process that has just started, behind closed shutters."""
    fresh = deploys.Deploys()
    for module in (deploys, door, validator):
        monkeypatch.setattr(module, "DEPLOYS", fresh)
    monkeypatch.setattr(deploys, "_REFUSALS", deploys._Bounded())
    monkeypatch.setattr(shutters, "is_shut", lambda: True)
    monkeypatch.setenv(CANARY, str(tmp_path))


@pytest.fixture
def hospital(kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    return Hospital(kits, tmp_path, terms(tmp_path / "store", PLAN), monkeypatch)


@pytest.fixture
def job(kits: Path, tmp_path: Path) -> Path:
    folder = write_job(PLAN, tmp_path / "jobs")
    sign(folder, kits)
    return folder


def is_silent(text: str, *places: Path) -> bool:
    """Whether a text that leaves holds none of the places, and passes the shutters, which look for paths, as it is."""
    passes = not text or scrub.own_text(text) == text
    return passes and not any(str(place) in text for place in places) and "Traceback" not in text


# ------------------------------------------------------------------------------------------------------------ good jobs


def test_a_good_job_is_accepted_written_down_and_started_once(hospital: Hospital, job: Path) -> None:
    message = deployment(job)
    assert hospital.deploy(message) == ""
    number = message.headers["job_id"]
    assert (hospital.folder(number) / f"app_{SITE}" / "config" / "plan.json").is_file()
    (decision,) = hospital.decisions()
    assert (decision.site, decision.job, decision.depth, decision.verdict) == (SITE, number, "deploy", "accepted")
    assert (decision.plan_sha256, decision.plan_name) == (PLAN.sha256, PLAN.name)
    assert (decision.submitter, decision.code, decision.reasons) == ("researcher@example.org", None, ())
    start = {"job_id": number, "job_meta": message.headers["job_meta"], ShareableHeader.RESOURCE_RESERVE_TOKEN: ""}
    assert door.inspect_request("train.start_job", start, {}) is None
    assert "FF-JOB-START" in (door.inspect_request("train.start_job", start, {}) or "")


def test_another_package_than_the_policy_names_is_refused_by_name(
    kits: Path, tmp_path: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = open_policy(tmp_path / "store", identities="kit").model_copy(
        update={"package": "ab" * 32, "least_sites": 9}
    )
    hospital = Hospital(kits, tmp_path, policy, monkeypatch)
    said = hospital.deploy(deployment(job))
    assert (
        f"FF-POLICY-PACKAGE package: got {installed_digest()}, expected the one that this site's policy names" in said
    )
    assert "FF-POLICY-REFUSED federation.min_sites: got" in said  # each reason has its own code
    assert [(one.verdict, one.code) for one in hospital.decisions()] == [("refused", "FF-POLICY-PACKAGE")]


@pytest.mark.parametrize("name", [one for one in presets.JOBS if one.startswith("heart")])
def test_committed_jobs_are_accepted_byte_for_byte(
    kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hospital = Hospital(kits, tmp_path, open_policy(tmp_path / "store", identities="kit"), monkeypatch)
    job = tmp_path / "jobs" / name
    shutil.copytree(JOBS / name, job)
    sign(job, kits)
    message = deployment(job)
    assert hospital.deploy(message) == ""
    unzipped = hospital.folder(message.headers["job_id"]) / f"app_{SITE}"
    for file in (JOBS / name / "app").rglob("*.json"):
        assert (unzipped / file.relative_to(JOBS / name / "app")).read_bytes() == file.read_bytes()


def test_the_server_takes_every_committed_job_without_a_policy(
    kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(kits / SERVER, tmp_path / SERVER)
    server = Party(tmp_path / SERVER, "server", monkeypatch, policy=False)
    for name in presets.JOBS:
        job = tmp_path / "jobs" / name
        shutil.copytree(JOBS / name, job)
        assert PlanValidator(policy=False).validate(str(job / "app")) == ("", {})
    assert not list(server.kit.rglob("decisions.jsonl"))


# --------------------------------------------------------------------------------------------------------- hostile jobs


#: FLARE's client cannot sign it, or the server cannot zip it, so it reaches no site.
UNSENT = {"link to a file", "link to a folder", "link that leads nowhere"}


@pytest.mark.parametrize("name", CASES.keys() - UNSENT)
def test_a_hostile_job_is_refused_with_its_code_and_nothing_of_it_runs(
    hospital: Hospital, kits: Path, job: Path, name: str
) -> None:
    case = CASES[name]
    case.spoil(job)
    sign(job, kits)
    modules = set(sys.modules)
    app = "app" if (job / "app").is_dir() else "evil"
    message = deployment(job, app=app)
    said = hospital.deploy(message)
    if case.where == "app" or said:
        assert said.startswith("FF-JOB-"), said
    if case.where == "app":
        assert case.code in said
    elif name not in AT_SITES_FINE:
        assert "FF-JOB-META" in said or "FF-JOB-REQUEST" in said
    assert is_silent(said, hospital.kit, hospital.store, job)
    assert not list(job.parents[1].glob("fairflare_canary"))
    assert not [one for one in set(sys.modules) - modules if "evil" in one or "custom" in one]
    assert [(one.verdict, one.code) for one in hospital.decisions()] == [
        ("refused", said.split()[0]) if said else ("accepted", None)
    ]


#: Defects of a job's folder that never reach a site, or that FLARE's server replaces on the way: only the researcher's
#: own check, and the audit, see them.
AT_SITES_FINE = {
    "code at the top", "notes at the top", "second meta", "study", "job id of one's own", "key written twice in meta",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.where == "app"])
def test_the_validator_alone_refuses_it_as_well(hospital: Hospital, kits: Path, job: Path, name: str) -> None:
    # Without the door, as at the server. What FLARE refuses before it asks us is not ours to see: it is refused.
    CASES[name].spoil(job)
    folder = hospital.kit / str(uuid.uuid4()) / f"app_{SITE}"
    folder.parent.mkdir()
    shutil.copytree(job / "app", folder, symlinks=True)
    modules = set(sys.modules)
    said, told = PlanValidator(policy=True).validate(str(folder))
    assert CASES[name].code in said
    assert told == {}
    assert is_silent(said, hospital.kit, hospital.store)
    said, _ = PlanValidator(policy=False).validate(str(folder))
    assert CASES[name].code in said
    assert set(sys.modules) == modules
    assert hospital.decisions()[-1].verdict == "refused"


@pytest.mark.parametrize("name", WEAKER)
def test_a_plan_weaker_than_the_policy_in_one_field_is_refused(hospital: Hospital, job: Path, name: str) -> None:
    case = WEAKER[name]
    write_policy(hospital.kit / "local", terms(hospital.store, PLAN, **case.terms))
    said = hospital.deploy(deployment(job))
    assert said.startswith(f"NVFLARE_ERROR: {case.code} {case.field}: got ")
    assert is_silent(said, hospital.kit, hospital.store)
    (decision,) = hospital.decisions()
    assert (decision.verdict, decision.code, decision.plan_sha256) == ("refused", case.code, PLAN.sha256)
    assert decision.reasons[0].startswith(f"{case.code} {case.field}: ")


def test_all_reasons_are_told_and_not_only_the_first(hospital: Hospital, job: Path) -> None:
    write_policy(hospital.kit / "local", terms(hospital.store, PLAN, cells_minimum=11, least_sites=9, plans=()))
    said = hospital.deploy(deployment(job))
    assert all(field in said for field in ("cells.minimum", "federation.min_sites", "plans"))


def test_a_signed_approval_lets_the_plan_run_and_a_withdrawn_one_does_not(hospital: Hospital, job: Path) -> None:
    write_policy(hospital.kit / "local", terms(hospital.store, PLAN, plans=(), approvals="signed"))
    approval = sign_approval(hospital.kit, PLAN, by="Dr Example")
    assert hospital.deploy(deployment(job)) == ""
    approval.unlink()
    assert "FF-POLICY-REFUSED plans" in hospital.deploy(deployment(job))


def test_an_unknown_scope_is_refused_by_flare_and_at_the_door_before(hospital: Hospital, job: Path, kits: Path) -> None:
    CASES["unknown scope"].spoil(job)
    sign(job, kits)
    message = deployment(job)
    assert "meta.json:scope" in hospital.deploy(message)
    assert hospital.handle(message) == "NVFLARE_ERROR: privacy scope 'no_such_scope' is not allowed"


def test_an_unsigned_job_and_one_changed_after_signing_are_refused_by_flare(hospital: Hospital, job: Path) -> None:
    plan = job / "app" / "config" / "plan.json"
    plan.write_text(plan.read_text().replace('"rounds": 20', '"rounds": 19'), encoding="utf-8")
    assert "does not pass signature verification" in hospital.deploy(deployment(job))
    for file in job.rglob(".__nvfl*"):
        file.unlink()
    assert "unsigned job rejected" in hospital.deploy(deployment(job))
    assert not (hospital.store / "decisions.jsonl").exists()


# ------------------------------------------------------------------------------------------------- the site's own state


def broken(hospital: Hospital, name: str) -> None:
    local = hospital.kit / "local"
    match name:
        case "no policy":
            (local / "site_policy.json").unlink()
        case "broken policy":
            (local / "site_policy.json").write_text("{", encoding="utf-8")
        case "no catalogue":
            (local / "data_catalog.json").unlink()
        case "no manifest":
            hospital.manifest.unlink()
        case "store in the kit":
            write_policy(local, terms(hospital.kit / "store", PLAN))
        case "store open to others":
            hospital.store.chmod(0o777)
        case "half a kit":
            (hospital.kit / "startup" / "client.key").unlink()
        case "changed decisions":
            (hospital.store / "decisions.jsonl").write_text("{}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("no policy", "FF-POLICY-FILE"),
        ("broken policy", "FF-POLICY-JSON"),
        ("no catalogue", "FF-CAT-FILE"),
        ("no manifest", "FF-CAT-MISSING-FILE"),
        ("store in the kit", "FF-POLICY-STORE"),
        ("store open to others", "FF-POLICY-STORE"),
        ("half a kit", "FF-JOB-INTERNAL"),
        ("changed decisions", "FF-DECISION-CHAIN"),
    ],
)
def test_a_site_that_cannot_decide_refuses_and_tells_a_code(
    hospital: Hospital, job: Path, name: str, code: str
) -> None:
    broken(hospital, name)
    message = deployment(job)
    said = hospital.deploy(message)
    assert code in said
    assert is_silent(said, hospital.kit, hospital.store, hospital.manifest, hospital.manifest.parent)
    start = {"job_id": message.headers["job_id"], "job_meta": message.headers["job_meta"]}
    assert "FF-JOB-START" in (door.inspect_request("train.start_job", start, {}) or "")


def test_a_full_disk_under_the_decisions_refuses(hospital: Hospital, job: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(hospital.store))

    monkeypatch.setattr(os, "fsync", full)
    said = hospital.deploy(deployment(job))
    assert "FF-DECISION-LOG" in said
    assert is_silent(said, hospital.store)


def test_a_data_set_that_the_site_does_not_have_is_named_but_not_the_others(
    kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(kits, tmp_path, open_policy(tmp_path / "store", identities="kit"), monkeypatch)
    job = write_job(presets.shipped("skin_fedavg"), tmp_path / "jobs")
    sign(job, kits)
    said = hospital.deploy(deployment(job))
    assert "FF-CAT-UNKNOWN-DATA-SET task.data_set: got 'skin'" in said
    assert "heart" not in said


def test_open_shutters_refuse(hospital: Hospital, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutters, "is_shut", lambda: False)
    assert "FF-SHUTTER-OPEN" in hospital.deploy(deployment(job))
    assert hospital.decisions()[0].code == "FF-SHUTTER-OPEN"


def test_a_deployment_that_passed_no_door_is_refused(hospital: Hospital, job: Path) -> None:
    assert "FF-SHUTTER-OPEN" in hospital.handle(deployment(job))
    good, other = deployment(job), deployment(job)
    assert door.inspect_request("train.deploy", good.headers, good.body) is None
    assert "FF-SHUTTER-OPEN" in hospital.handle(other)  # a job that was not the one at the door


def test_another_plan_than_the_one_at_the_door_is_refused(hospital: Hospital, job: Path, kits: Path, tmp_path) -> None:
    message = deployment(job)
    assert door.inspect_request("train.deploy", message.headers, message.body) is None
    other = write_job(PLAN.model_copy(update={"name": "another"}), tmp_path / "jobs")
    sign(other, kits)
    message.body = archive_of(other / "app")
    assert "FF-SHUTTER-OPEN" in hospital.handle(message)


def test_an_app_anywhere_else_is_refused(hospital: Hospital, job: Path, tmp_path: Path) -> None:
    number = str(uuid.uuid4())
    for place in (
        tmp_path / "x", hospital.kit / "x" / f"app_{SITE}", hospital.kit / number / "app_hospital-2",
        tmp_path / number / f"app_{SITE}", hospital.kit / number / "a" / f"app_{SITE}", Path("/"),
    ):  # fmt: skip
        if place != Path("/"):
            shutil.copytree(job / "app", place)
        assert PlanValidator(policy=True).validate(str(place)) == (validator.INTERNAL, {})
    (hospital.kit / number / f"app_{SITE}").symlink_to(job / "app")
    assert PlanValidator(policy=True).validate(str(hospital.kit / number / f"app_{SITE}")) == (validator.INTERNAL, {})


@pytest.mark.parametrize("fail", ["check_app", "read_policy", "read_catalog", "approved_plans"])
@pytest.mark.parametrize("problem", [KeyError("/home/somebody"), RecursionError(), MemoryError("x"), OSError(5, "/x")])
def test_no_exception_of_any_kind_becomes_a_text(
    hospital: Hospital, job: Path, monkeypatch: pytest.MonkeyPatch, fail: str, problem: Exception
) -> None:
    def raising(*_: object, **__: object) -> Any:
        raise problem

    monkeypatch.setattr(validator, fail, raising)
    assert hospital.deploy(deployment(job)) == f"NVFLARE_ERROR: {validator.INTERNAL}"


def test_a_decision_that_cannot_be_written_is_no_acceptance(
    hospital: Hospital, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*_: object) -> None:
        raise DecisionError("FF-DECISION-LOG", got="x", expected="y", next_step="z")

    monkeypatch.setattr(DecisionLog, "append", raising)
    message = deployment(job)
    assert "FF-DECISION-LOG" in hospital.deploy(message)
    assert deploys.DEPLOYS.accepted(message.headers["job_id"]) is None


def test_refusals_without_end_do_not_fill_the_disk(hospital: Hospital, job: Path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(deploys, "_REFUSALS", deploys._Bounded(clock=lambda: now[0]))
    message = deployment(job, app_name="evil")
    for _ in range(100):
        assert "FF-JOB-REQUEST" in hospital.deploy(message)
    written = hospital.decisions()
    assert len(written) == 64
    assert "too many" in written[-1].reasons[-1]
    now[0] = 3601.0
    hospital.deploy(message)
    assert len(hospital.decisions()) == 65
    assert hospital.deploy(deployment(job)) == ""  # what is accepted is always written
    assert hospital.decisions()[-1].verdict == "accepted"


def test_a_refused_submitter_cannot_write_into_the_sites_terminal(hospital: Hospital, job: Path) -> None:
    hospital.deploy(deployment(job, **{RequestHeader.SUBMITTER_NAME: "\x1b[2Ja\nb" + "x" * 1000}))
    submitter = hospital.decisions()[0].submitter or ""
    assert submitter.startswith("?[2Ja?bx")
    assert len(submitter) <= 500


def test_the_argument_is_true_or_false_and_nothing_else() -> None:
    for value in (None, 1, "false"):
        with pytest.raises(TypeError):
            PlanValidator(policy=value)  # type: ignore[arg-type]


def test_the_validators_of_the_kits_are_these(kits: Path) -> None:
    for party, policy in ((SITE, True), (SERVER, False)):
        resources = json.loads((kits / party / "local" / "resources.json.default").read_text(encoding="utf-8"))
        named = {"path": "fairflare.flare.validator.PlanValidator", "args": {"policy": policy}}
        assert resources["app_validator"] == named
