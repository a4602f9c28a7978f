# SPDX-License-Identifier: Apache-2.0
"""Whole kits: what FLARE's stock kits leave open is found by name; kits of our builder leave nothing open."""

from __future__ import annotations

import os
import shutil
import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairflare.audit.auditor import audit_kit
from fairflare.audit.rules import code, privacy
from fairflare.audit.rules.code import JOB_CLASSES, KIT_CLASSES
from fairflare.errors import AuditError
from fairflare.flare import provision_files
from tests.unit.audit import kits
from tests.unit.audit.kits import Authority

C, H, M, L = "critical", "high", "medium", "low"
#: What stands open in the kits that `nvflare provision` makes without our builder (design: flare.md 4 and 6).
STOCK = {
    kits.SITE: {
        ("FFA-102", H, "startup/signature.json"),
        ("FFA-106", L, "local/"),
        ("FFA-106", L, "startup/"),
        ("FFA-106", L, "."),
        ("FFA-201", C, "local/authorization.json.default:permissions.lead.byoc"),
        ("FFA-201", C, "local/authorization.json.default:permissions.project_admin"),
        ("FFA-204", H, "local/resources.json.default:class_allow_list"),
        ("FFA-205", H, "local/resources.json.default:app_validator"),
        ("FFA-206", C, "local/resources.json.default:components"),
        ("FFA-206", H, "local/authorization.json.default:permissions.project_admin"),
        ("FFA-206", H, "local/authorization.json.default:permissions.org_admin.shell_commands"),
        ("FFA-206", H, "local/authorization.json.default:permissions.lead.shell_commands"),
        ("FFA-207", M, "local/resources.json.default:components"),
        ("FFA-301", H, "local/privacy.json"),
        ("FFA-303", H, "local/privacy.json"),
        ("FFA-305", M, "local/site_policy.json"),
        ("FFA-306", M, "local/data_catalog.json"),
        ("FFA-701", H, "local/resources.json.default:allow_log_streaming"),
        ("FFA-701", H, "local/resources.json.default:components[3]"),
    },
    kits.SERVER: {
        ("FFA-102", H, "startup/signature.json"),
        ("FFA-106", L, "local/"),
        ("FFA-106", L, "startup/"),
        ("FFA-106", L, "."),
        ("FFA-201", C, "local/authorization.json.default:permissions.lead.byoc"),
        ("FFA-201", C, "local/authorization.json.default:permissions.project_admin"),
        ("FFA-204", H, "local/resources.json.default:class_allow_list"),
        ("FFA-205", H, "local/resources.json.default:app_validator"),
        ("FFA-206", H, "local/authorization.json.default:permissions.project_admin"),
        ("FFA-206", H, "local/authorization.json.default:permissions.org_admin.shell_commands"),
        ("FFA-206", H, "local/authorization.json.default:permissions.lead.shell_commands"),
        ("FFA-207", M, "local/resources.json.default:components"),
        ("FFA-701", H, "local/resources.json.default:components[4]"),
        ("FFA-804", H, "local/resources.json.default:snapshot_persistor.args.storage.args.root_dir"),
        ("FFA-804", H, "local/resources.json.default:components[1].args.uri_root"),
        ("FFA-805", M, "local/resources.json.default:servers[0].heart_beat_timeout"),
    },
    kits.PERSON: {("FFA-106", L, "startup/"), ("FFA-106", L, "local/")},
}


@pytest.mark.parametrize("name", STOCK)
def test_what_stands_open_in_a_stock_kit(stock, tmp_path, name):
    kit = kits.copy(stock, name, tmp_path)
    for path in (kit, *kit.rglob("*")):  # as a usual umask leaves them, whatever the tests' own is
        path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o600 if path.suffix == ".key" else 0o644)
    report = audit_kit(kit)
    assert {(one.rule.id, one.severity.value, one.place) for one in report.findings} == STOCK[name]
    assert report.undecided == ()


@pytest.mark.parametrize("name", ["hospital-2", kits.SERVER, kits.PERSON, "admin@example.org"])
def test_a_hardened_kit_as_it_is_provisioned_lacks_the_hospitals_own_files_only(hardened, name):
    report = audit_kit(hardened / "prod_00" / name)
    own = {("FFA-305", M), ("FFA-306", M)} if name == "hospital-2" else set()
    assert {(one.rule.id, one.severity.value) for one in report.findings} == own
    assert report.undecided == ()


def test_the_auditors_own_list_of_classes_is_that_of_the_builder():
    # Written down twice on purpose: the auditor must not ask the audited what is allowed.
    assert {one for listed in provision_files.ALLOWED.values() for one in listed} == set(JOB_CLASSES)
    own = (provision_files.SHUTTERS, provision_files.VALIDATOR, provision_files.SEAL)
    assert own == (code.SHUTTERS, code.VALIDATOR, privacy.SEAL)
    assert {provision_files.SHUTTERS, provision_files.VALIDATOR, provision_files.STORAGE} <= KIT_CLASSES


