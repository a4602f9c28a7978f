# SPDX-License-Identifier: Apache-2.0
"""Signed approvals: only this site's own, of this plan, under these terms, until their last day; and never an error."""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from fairflare import schema
from fairflare.errors import PolicyError, SecaggError
from fairflare.policy import read_policy, strict_policy, write_policy
from fairflare.policy.approvals import (
    FOLDER,
    Approval,
    approved_plans,
    check_approvals,
    sign_approval,
    site_name,
)
from fairflare.policy.roster import read_roster
from fairflare.secagg.identity import kit_identity
from tests.unit.policy.support import CELLS, STORE, certificate, make_kit, plan, write_roster

TODAY = date(2030, 5, 17)
PLAN = plan(cells=CELLS)


@pytest.fixture(scope="module")
def first_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kit = make_kit(tmp_path_factory.mktemp("first") / "north")
    sign_approval(kit, PLAN, by="Dr Example", expires=date(2030, 6, 30), today=TODAY)
    return kit


@pytest.fixture(scope="module")
def other_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kit = make_kit(tmp_path_factory.mktemp("other") / "south", "south")
    sign_approval(kit, PLAN, by="Dr Other", today=TODAY)
    return kit


@pytest.fixture
def kit(first_kit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first_kit, tmp_path / "kit"))


def file(kit: Path) -> Path:
    return kit / "local" / FOLDER / f"{PLAN.sha256}.json"


def approved(kit: Path, today: date = TODAY) -> frozenset[str]:
    return approved_plans(kit / "local", certificate(kit), today=today)


def rewrite(kit: Path, **changes: object) -> None:
    data = {**json.loads(file(kit).read_text(encoding="utf-8")), **changes}
    file(kit).write_text(json.dumps(data), encoding="utf-8")


def resign(kit: Path, **changes: object) -> None:
    """The same with a signature that is right for what is written: what only the holder of the key can do."""
    approval = Approval.model_validate_json(file(kit).read_text(encoding="utf-8")).model_copy(update=changes)
    key = load_pem_private_key((kit / "startup" / "client.key").read_bytes(), None)
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
    signature = base64.b64encode(key.sign(approval.message, pss, hashes.SHA256())).decode()  # type: ignore[union-attr,call-arg,arg-type]
    file(kit).write_text(schema.pretty(approval.model_copy(update={"signature": signature})), encoding="utf-8")


def test_a_signed_approval_counts_until_its_last_day(kit: Path) -> None:
    assert approved(kit) == {PLAN.sha256}
    assert approved(kit, date(2030, 6, 30)) == {PLAN.sha256}
    assert approved(kit, date(2030, 7, 1)) == frozenset()
    read_policy(kit / "local").verify(PLAN, today=TODAY, approved=approved(kit))


def test_it_says_who_approved_what_when_and_under_which_terms(kit: Path) -> None:
    (found,) = check_approvals(kit / "local", certificate(kit), today=TODAY)
    approval = found.approval
    assert approval is not None
    assert (approval.plan_name, approval.site, approval.approved_by) == ("heart_flexfair", "north", "Dr Example")
    assert (approval.approved_on, approval.expires) == ("2030-05-17", "2030-06-30")
    assert approval.policy_sha256 == read_policy(kit / "local").terms_sha256


def test_a_site_has_no_approvals_of_its_own_accord(tmp_path: Path, kit: Path) -> None:
    assert approved_plans(tmp_path, certificate(kit)) == frozenset()
    assert approved_plans(tmp_path / "absent", None) == frozenset()


def test_without_a_last_day_it_lasts(kit: Path) -> None:
    sign_approval(kit, PLAN, by="Dr Example", today=TODAY)
    assert approved(kit, date(2090, 1, 1)) == {PLAN.sha256}
    assert approved_plans(kit / "local", certificate(kit)) == {PLAN.sha256}


def broken_json(kit: Path, other: Path) -> None:
    file(kit).write_text("{", encoding="utf-8")


def not_text(kit: Path, other: Path) -> None:
    file(kit).write_bytes(b"\xff\xfe\x00")


def a_folder(kit: Path, other: Path) -> None:
    file(kit).unlink()
    file(kit).mkdir()


def a_link(kit: Path, other: Path) -> None:
    shutil.move(file(kit), kit / "elsewhere.json")
    file(kit).symlink_to(kit / "elsewhere.json")


def a_huge_file(kit: Path, other: Path) -> None:
    file(kit).write_text(file(kit).read_text(encoding="utf-8") + " " * 17_000, encoding="utf-8")


def another_key(kit: Path, other: Path) -> None:
    rewrite(kit, expires_never=True)


def later_last_day(kit: Path, other: Path) -> None:
    rewrite(kit, expires="2040-01-01")


def no_last_day(kit: Path, other: Path) -> None:
    rewrite(kit, expires=None)


def another_person(kit: Path, other: Path) -> None:
    rewrite(kit, approved_by="Dr Nobody")


def another_plan(kit: Path, other: Path) -> None:
    file(kit).rename(file(kit).with_name(f"{'ab' * 32}.json"))


