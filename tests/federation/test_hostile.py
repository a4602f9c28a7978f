# SPDX-License-Identifier: Apache-2.0
"""Hostile and mistaken jobs against four live hospitals: from a researcher, and straight from a hostile server.

A researcher's job is stopped by his own FLARE, by the server when it is handed in or when it is handed out, or by each
site. A hostile server leaves all but the last out, so every job goes to the sites directly as well. None of them is
started; at the end one job with defects that never leave the server runs as a good one does.
"""

from __future__ import annotations

import io
import re
import stat
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.private.scheduler_constants import ShareableHeader

from fairflare.engine.verify import verify_run
from fairflare.flare.door import MOST_RUNNING
from fairflare.plan import Plan
from fairflare.policy import POLICY_NAME, write_policy
from fairflare.record import RunRecord
from tests.federation import hostile_tasks
from tests.federation.provisioned import FederationError
from tests.federation.researcher import Answer, hand_in
from tests.federation.siege import PLAN, SHIPPED, Change, Request, Siege
from tests.federation.support import SITES
from tests.hostile import ARCHIVES, CASES, WEAKER, archive_of, terms
from tests.hostile.cases import CONFIG

pytestmark = pytest.mark.federation

#: Defects that FLARE's server takes off, or that never leave it.
HARMLESS = (
    "code at the top", "notes at the top", "second meta", "study", "code announced", "key written twice in meta",
)  # fmt: skip
#: Of those that a server can send to a site: the site has no such file, or the request says it anew.
UNSENT = {"job id of one's own", *HARMLESS} - {"code announced"}
#: Tasks that no job of ours has.
TASKS = ("steal", "TRAIN", "train ", "../train", "*")


@dataclass(frozen=True)
class Refusal:
    """Who refuses a researcher's job, and in which words.

    ``client``: his own FLARE; ``intake``: the server, when the job is handed in; ``server``: when it is handed out,
    before any site hears of it; ``scheduler``: there are never enough sites; ``sites``: every site.
    """

    by: str
    words: str


#: Cases for which FLARE's server has other words than the check of the folder, or that reach the sites.
OTHERWISE = {
    "server configuration as .yaml": Refusal("intake", "ModuleNotFoundError"),
    "code in custom": Refusal("intake", "FF-JOB-CODE"),
    "empty file in custom": Refusal("intake", "FF-JOB-CODE"),
    "empty folder custom": Refusal("intake", "FF-JOB-CODE"),
    "huge meta": Refusal("intake", "FF-JOB-META meta.json:name"),
    "fewer sites than the plan": Refusal("sites", "FF-JOB-META meta.json:min_clients"),
    "name of another plan": Refusal("sites", "FF-JOB-META meta.json:name"),
    "more sites than the plan": Refusal("scheduler", "connected sites (4) < min_sites (99)"),
}


def refusal(name: str) -> Refusal:
    case = CASES[name]
    if name in OTHERWISE:
        return OTHERWISE[name]
    if case.flare is not None:
        return Refusal("client" if case.code == "FF-JOB-LINK" else "intake", case.flare)
    return Refusal("server" if case.where == "app" else "intake", case.code)


# -------------------------------------------------------------------------- a researcher with a FLARE client of his own


def _zipped(job: Path) -> bytes:
    return bytes(zip_directory_to_bytes(str(job.parent), job.name))


def _with(name: str, mode: int = stat.S_IFREG | 0o644) -> Callable[[Path], bytes]:
    def make(job: Path) -> bytes:
        file = io.BytesIO(_zipped(job))
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
            info = zipfile.ZipInfo(f"{job.name}/{name}")
            info.external_attr = mode << 16
            archive.writestr(info, b"/etc/passwd")
        return file.getvalue()

    return make


def _changed(job: Path) -> bytes:
    plan = job / CONFIG / "plan.json"
    plan.write_text(plan.read_text(encoding="utf-8").replace('"rounds": 2', '"rounds": 3'), encoding="utf-8")
    return _zipped(job)