def test_a_folder_that_is_no_kit_is_refused(tmp_path, hardened):
    for folder in (tmp_path / "none", tmp_path, hardened / "prod_00"):
        with pytest.raises(AuditError) as caught:
            audit_kit(folder)
        assert caught.value.code in ("FF-AUDIT-FOLDER", "FF-AUDIT-KIT")
        assert str(folder) not in str(caught.value)


def test_a_kit_that_runs_through_links_inside_its_workspace_is_read(hardened, tmp_path):
    # FLARE's start script copies a mounted kit to <workspace>/kit, and links startup/ and local/ to it.
    shutil.copytree(hardened / "prod_00" / kits.SITE, tmp_path / "kit")
    for name in ("startup", "local"):
        (tmp_path / name).symlink_to(tmp_path / "kit" / name)
    report = audit_kit(tmp_path)
    assert (report.findings, report.undecided) == ((), ())


def test_a_startup_folder_outside_the_kit_is_not_followed(hardened, tmp_path):
    (tmp_path / "startup").symlink_to(hardened / "prod_00" / kits.SITE / "startup")
    with pytest.raises(AuditError):
        audit_kit(tmp_path)


def test_a_policy_that_is_a_pipe_is_not_waited_for(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    (kit / "local/site_policy.json").unlink()
    os.mkfifo(kit / "local/site_policy.json", 0o600)
    (kit / "local/approvals").mkdir(mode=0o700)
    (kit / f"local/approvals/{'0' * 64}.json").touch(mode=0o600)
    report = audit_kit(kit)  # reading an approval means reading the policy that it was given under
    assert {one.rule.id for one in report.findings} == {"FFA-305"}


@pytest.mark.parametrize("file", ["client.crt", "rootCA.pem"])
def test_a_certificate_with_a_key_that_nobody_knows_leaves_the_rule_open(hardened, tmp_path, file):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    now = datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, kits.SITE)])
    key = ec.generate_private_key(ec.SECP256R1())
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(90)).sign(key, hashes.SHA256())
    curve = bytes.fromhex("06082a8648ce3d0301")  # with 07 after it; there is no curve 66
    data = made.public_bytes(serialization.Encoding.DER).replace(curve + b"\x07", curve + b"\x66")
    (kit / "startup" / file).write_text(ssl.DER_cert_to_PEM_cert(data), encoding="ascii")
    Authority(hardened).sign(kit)
    assert "FFA-103" in {one.rule.id for one in audit_kit(kit).undecided}


def test_the_private_key_is_never_read(hardened):
    report = audit_kit(hardened / "prod_00" / kits.SITE)
    assert "kit/startup/client.crt" in report.evidence
    assert "kit/startup/client.key" not in report.evidence


FILES = [
    "startup/fed_client.json", "startup/signature.json", "startup/client.crt", "startup/rootCA.pem",
    "local/resources.json.default", "local/authorization.json.default", "local/privacy.json", "local/roster.json",
    "local/site_policy.json", "local/data_catalog.json",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), data=st.binary(max_size=60) | JSON)
def test_no_broken_file_breaks_the_audit_or_passes_it(hardened, tmp_path, name, data):
    kit = tmp_path / "kit"
    shutil.rmtree(kit, ignore_errors=True)
    shutil.copytree(hardened / "prod_00" / kits.SITE, kit)
    import json

    file = kit / name
    file.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    report = audit_kit(kit)
    assert report.findings or report.undecided
    texts = [text for one in report.findings for text in (one.place, one.got, one.allowed)]
    texts += [text for one in report.undecided for text in (one.place, one.reason)]
    assert all(text.isprintable() and str(tmp_path) not in text for text in texts)


@pytest.mark.parametrize("name", FILES)
def test_no_missing_file_passes_the_audit(hardened, tmp_path, name):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    (kit / name).unlink()
    if name == "startup/fed_client.json":
        with pytest.raises(AuditError):
            audit_kit(kit)
        return
    report = audit_kit(kit)
    # Without a roster nothing is wrong: pins are exchanged by telephone.
    assert bool(report.findings or report.undecided) is (name != "local/roster.json")


def test_the_file_that_flare_reads_is_the_one_that_counts(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    text = (kit / "local/resources.json.default").read_text(encoding="utf-8")
    (kit / "local/resources.json").write_text(text.replace('"enforce"', '"warn"'), encoding="utf-8")
    (kit / "local/resources.json").chmod(0o600)
    report = audit_kit(kit)
    assert [(one.rule.id, one.place) for one in report.findings] == [
        ("FFA-204", "local/resources.json:class_list_enforcement_mode")
    ]
    Path(kit / "local/resources.json").write_text("{}", encoding="utf-8")
    assert {one.rule.id for one in audit_kit(kit).findings} >= {"FFA-204", "FFA-205", "FFA-206", "FFA-701"}