def another_plan_inside(kit: Path, other: Path) -> None:
    rewrite(kit, plan_sha256="ab" * 32)
    another_plan(kit, other)


def another_site(kit: Path, other: Path) -> None:
    shutil.copyfile(file(other), file(kit))


def another_site_renamed(kit: Path, other: Path) -> None:
    another_site(kit, other)
    rewrite(kit, site="north")


def no_base64(kit: Path, other: Path) -> None:
    rewrite(kit, signature="not base64!")


def no_signature(kit: Path, other: Path) -> None:
    rewrite(kit, signature="")


def another_policy(kit: Path, other: Path) -> None:
    policy = read_policy(kit / "local")
    write_policy(kit / "local", policy.model_copy(update={"cohort_changes": 1}))


def no_policy(kit: Path, other: Path) -> None:
    (kit / "local" / "site_policy.json").unlink()


def another_certificate(kit: Path, other: Path) -> None:
    shutil.copyfile(other / "startup" / "client.crt", kit / "startup" / "client.crt")


def no_certificate(kit: Path, other: Path) -> None:
    (kit / "startup" / "client.crt").write_text("none", encoding="utf-8")


DEFECTS: list[tuple[Callable[[Path, Path], None], str]] = [
    (broken_json, "FF-POLICY-JSON"), (not_text, "FF-POLICY-FILE"), (a_folder, "no plain file"),
    (a_link, "no plain file"), (a_huge_file, "no plain file"), (another_key, "FF-POLICY-UNKNOWN-KEY"),
    (later_last_day, "no valid signature"), (no_last_day, "no valid signature"),
    (another_person, "no valid signature"), (another_plan, "of another plan"),
    (another_plan_inside, "no valid signature"), (another_site, "of another site"),
    (another_site_renamed, "no valid signature"), (no_base64, "no valid signature"),
    (no_signature, "no valid signature"), (another_policy, "under another policy"),
    (no_policy, "under another policy"), (another_certificate, "of another site"),
    (no_certificate, "of another site"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "why"), DEFECTS, ids=lambda one: getattr(one, "__name__", ""))
def test_whatever_is_wrong_makes_it_no_approval(
    kit: Path, other_kit: Path, spoil: Callable[[Path, Path], None], why: str
) -> None:
    spoil(kit, other_kit)
    assert approved(kit) == frozenset()
    (found,) = check_approvals(kit / "local", certificate(kit), today=TODAY)
    assert why in found.defect


def test_the_holder_of_the_key_is_bound_by_file_name_site_and_terms_too(kit: Path) -> None:
    resign(kit)
    assert approved(kit) == {PLAN.sha256}
    for changes in ({"plan_sha256": "ab" * 32}, {"site": "south"}, {"policy_sha256": "ab" * 32}):
        resign(kit, **changes)
        assert approved(kit) == frozenset()
        resign(kit, plan_sha256=PLAN.sha256, site="north", policy_sha256=read_policy(kit / "local").terms_sha256)
    assert approved(kit) == {PLAN.sha256}


def test_a_signature_for_something_else_is_none(kit: Path) -> None:
    """The same key signs messages of masked aggregation."""
    approval = Approval.model_validate_json(file(kit).read_text(encoding="utf-8"))
    assert approval.message.startswith(b"fairflare/approval/1\n{")
    key = kit / "startup" / "client.key"
    identity = kit_identity("north", certificate(kit), key.read_bytes())
    without = approval.message.removeprefix(b"fairflare/approval/1\n")
    rewrite(kit, signature=base64.b64encode(identity.sign(without)).decode())
    assert approved(kit) == frozenset()
    rewrite(kit, signature=base64.b64encode(identity.sign(approval.message)).decode())
    assert approved(kit) == {PLAN.sha256}


def test_a_kit_with_another_kind_of_key_has_approved_nothing(kit: Path) -> None:
    own = x509.load_pem_x509_certificate(certificate(kit))
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(own.issuer)
        .public_key(key.public_key())
        .serial_number(2)
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    assert approved_plans(kit / "local", made.public_bytes(Encoding.PEM), today=TODAY) == frozenset()