def _unsigned(job: Path) -> bytes:
    for file in job.rglob(".__nvfl*"):
        file.unlink()
    return _zipped(job)


#: What he sends in the place of a job's archive, and who refuses it; "": FLARE tells that it could not run, not why.
OWN_CLIENT: dict[str, tuple[Callable[[Path], bytes], Refusal]] = {
    "unsigned": (_unsigned, Refusal("server", "unsigned job rejected")),
    "changed after signing": (_changed, Refusal("server", "does not pass signature verification")),
    "name that climbs": (_with("../../../../climbed"), Refusal("server", "")),
    "link": (_with("app/config/x", stat.S_IFLNK | 0o777), Refusal("server", "")),
    "no archive": (lambda job: b"hello", Refusal("intake", "BadZipFile")),
}

# --------------------------------------------------------------------------------------------- a hostile server's words


def _meta(**changes: Any) -> Change:
    return lambda headers: headers["job_meta"].update(changes)


def _id(number: str) -> Change:
    return lambda headers: (headers.update(job_id=number), headers["job_meta"].update(job_id=number))


def _said(**changes: Any) -> Change:
    return lambda headers: headers.update(changes)


EVIL = {"default": {"docker": {"image": "evil", "python_path": "/x"}}}
#: A good app, well signed, and what the server says otherwise of it.
DEPLOYMENTS: dict[str, tuple[Change, str]] = {
    "fewer sites": (_meta(min_clients=2), "FF-JOB-META meta.json:min_clients"),
    "an image and a Python path": (_meta(launcher_spec=EVIL), "FF-JOB-META meta.json:launcher_spec"),
    "an image in the resources": (_meta(resource_spec={"default": EVIL}), "FF-JOB-META meta.json:resource_spec"),
    "an open scope": (_meta(scope="open"), "FF-JOB-META meta.json:scope"),
    "code is fine": (_meta(byoc=True), "FF-JOB-META meta.json:byoc"),
    "another submitter": (_meta(submitter_name="admin@example.org"), "FF-JOB-META meta.json:submitter_name"),
    "an id that climbs": (_id("../x"), "FF-JOB-ID"),
    "an id that is a folder of the kit": (_id("local"), "FF-JOB-ID"),
    "an id of another kind": (_id(str(uuid.uuid1())), "FF-JOB-ID"),
    "another app": (_said(app_name="../../local"), "FF-JOB-REQUEST app_name"),
    "no permission needed": (_said(require_authz="false"), "FF-JOB-REQUEST require_authz"),
}
#: A job that the site has accepted is to start otherwise than it was accepted.
STARTS: dict[str, tuple[Change, object, str]] = {
    "with an image": (_meta(launcher_spec=EVIL), {}, "FF-JOB-META meta.json:launcher_spec"),
    "with fewer sites": (_meta(min_clients=1), {}, "FF-JOB-META meta.json:min_clients"),
    "of another submitter": (_meta(submitter_name="x"), {}, "FF-JOB-META meta.json:submitter_name"),
    "with resources": (_meta(), {"num_of_gpus": 1}, "FF-JOB-REQUEST resource_spec"),
    "that was never deployed": (_id(str(uuid.uuid4())), {}, "FF-JOB-START"),
    "with an id that climbs": (_id("../x"), {}, "FF-JOB-ID"),
}


@dataclass
class Outcome:
    """What was tried, what came back, and what the hospitals had of any job afterwards."""

    siege: Siege
    requests: dict[str, Request]
    said: dict[str, str]
    answers: dict[str, Answer]
    accepted: str
    traces: list[str]


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    begun = Siege.begin(tmp_path_factory.mktemp("hostile"), TASKS)
    try:
        yield begun
    finally:
        begun.running.stop()
    assert begun.running.left() == []


