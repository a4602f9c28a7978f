# SPDX-License-Identifier: Apache-2.0
"""Which ledger pays for a job at a site, with which budget, and where its newest event is noted."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairflare import presets
from fairflare.errors import LedgerError, PolicyError
from fairflare.flare.identities import site_account
from fairflare.plan import Plan
from fairflare.policy import SitePolicy, open_policy
from fairflare.policy.site import MostPrivacyLoss
from fairflare.privacy.loss import Budget, Gaussian

PRIVATE, OPEN = presets.shipped("heart_private"), presets.shipped("heart_flexfair")
KIT = ("client.crt", "client.key", "rootCA.pem")
MOST = MostPrivacyLoss(epsilon=3.0, delta=1e-6, relation="replace")
BILL = [("units", Gaussian(10.0, 1.0, 1))]


@pytest.fixture
def policy(tmp_path: Path) -> SitePolicy:
    (tmp_path / "store").mkdir(mode=0o700)
    return open_policy(tmp_path / "store").model_copy(update={"differential_privacy": MOST})


def account_of(plan: Plan, policy: SitePolicy, folder: Path, name: str = "site-1", job: str = "job-1"):
    (folder / "startup").mkdir(parents=True, exist_ok=True)
    return site_account(plan, policy, name, folder / "startup", folder / "workspace", job)


def test_a_plan_without_differential_privacy_needs_none(policy: SitePolicy, tmp_path: Path) -> None:
    assert account_of(OPEN, policy, tmp_path / "kit") is None


def test_a_hospitals_ledger_is_one_for_each_data_set_whatever_its_name(policy: SitePolicy, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    (kit / "startup").mkdir(parents=True)
    for file in KIT:
        (kit / "startup" / file).touch()
    for job in ("job-1", "job-2"):
        account = account_of(PRIVATE, policy, kit, name=f"name-of-{job}", job=job)
        assert account is not None
        assert account.budget == Budget(3.0, 1e-6, "replace")
        account.pay(PRIVATE.sha256, 0, BILL)
    assert [one.release.job for one in account.ledger.entries()] == ["job-1", "job-2"]
    assert (tmp_path / "store" / "heart" / "ledger.sqlite").is_file()
    assert (kit / "anchors" / "ledger-heart").is_file()
    (tmp_path / "store" / "heart" / "ledger.sqlite").unlink()  # an older one would be found just so
    with pytest.raises(LedgerError, match="FF-LEDGER-ROLLBACK"):
        account_of(PRIVATE, policy, kit).pay(PRIVATE.sha256, 1, BILL)


def test_sites_of_a_simulator_have_one_each_and_no_limit_is_no_budget(policy: SitePolicy, tmp_path: Path) -> None:
    unlimited = policy.model_copy(update={"differential_privacy": None})
    for name in ("site-1", "site-2"):
        account = account_of(PRIVATE, unlimited, tmp_path / "simulator", name=name)
        assert account is not None
        assert account.budget is None
        account.pay(PRIVATE.sha256, 0, BILL)
        assert len(account.ledger.entries()) == 1
        assert (tmp_path / "store" / name / "heart" / "ledger.sqlite").is_file()
    assert not (tmp_path / "simulator" / "anchors").exists()


def test_a_store_in_a_workspace_that_flare_erases_is_refused(policy: SitePolicy, tmp_path: Path) -> None:
    inside = policy.model_copy(update={"store": str(tmp_path / "simulator" / "workspace" / "store")})
    with pytest.raises(PolicyError, match="FF-POLICY-STORE"):
        account_of(PRIVATE, inside, tmp_path / "simulator")