def test_a_kit_with_a_key_that_nobody_knows_has_approved_nothing(kit: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert((kit / "startup" / "client.crt").read_text(encoding="ascii"))
    rsa_key, unknown = (bytes.fromhex(f"06092a864886f70d0101{last}0500") for last in ("01", "7f"))
    pem = ssl.DER_cert_to_PEM_cert(der.replace(rsa_key, unknown)).encode()
    with pytest.raises(UnsupportedAlgorithm):
        x509.load_pem_x509_certificate(pem).public_key()
    assert approved_plans(kit / "local", pem, today=TODAY) == frozenset()


def test_without_a_kit_nothing_is_approved(kit: Path) -> None:
    assert approved_plans(kit / "local", None, today=TODAY) == frozenset()
    (found,) = check_approvals(kit / "local", None, today=TODAY)
    assert "no start-up kit" in found.defect


def test_other_files_in_the_folder_are_not_looked_at(kit: Path) -> None:
    shutil.copyfile(file(kit), file(kit).with_name("README.json"))
    shutil.copyfile(file(kit), file(kit).with_suffix(".new"))
    assert len(list(check_approvals(kit / "local", certificate(kit), today=TODAY))) == 1


def test_a_listed_plan_leaves_signed_approvals_as_they_are(kit: Path) -> None:
    policy = read_policy(kit / "local")
    write_policy(kit / "local", policy.model_copy(update={"plans": ("ab" * 32,)}))
    assert approved(kit) == {PLAN.sha256}


def test_a_strict_policy_runs_what_was_signed_for(tmp_path: Path) -> None:
    features = [{"name": "chol", "center": 0.0, "scale": 1.0}]
    wanted = plan(cells={"minimum": 11, "sites": 4}, federation__min_sites=4, task__input__features=features)
    lists = {"data_sets": ("heart",), "attributes": ("sex", "age"), "features": ("chol",)}
    policy = strict_policy(STORE, peers={"north": "ab" * 32}, **lists)  # type: ignore[arg-type]
    kit = make_kit(tmp_path / "kit", policy=policy)
    with pytest.raises(PolicyError, match="FF-POLICY-REFUSED"):
        policy.verify(wanted, approved=approved_plans(kit / "local", certificate(kit)))
    sign_approval(kit, wanted, by="Dr Example")
    policy.verify(wanted, approved=approved_plans(kit / "local", certificate(kit)))


# -------------------------------------------------------------------------------------------------------------- signing


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_can_read_signs_nothing(kit: Path, mode: int) -> None:
    file(kit).unlink()
    (kit / "startup" / "client.key").chmod(mode)
    with pytest.raises(PolicyError, match="FF-POLICY-KEY"):
        sign_approval(kit, PLAN, by="Dr Example")
    assert not file(kit).exists()


@pytest.mark.parametrize("name", ["client.crt", "client.key"])
def test_half_a_kit_signs_nothing(kit: Path, name: str) -> None:
    (kit / "startup" / name).unlink()
    with pytest.raises(PolicyError, match="FF-POLICY-KEY"):
        sign_approval(kit, PLAN, by="Dr Example")


def test_the_key_of_another_kit_signs_nothing(kit: Path, other_kit: Path) -> None:
    shutil.copyfile(other_kit / "startup" / "client.key", kit / "startup" / "client.key")
    with pytest.raises(SecaggError, match="FF-SECAGG-CERTIFICATE"):
        sign_approval(kit, PLAN, by="Dr Example")


def test_a_certificate_without_a_name_signs_nothing(kit: Path) -> None:
    (kit / "startup" / "client.crt").write_text("none", encoding="utf-8")
    assert site_name(b"none") is None
    with pytest.raises(SecaggError, match="FF-SECAGG-CERTIFICATE"):
        sign_approval(kit, PLAN, by="Dr Example")


@pytest.mark.parametrize("by", ["", "  ", "x" * 201, "Dr\nExample", "\x1b[2J"])
def test_somebody_approves(kit: Path, by: str) -> None:
    with pytest.raises(PolicyError, match="FF-POLICY-APPROVAL"):
        sign_approval(kit, PLAN, by=by, today=TODAY)


def test_an_approval_is_not_over_when_it_is_given(kit: Path) -> None:
    with pytest.raises(PolicyError, match="FF-POLICY-APPROVAL"):
        sign_approval(kit, PLAN, by="Dr Example", expires=date(2030, 5, 16), today=TODAY)
    sign_approval(kit, PLAN, by="Dr Example", expires=TODAY, today=TODAY)
    assert approved(kit) == {PLAN.sha256}


# --------------------------------------------------------------------------------------------------------------- roster


def test_a_roster_gives_the_peers(kit: Path) -> None:
    peers = read_roster(kit)
    assert set(peers) == {"north", "south"}
    assert peers["south"] == "ab" * 32


def own_key_changed(kit: Path) -> None:
    write_roster(kit, {"north": "cd" * 32, "south": "ab" * 32})


def own_name_missing(kit: Path) -> None:
    write_roster(kit, {"south": "ab" * 32})


def no_own_certificate(kit: Path) -> None:
    os.unlink(kit / "startup" / "client.crt")


def no_hash(kit: Path) -> None:
    write_roster(kit, {"north": "ab"})


def no_roster(kit: Path) -> None:
    os.unlink(kit / "local" / "roster.json")


def empty_roster(kit: Path) -> None:
    write_roster(kit, {})


ROSTERS: list[tuple[Callable[[Path], None], str]] = [
    (own_key_changed, "FF-POLICY-ROSTER"), (own_name_missing, "FF-POLICY-ROSTER"),
    (no_own_certificate, "FF-POLICY-ROSTER"), (no_hash, "FF-POLICY-VALUE"), (no_roster, "FF-POLICY-FILE"),
    (empty_roster, "FF-POLICY-VALUE"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "code"), ROSTERS, ids=lambda one: getattr(one, "__name__", ""))
def test_another_kits_roster_is_refused(kit: Path, spoil: Callable[[Path], None], code: str) -> None:
    spoil(kit)
    with pytest.raises(PolicyError) as caught:
        read_roster(kit)
    assert caught.value.code == code