def _volley(siege: Siege) -> dict[str, Request]:
    good = siege.signed()
    app = archive_of(good / "app")
    found = {f"archive: {name}": siege.deploy(good, one.spoil(app)) for name, one in ARCHIVES.items()}
    for name, case in CASES.items():
        if name not in UNSENT and case.code != "FF-JOB-LINK":
            job = siege.signed(name)
            folder = job / "app" if (job / "app").is_dir() else job / "evil"
            found[f"case: {name}"] = siege.deploy(job, archive_of(folder))
    found |= {f"said: {name}": siege.deploy(good, app, change) for name, (change, _) in DEPLOYMENTS.items()}
    found["unsigned"] = siege.deploy(good, archive_of(_stripped(siege.signed()) / "app"))
    changed_one = siege.signed()
    _changed(changed_one)
    found["changed after signing"] = siege.deploy(changed_one, archive_of(changed_one / "app"))
    return found


def _stripped(job: Path) -> Path:
    _unsigned(job)
    return job


@pytest.fixture(scope="module")
def outcome(siege: Siege) -> Outcome:
    requests = _volley(siege)
    said = siege.fire(requests)
    good = siege.signed()
    accepted = siege.deploy(good, archive_of(good / "app"))
    requests["accepted"] = accepted
    said |= siege.fire({"accepted": accepted})
    later = {
        f"start: {name}": siege.request("train.start_job", accepted.shot.headers, body, change, accepted.site)
        for name, (change, body, _) in STARTS.items()
    }
    # FLARE would empty the folder of the job that is there, and unzip another one into it.
    later["again"] = siege.request(
        "train.deploy", accepted.shot.headers, archive_of(siege.signed() / "app"), _said(), accepted.site
    )
    requests |= later
    said |= siege.fire(later)
    jobs = {name: siege.write(name) for name in CASES if name not in HARMLESS}
    answers = hand_in(siege.running, jobs | _own_client(siege))
    return Outcome(siege, requests, said, answers, accepted.job, siege.traces())


def _own_client(siege: Siege) -> dict[str, tuple[Path, Path]]:
    jobs = {}
    for name, (make, _) in OWN_CLIENT.items():
        job = siege.signed()
        archive = siege.base / f"own {name}.zip"
        archive.write_bytes(make(job))
        jobs[f"own: {name}"] = (siege.write(), archive)
    return jobs


def _answer(outcome: Outcome, name: str) -> str:
    """A site's refusal, as it reached the server."""
    said = outcome.said[name]
    assert not said.startswith("NOT SENT"), said
    assert "_rtnCode: _error" in said, said
    assert str(outcome.siege.base) not in said
    assert "Traceback" not in said
    return said


# ---------------------------------------------------------------------------------------------------- a hostile server


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_refused_by_the_site(outcome: Outcome, name: str) -> None:
    assert ARCHIVES[name].code in _answer(outcome, f"archive: {name}")


@pytest.mark.parametrize("name", [one for one in CASES if one not in UNSENT and CASES[one].code != "FF-JOB-LINK"])
def test_a_job_that_no_other_party_refused_is_refused_by_the_site(outcome: Outcome, name: str) -> None:
    said = _answer(outcome, f"case: {name}")
    assert CASES[name].code in said if CASES[name].where == "app" else "FF-JOB-META" in said


def test_each_refusal_is_in_the_decisions_of_the_site_with_its_code(outcome: Outcome) -> None:
    told = [name for name in outcome.requests if name.startswith(("archive", "case"))]
    for name in told:
        request = outcome.requests[name]
        decided = outcome.siege.decided(request.job)
        assert {site: one.verdict for site, one in decided.items()} == {request.site: "refused"}, name
        assert f"{decided[request.site].code} " in outcome.said[name]
    assert len(told) > 110


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_good_app_of_which_the_server_says_otherwise_is_refused(outcome: Outcome, name: str) -> None:
    assert DEPLOYMENTS[name][1] in _answer(outcome, f"said: {name}")


