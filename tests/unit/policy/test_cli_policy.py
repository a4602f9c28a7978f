# SPDX-License-Identifier: Apache-2.0
"""``fairflare policy``, as the hospital's data steward meets it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from fairflare import schema
from fairflare.cli import app
from fairflare.policy import POLICY_NAME, open_policy, read_policy, standard_policy, strict_policy, write_policy
from fairflare.policy.package import installed_digest
from fairflare.policy.roster import read_roster
from fairflare.privacy.decisions import Decision, DecisionLog
from fairflare.secagg.identity import development_identity
from tests.unit.policy.support import CELLS, make_kit, plan, write_roster


def run(*arguments: str | Path, answer: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["policy", *map(str, arguments)], input=answer)
    text = result.output if result.exception is None else f"{result.exception}\n{result.output}"
    return result.exit_code, text


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return make_kit(tmp_path / "kit", policy=standard_policy(tmp_path / "store"))


@pytest.fixture
def wanted(tmp_path: Path) -> Path:
    (tmp_path / "plan.json").write_text(schema.pretty(plan(cells=CELLS)), encoding="utf-8")
    return tmp_path / "plan.json"


# ------------------------------------------------------------------------------------------------------------------ new


def test_the_command_writes_once_and_checks(tmp_path: Path) -> None:
    status, text = run("new", "--store", tmp_path / "store", "--to", tmp_path)
    assert (status, "as it is, any version may run" in text) == (0, True)
    assert read_policy(tmp_path) == standard_policy(tmp_path / "store")
    assert "FF-POLICY-EXISTS" in run("new", "--store", tmp_path / "store", "--to", tmp_path)[1]
    status, text = run("check", tmp_path, "jobs/heart_flexfair")
    assert (status, "cells.minimum: got 0, expected at least 11" in text) == (1, True)


def test_an_open_policy_is_one_for_simulations(tmp_path: Path) -> None:
    run("new", "--template", "open", "--store", tmp_path / "store", "--to", tmp_path)
    assert read_policy(tmp_path) == open_policy(tmp_path / "store")
    assert run("check", tmp_path, "jobs/heart_flexfair") == (0, "the plan is within the policy\n")


@pytest.mark.parametrize("template", ["open", "standard"])
def test_a_kit_fills_in_the_peers(tmp_path: Path, kit: Path, template: str) -> None:
    status, text = run("new", "--template", template, "--store", "store", "--to", tmp_path / "new", "--kit", kit)
    assert (status, "by telephone" in text) == (0, True)
    made = read_policy(tmp_path / "new")
    assert (made.peers, made.identities) == (read_roster(kit), "kit")
    assert Path(made.store).is_absolute()


def test_a_strict_policy_needs_a_kit_with_a_roster(tmp_path: Path, kit: Path) -> None:
    words = ["new", "--template", "strict", "--store", tmp_path / "store", "--to", tmp_path / "new"]
    assert "FF-POLICY-PEERS" in run(*words)[1]
    (kit / "local" / "roster.json").rename(tmp_path / "roster.json")
    assert "FF-POLICY-FILE" in run(*words, "--kit", kit)[1]
    assert not (tmp_path / "new").exists()
    (tmp_path / "roster.json").rename(kit / "local" / "roster.json")
    status, text = run(*words, "--kit", kit, "--data-set", "heart", "--attribute", "sex", "--attribute", "age")
    assert status == 0
    assert "write names into 'features'" in text
    assert "'attributes'" not in text
    made = read_policy(tmp_path / "new")
    lists = {"data_sets": ("heart",), "attributes": ("sex", "age"), "features": ()}
    pinned = strict_policy(tmp_path / "store", package=installed_digest(), peers=read_roster(kit))
    assert made == pinned.model_copy(update=lists)
    assert "compare 'package' with the wheel" in text


def test_names_are_names(tmp_path: Path, kit: Path) -> None:
    words = ["--store", tmp_path / "store", "--to", tmp_path / "new", "--kit", kit, "--data-set", "../heart"]
    status, text = run("new", "--template", "strict", *words)
    assert (status, "FF-POLICY-VALUE" in text, (tmp_path / "new").exists()) == (1, True, False)
    assert "FF-POLICY-TEMPLATE" in run("new", "--template", "standard", *words)[1]
    write_roster(kit, {**read_roster(kit), "../south": "ab" * 32})
    assert "FF-POLICY-RULE" in run("new", "--store", "store", "--to", tmp_path / "new", "--kit", kit)[1]


# ------------------------------------------------------------------------------------------------------- key and check


def test_the_hash_of_a_key_is_what_peers_compare(tmp_path: Path) -> None:
    identity = development_identity("north")
    certificate = x509.load_der_x509_certificate(identity.certificate)
    (tmp_path / "client.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    assert run("key", tmp_path / "client.crt") == (0, identity.spki.hex() + "\n")
    (tmp_path / "client.crt").write_text("no certificate", encoding="utf-8")
    assert "FF-SECAGG-CERTIFICATE" in run("key", tmp_path / "client.crt")[1]


def test_check_says_what_to_do_about_what_it_found(tmp_path: Path, wanted: Path) -> None:
    write_policy(tmp_path, standard_policy(tmp_path / "store"))
    status, text = run("check", tmp_path, wanted)
    assert status == 1
    assert text.splitlines()[-1].startswith("next step: approve the plan")
    write_policy(tmp_path, open_policy(tmp_path / "store").model_copy(update={"expires": "2020-01-01"}))
    assert "a new day in 'expires'" in run("check", tmp_path, wanted)[1]
    write_policy(tmp_path, open_policy(tmp_path / "store").model_copy(update={"least_sites": 4}))
    assert "next step: change the plan" in run("check", tmp_path, wanted)[1].splitlines()[-1]
    write_policy(tmp_path, open_policy(tmp_path / "store").model_copy(update={"package": "ab" * 32}))
    assert run("check", tmp_path, wanted)[1].splitlines()[-1].startswith("next step: install the wheel")


def test_check_counts_a_kits_approvals_and_says_why_one_does_not(tmp_path: Path, kit: Path, wanted: Path) -> None:
    assert run("approve", wanted, "--kit", kit, "--by", "Dr Example", "--yes")[0] == 0
    assert run("check", kit / "local", wanted, "--kit", kit) == (
        0,
        "note: the signed approval is valid\nthe plan is within the policy\n",
    )
    for found in (kit / "local", kit / "local" / "site_policy.json"):  # the kit that a policy lies in is found
        assert run("check", found, wanted)[0] == 0
    assert run("check", kit / "local", "jobs/heart_flexfair", "--kit", kit)[0] == 1
    policy = read_policy(kit / "local")
    write_policy(tmp_path, policy.model_copy(update={"cohort_changes": 1}))
    status, text = run("check", tmp_path, wanted, "--kit", kit)
    assert (status, "the kit holds another policy" in text) == (1, True)
    write_policy(kit / "local", policy.model_copy(update={"cohort_changes": 1}))
    assert "was given under another policy" in run("check", tmp_path, wanted, "--kit", kit)[1]
    (kit / "startup" / "client.crt").unlink()
    assert "no start-up kit" in run("check", tmp_path, wanted, "--kit", kit)[1]


# -------------------------------------------------------------------------------------------------------------- explain


def test_explain_speaks_of_every_field_and_of_what_no_policy_prevents(tmp_path: Path) -> None:
    policy = standard_policy(tmp_path / "store").model_copy(update={"cells_minimum": 5, "most_rounds": 10})
    write_policy(tmp_path, policy)
    status, text = run("explain", tmp_path)
    assert status == 0
    for field in type(policy).model_fields:
        assert field == "format" or f"\n  {field}\n" in text
    assert "Stricter than standard in most_rounds." in text
    assert "Weaker than standard in cells_minimum." in text
    assert "step_risks: never leaves" in text
    assert "counts: may leave" in text
    assert "What no policy prevents" in text
    write_policy(tmp_path, open_policy(tmp_path / "store"))
    assert "step_risks: may leave" in run("explain", tmp_path)[1]


# -------------------------------------------------------------------------------------------------------------- approve


def test_an_approval_shows_the_plan_and_asks(kit: Path, wanted: Path) -> None:
    folder = kit / "local" / "approvals"
    status, text = run("approve", wanted, "--kit", kit, "--by", "Dr Example", answer="n\n")
    assert (status, folder.exists()) == (1, False)
    assert "learns absent or present" in text
    assert "the plan is within the policy" in text
    status, text = run("approve", wanted, "--kit", kit, "--by", "Dr Example", "--expires", "2090-01-01", answer="y\n")
    assert status == 0
    (file,) = folder.iterdir()
    assert json.loads(file.read_text(encoding="utf-8"))["expires"] == "2090-01-01"


def test_a_plan_outside_the_policy_is_not_approved(kit: Path) -> None:
    status, text = run("approve", "jobs/heart_flexfair", "--kit", kit, "--by", "Dr Example", "--yes")
    assert (status, "FF-POLICY-REFUSED" in text, "cells.minimum" in text) == (1, True, True)
    assert not (kit / "local" / "approvals").exists()
    assert "plans: got" not in text


def test_a_last_day_is_a_day(kit: Path, wanted: Path) -> None:
    words = ["approve", wanted, "--kit", kit, "--by", "Dr Example", "--yes", "--expires"]
    assert "FF-POLICY-DAY" in run(*words, "soon")[1]
    assert "FF-POLICY-APPROVAL" in run(*words, "2020-01-01")[1]


# ------------------------------------------------------------------------------------------------------------ decisions

ONE = Decision(
    time="2030-05-17T08:00:00+00:00", site="north", job="5f0c2d9e-0000", plan_sha256="ab" * 32, plan_name="heart",
    submitter="lead@example.org", depth="join", verdict="accepted", code=None, reasons=(),
)  # fmt: skip
TWO = replace(
    ONE, depth="release", verdict="refused", code="FF-POLICY-EXPIRED", reasons=("expires: [b]got\x1b[2J",),
    plan_sha256=None, plan_name=None, submitter="\x1b[31m\u202eevil[/b]",
)  # fmt: skip


def test_decisions_are_shown_once_they_are_checked(tmp_path: Path) -> None:
    write_policy(tmp_path, open_policy(tmp_path / "store"))
    assert "no decisions yet" in run("decisions", tmp_path)[1]
    log = tmp_path / "store" / "decisions.jsonl"
    for one in (ONE, TWO, replace(TWO, code="FF-JOB-CODE", reasons=())):
        DecisionLog(log).append(one)
    status, text = run("decisions", tmp_path)
    assert status == 0
    for words in (
        "2030-05-17T08:00:00Z",
        "5f0c2d9e",
        "heart",
        "abababab",
        "accepted",
        "FF-POLICY-EXPIRED",
        "FF-JOB-CODE",
    ):
        assert words in text
    assert "\\u001b" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[b]got" in text
    found = json.loads(run("decisions", tmp_path, "--json")[1])
    assert (found["format"], found["torn"], len(found["head"])) == ("fairflare/decisions/1", 0, 64)
    assert [one["verdict"] for one in found["decisions"]] == ["accepted", "refused", "refused"]
    log.write_bytes(log.read_bytes()[:-10])
    assert "while they were written: 1" in run("decisions", tmp_path)[1]
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0] * 2)
    status, text = run("decisions", tmp_path)
    assert (status, "FF-DECISION-CHAIN" in text) == (1, True)


def test_a_simulators_sites_have_lists_of_their_own(tmp_path: Path) -> None:
    write_policy(tmp_path, open_policy(tmp_path / "store"))
    for site in ("north", "south"):
        DecisionLog(tmp_path / "store" / site / "decisions.jsonl").append(replace(ONE, site=site))
    status, text = run("decisions", tmp_path)
    assert (status, "FF-POLICY-SITE" in text, "north, south" in text) == (1, True, True)
    found = json.loads(run("decisions", tmp_path, "--site", "south", "--json")[1])
    assert [one["site"] for one in found["decisions"]] == ["south"]
    assert "no decisions yet" in run("decisions", tmp_path, "--site", "west")[1]


def test_the_policy_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / POLICY_NAME).write_text("mine", encoding="utf-8")
    run("new", "--store", tmp_path / "store", "--to", tmp_path)
    assert (tmp_path / POLICY_NAME).read_text(encoding="utf-8") == "mine"