def test_an_app_that_nobody_signed_is_refused_by_flare(outcome: Outcome) -> None:
    assert "unsigned job rejected" in _answer(outcome, "unsigned")
    assert "does not pass signature verification" in _answer(outcome, "changed after signing")


@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_is_not_the_one_that_was_accepted_is_refused(outcome: Outcome, name: str) -> None:
    assert STARTS[name][2] in _answer(outcome, f"start: {name}")


def test_an_accepted_job_is_not_replaced(outcome: Outcome) -> None:
    assert "_rtnCode: _ok" in outcome.said["accepted"]
    assert "FF-JOB-ID" in _answer(outcome, "again")


# -------------------------------------------------------------------------------------------------------- a researcher


def _verify_refused(siege: Siege, answer: Answer, wanted: Refusal) -> None:
    """By whom a job was refused, that the researcher can read why, and that no site has anything of it."""
    assert wanted.words in answer.reason, answer
    assert siege.holders(answer.job) == []
    decided = siege.decided(answer.job) if answer.job else {}
    match wanted.by:
        case "client":
            assert answer.job is None
            assert "symbolic links" in str(answer.error)
        case "intake":
            assert answer.job is None
            assert answer.error is not None
        case "server":
            assert answer.status == "FINISHED:FAILED_TO_RUN"
            assert set(answer.deployed) <= {"server"}
        case "scheduler":
            assert answer.status == "FINISHED:CAN_NOT_SCHEDULE"
        case "sites":
            assert answer.status == "FINISHED:FAILED_TO_RUN"
            assert all(wanted.words in answer.deployed[site] for site in SITES)
            assert {site: one.verdict for site, one in decided.items()} == dict.fromkeys(SITES, "refused")
    assert wanted.by == "sites" or decided == {}


@pytest.mark.parametrize("name", [one for one in CASES if one not in HARMLESS])
def test_a_researchers_job_is_refused_and_he_is_told_why(outcome: Outcome, name: str) -> None:
    _verify_refused(outcome.siege, outcome.answers[name], refusal(name))


@pytest.mark.parametrize("name", OWN_CLIENT)
def test_a_client_of_ones_own_makes_no_difference(outcome: Outcome, name: str) -> None:
    _verify_refused(outcome.siege, outcome.answers[f"own: {name}"], OWN_CLIENT[name][1])


def test_the_command_line_tells_the_reason(siege: Siege) -> None:
    with pytest.raises(FederationError, match=r"FF-JOB-META meta\.json:min_clients: got '3', expected"):
        siege.running.submit(siege.write("number of sites as text"))


# ------------------------------------------------------------------------------------------------------------ policies


def _refused_everywhere(siege: Siege, plan: Plan) -> Answer:
    answer = hand_in(siege.running, {"good": siege.write(plan=plan)})["good"]
    assert answer.status == "FINISHED:FAILED_TO_RUN"
    assert siege.holders(answer.job) == []
    return answer


def test_each_hospitals_own_reason_reaches_the_researcher(siege: Siege, outcome: Outcome) -> None:
    running, (larger, unapproved, expired, without) = siege.running, SITES
    running.set_policy(larger, cells_minimum=11)
    running.set_policy(unapproved, plans=())
    running.set_policy(expired, expires="2020-01-31")
    (running.kits[without] / "local" / POLICY_NAME).unlink()
    try:
        answer = _refused_everywhere(siege, PLAN)
    finally:
        for site in SITES:
            running.set_policy(site)
    wanted = {
        larger: "FF-POLICY-REFUSED cells.minimum", unapproved: "FF-POLICY-REFUSED plans",
        expired: "FF-POLICY-EXPIRED expires", without: "FF-POLICY-FILE site_policy.json",
    }  # fmt: skip
    for site, words in wanted.items():
        assert words in answer.deployed[site]
    # Without a policy there is no place for a list of decisions.
    assert {site: f"{one.code}" for site, one in siege.decided(answer.job).items()} == {
        site: words.split()[0] for site, words in wanted.items() if site != without
    }


@pytest.mark.slow
@pytest.mark.parametrize("at", range(0, len(WEAKER), len(SITES)))
def test_a_plan_that_is_weaker_in_any_field_is_refused(siege: Siege, outcome: Outcome, at: int) -> None:
    names = [*WEAKER, *WEAKER][at : at + len(SITES)]
    try:
        for site, name in zip(SITES, names, strict=True):
            policy = terms(siege.running.store / site, SHIPPED, **WEAKER[name].terms)
            write_policy(siege.running.kits[site] / "local", policy)
        answer = _refused_everywhere(siege, SHIPPED)
    finally:
        for site in SITES:
            siege.running.set_policy(site)
    for site, name in zip(SITES, names, strict=True):
        assert f"{WEAKER[name].code} {WEAKER[name].field}: got " in answer.deployed[site]
        assert siege.decided(answer.job)[site].code == WEAKER[name].code


# -------------------------------------------------------------------------------------------------- what there is of it


def test_no_hospital_has_started_or_kept_anything(outcome: Outcome) -> None:
    assert [one for one in outcome.traces if not one.endswith(outcome.accepted)] == []


@pytest.fixture(scope="module")
def finale(siege: Siege, outcome: Outcome) -> RunRecord:
    """After all that: a job with every defect that never leaves the server, at a server with tasks of its own."""
    running = siege.running
    answer = hand_in(running, {"good": siege.write(*HARMLESS)}, seconds=240)["good"]
    assert answer.status == "FINISHED:COMPLETED"
    return verify_run(running.download(str(answer.job)))


def test_the_next_job_runs_to_its_end_with_all_hospitals(siege: Siege, finale: RunRecord) -> None:
    assert finale.status == "complete"
    assert finale.final is not None
    assert finale.final.confirmed == SITES
    assert list((siege.base / "canary").iterdir()) == []


def test_a_task_that_no_job_of_ours_has_gets_nothing(siege: Siege, finale: RunRecord) -> None:
    found = hostile_tasks.answers(siege.hostile.folder)
    assert {(one["task"], one["site"]) for one in found} == {(task, site) for task in TASKS for site in SITES}
    assert {one["code"] for one in found} == {"TASK_UNKNOWN"}
    assert [one for one in found if one["content"]] == []


@pytest.mark.slow
def test_a_server_cannot_fill_a_hospital_with_jobs_that_it_has_accepted(siege: Siege) -> None:
    """Last of all: what was started goes on asking a server that knows nothing of it."""
    good, site = siege.signed(), SITES[0]
    app = archive_of(good / "app")

    def volley(topic: str, jobs: list[dict[str, Any]], body: object) -> list[str]:
        sent = {str(at): siege.request(topic, one, body, _said(), site) for at, one in enumerate(jobs)}
        return list(siege.fire(sent).values())

    jobs = [dict(siege.deploy(good, app).shot.headers) for _ in range(12)]
    asked = {"admin_command": "check_resources", "require_authz": "false"}
    said = volley("scheduler.check_resource", [{**one, **asked} for one in jobs], {})
    tokens = [re.search(rf"{ShareableHeader.RESOURCE_RESERVE_TOKEN}: ([0-9a-f-]{{36}})", one) for one in said]
    assert all("_rtnCode: _ok" in one for one in volley("train.deploy", jobs, app))
    before = len(siege.running.processes(site))
    for job, token in zip(jobs, tokens, strict=True):
        assert token is not None
        job[ShareableHeader.RESOURCE_RESERVE_TOKEN] = token[1]
    said = volley("train.start_job", jobs, {})
    refused = [one for one in said if "FF-JOB-REQUEST train.start_job: got a start beside" in one]
    assert len(refused) == len(jobs) - MOST_RUNNING
    assert len(siege.running.processes(site)) == before + MOST_RUNNING
    siege.running.stop(site)
