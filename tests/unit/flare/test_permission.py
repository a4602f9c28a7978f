# SPDX-License-Identifier: Apache-2.0
"""A site's policy as it stands now: asked before a job's first task and before each release, and every answer kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext

from fairflare.errors import DecisionError, FairFlareError, PolicyError
from fairflare.flare.permission import Asked, Permission, Places, asked
from fairflare.policy import POLICY_NAME, SitePolicy, open_policy, standard_policy, write_policy
from fairflare.policy.approvals import FOLDER, sign_approval
from fairflare.policy.package import installed_digest
from fairflare.policy.site import MostPrivacyLoss
from fairflare.privacy.decisions import Decision, read_decisions
from tests.unit.engine.test_private import METHODS, private_plan
from tests.unit.policy.support import CELLS, make_kit, plan

PLAN = plan(cells=CELLS)
WHO = Asked("north", "job", "lead@example.org")
TODAY = date(2030, 5, 17)


class Site:
    """A simulator's site by default: no kit, and a log below its name."""

    def __init__(self, base: Path, kit: Path | None = None, policy: SitePolicy | None = None) -> None:
        self.store = base / "store"
        kit = kit or base / "kit"
        (kit / "local").mkdir(parents=True, exist_ok=True)
        self.places = Places(kit / "local", kit / "startup", base / "workspace")
        self.today = TODAY
        self.policy = policy or open_policy(self.store)
        self.write()

    def write(self, **changes: object) -> None:
        """Give the site another policy, with a time of its own: a test is faster than a clock's tick."""
        path = write_policy(self.places.local, self.policy.model_copy(update=changes))
        self._ticks = getattr(self, "_ticks", 0) + 1
        os.utime(path, ns=(self._ticks, self._ticks))

    def join(self) -> Permission:
        permission = self.asked()
        permission.verify()
        return permission

    def asked(self) -> Permission:
        return Permission(PLAN, WHO, self.places, today=lambda: self.today)

    @property
    def log(self) -> Path:
        return self.store / "north" / "decisions.jsonl"

    def decided(self) -> list[tuple[str, str, str | None]]:
        return [(one.depth, one.verdict, one.code) for one in read_decisions(self.log)]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(FairFlareError) as caught:
        call()
    return caught.value.code


def test_a_join_is_decided_once_and_kept(site: Site) -> None:
    permission = site.join()
    for _ in range(3):
        permission.verify()
    (decision,) = read_decisions(site.log)
    assert decision == Decision(
        decision.time, "north", "job", PLAN.sha256, PLAN.name, "lead@example.org", "join", "accepted", None, ()
    )


def test_a_package_that_the_policy_does_not_name_joins_nothing(site: Site) -> None:
    site.write(package="ab" * 32)
    assert code_of(site.join) == "FF-POLICY-PACKAGE"
    (decision,) = read_decisions(site.log)
    assert (decision.depth, decision.verdict, decision.code) == ("join", "refused", "FF-POLICY-PACKAGE")
    assert decision.reasons[0].startswith(f"package: got {installed_digest()}, expected the one")
    site.write(package=installed_digest())
    permission = site.join()
    site.write(package="ab" * 32)
    assert code_of(permission.verify) == "FF-POLICY-PACKAGE"  # named while the job ran


def test_a_refusal_is_kept_with_its_reasons(site: Site) -> None:
    site.write(least_sites=4, cells_minimum=20)
    assert code_of(site.join) == "FF-POLICY-REFUSED"
    (decision,) = read_decisions(site.log)
    assert (decision.depth, decision.verdict, decision.code) == ("join", "refused", "FF-POLICY-REFUSED")
    assert "federation.min_sites: got 3, expected at least 4" in decision.reasons[0]


def test_a_server_that_asks_again_and_again_fills_no_disk(site: Site) -> None:
    site.write(least_sites=4)
    permission = site.asked()
    for _ in range(5):
        assert code_of(permission.verify) == "FF-POLICY-REFUSED"
    assert site.decided() == [("join", "refused", "FF-POLICY-REFUSED")]


def test_a_site_that_gives_in_joins_under_its_new_terms(site: Site) -> None:
    site.write(least_sites=4, cohort_changes=7, store=str(site.store / "first"))
    permission = site.asked()
    assert code_of(permission.verify) == "FF-POLICY-REFUSED"
    site.write(cohort_changes=3)
    permission.verify()
    assert permission.policy.cohort_changes == 3
    assert site.decided() == [("join", "accepted", None)]
    assert len(read_decisions(site.store / "first" / "north" / "decisions.jsonl")) == 1
    site.write(cohort_changes=2)
    assert code_of(permission.verify) == "FF-POLICY-CHANGED"


def test_a_store_that_is_none_before_joining_is_no_new_store(site: Site) -> None:
    site.write(least_sites=4)
    permission = site.asked()
    site.write(store=str(site.places.workspace / "inside"))
    assert code_of(permission.verify) == "FF-POLICY-STORE"
    deleted(site)
    assert code_of(permission.verify) == "FF-POLICY-FILE"
    assert [one[2] for one in site.decided()] == ["FF-POLICY-REFUSED", "FF-POLICY-STORE", "FF-POLICY-FILE"]


def test_without_a_policy_there_is_nowhere_to_write_and_nothing_runs(site: Site) -> None:
    (site.places.local / POLICY_NAME).unlink()
    assert code_of(site.join) == "FF-POLICY-FILE"
    assert not site.store.exists()


def deleted(site: Site) -> None:
    (site.places.local / POLICY_NAME).unlink()


def broken(site: Site) -> None:
    (site.places.local / POLICY_NAME).write_text("{", encoding="utf-8")


def tightened(site: Site) -> None:
    site.write(cells_minimum=20)


def withdrawn(site: Site) -> None:
    site.write(plans=())


def put_to_its_end(site: Site) -> None:
    site.write(expires="2030-05-16")


def another_store(site: Site) -> None:
    site.write(store="/elsewhere")


def fewer_cohorts(site: Site) -> None:
    site.write(cohort_changes=3)


def kits_only(site: Site) -> None:
    site.write(identities="kit")


def named_peers(site: Site) -> None:
    site.write(peers={"south": "ab" * 32})


CHANGES: list[tuple[Callable[[Site], None], str]] = [
    (deleted, "FF-POLICY-FILE"), (broken, "FF-POLICY-JSON"), (tightened, "FF-POLICY-REFUSED"),
    (withdrawn, "FF-POLICY-REFUSED"), (put_to_its_end, "FF-POLICY-EXPIRED"), (another_store, "FF-POLICY-CHANGED"),
    (fewer_cohorts, "FF-POLICY-CHANGED"), (kits_only, "FF-POLICY-CHANGED"), (named_peers, "FF-POLICY-CHANGED"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code"), CHANGES, ids=lambda one: getattr(one, "__name__", ""))
def test_a_change_of_mind_stops_what_runs_and_is_kept_once(
    site: Site, change: Callable[[Site], None], code: str
) -> None:
    permission = site.join()
    change(site)
    for _ in range(3):
        assert code_of(permission.verify) == code
    assert site.decided() == [("join", "accepted", None), ("release", "refused", code)]
    site.write()
    permission.verify()
    assert site.decided()[2:] == [("release", "accepted", None)]


def test_a_policy_that_expires_at_midnight_stops_what_runs(site: Site) -> None:
    site.write(expires="2030-05-18")
    permission = site.join()
    site.today = date(2030, 5, 18)
    permission.verify()
    site.today = date(2030, 5, 19)
    assert code_of(permission.verify) == "FF-POLICY-EXPIRED"
    assert site.decided() == [("join", "accepted", None), ("release", "refused", "FF-POLICY-EXPIRED")]


@pytest.mark.parametrize(
    ("before", "after", "is_tighter"),
    [
        ({"peers": {"south": "ab" * 32}}, {"peers": {"south": "cd" * 32}}, True),
        ({"peers": {"south": "ab" * 32, "west": "cd" * 32}}, {"peers": {"south": "ab" * 32}}, True),
        ({"peers": {"south": "ab" * 32}}, {"peers": {"south": "ab" * 32, "west": "cd" * 32}}, False),
        ({"peers": {"south": "ab" * 32}}, {"peers": None}, False),
        ({"cohort_changes": 3}, {"cohort_changes": 4}, False),
        ({"identities": "kit"}, {"identities": "development"}, False),
        ({}, {"most_rounds": 1000}, False),
    ],
)
def test_what_a_job_took_over_may_be_loosened_but_not_tightened(
    site: Site, before: dict[str, Any], after: dict[str, Any], is_tighter: bool
) -> None:
    site.write(**before)
    permission = site.join()
    site.write(**{**before, **after})
    if is_tighter:
        assert code_of(permission.verify) == "FF-POLICY-CHANGED"
    else:
        permission.verify()
        assert site.decided() == [("join", "accepted", None), ("release", "accepted", None)]


BUDGET = MostPrivacyLoss(epsilon=8.0, delta=1e-5, relation="add_remove")


@pytest.mark.parametrize(
    ("before", "after", "is_tighter"),
    [
        (BUDGET, BUDGET.model_copy(update={"epsilon": 2.0}), True),
        (BUDGET, BUDGET.model_copy(update={"delta": 1e-6}), True),
        (BUDGET, BUDGET.model_copy(update={"relation": "replace"}), True),
        (None, BUDGET, True),
        (BUDGET, BUDGET.model_copy(update={"epsilon": 9.0}), False),
        (BUDGET, None, False),
    ],
)
def test_a_running_job_does_not_spend_what_the_policy_no_longer_allows(
    site: Site, before: MostPrivacyLoss | None, after: MostPrivacyLoss | None, is_tighter: bool
) -> None:
    """Its account has the budget of its start."""
    site.write(differential_privacy=before)
    permission = Permission(private_plan(*METHODS["fedavg"]), WHO, site.places, today=lambda: site.today)
    permission.verify()
    site.write(differential_privacy=after)
    if is_tighter:
        assert code_of(permission.verify) == "FF-POLICY-CHANGED"
    else:
        permission.verify()


def test_what_was_decided_must_be_written_before_anything_leaves(site: Site) -> None:
    permission = site.join()
    site.log.unlink()
    site.log.mkdir()
    permission.verify()  # nothing has changed, so there is nothing to write
    site.write(most_rounds=1000)
    for _ in range(2):
        assert code_of(permission.verify) == "FF-DECISION-LOG"
    site.log.rmdir()
    permission.verify()
    assert site.decided() == [("release", "accepted", None)]


def test_a_log_that_cannot_be_written_refuses_the_join(site: Site) -> None:
    site.log.mkdir(parents=True)
    with pytest.raises(DecisionError, match="FF-DECISION-LOG"):
        site.join()


def test_a_store_that_others_can_write_to_refuses_the_join(site: Site) -> None:
    site.store.mkdir(mode=0o700)
    site.store.chmod(0o777)
    with pytest.raises(PolicyError, match="FF-POLICY-STORE"):
        site.join()


# -------------------------------------------------------------------------------------------------- with a start-up kit


@pytest.fixture
def hospital(tmp_path: Path) -> Site:
    kit = make_kit(tmp_path / "kit")
    return Site(tmp_path, kit, standard_policy(tmp_path / "store"))


def in_kit(site: Site) -> list[str]:
    return [one.verdict for one in read_decisions(site.store / "decisions.jsonl")]


def test_a_signed_approval_lets_a_plan_join_until_it_is_withdrawn(hospital: Site, tmp_path: Path) -> None:
    assert code_of(hospital.join) == "FF-POLICY-REFUSED"
    file = sign_approval(tmp_path / "kit", PLAN, by="Dr Example", expires=date(2030, 5, 18), today=TODAY)
    permission = hospital.join()
    other = plan(cells=CELLS, training__rounds=3)
    sign_approval(tmp_path / "kit", other, by="Dr Example", today=TODAY)
    permission.verify()
    assert in_kit(hospital) == ["refused", "accepted"]
    kept = file.read_text(encoding="utf-8")
    file.unlink()
    assert code_of(permission.verify) == "FF-POLICY-REFUSED"
    file.write_text(kept, encoding="utf-8")
    permission.verify()
    hospital.today = date(2030, 5, 19)
    assert code_of(permission.verify) == "FF-POLICY-REFUSED"
    assert in_kit(hospital) == ["refused", "accepted", "refused", "accepted", "refused"]


def test_another_certificate_makes_approvals_void(hospital: Site, tmp_path: Path) -> None:
    sign_approval(tmp_path / "kit", PLAN, by="Dr Example", today=TODAY)
    permission = hospital.join()
    other = make_kit(tmp_path / "other")
    (tmp_path / "kit" / "startup" / "client.crt").write_bytes((other / "startup" / "client.crt").read_bytes())
    assert code_of(permission.verify) == "FF-POLICY-REFUSED"


def test_an_approvals_folder_that_is_none_approves_nothing(hospital: Site) -> None:
    (hospital.places.local / FOLDER).write_text("", encoding="utf-8")
    assert code_of(hospital.join) == "FF-POLICY-REFUSED"


def test_half_a_kit_is_no_simulation(site: Site) -> None:
    site.places.startup.mkdir()
    (site.places.startup / "client.crt").write_text("", encoding="utf-8")
    assert code_of(site.join) == "FF-SECAGG-CERTIFICATE"


# ----------------------------------------------------------------------------------------------------- FLARE's context


@pytest.mark.parametrize(
    ("meta", "submitter"),
    [
        ({"submitter_name": "lead@example.org"}, "lead@example.org"),
        ({}, None),
        (None, None),
        ({"submitter_name": 1}, None),
    ],
)
def test_who_asks_is_what_flare_says(meta: object, submitter: str | None) -> None:
    ctx = FLContext()
    ctx.set_prop(ReservedKey.IDENTITY_NAME, "north", private=False, sticky=False)
    ctx.set_prop(ReservedKey.RUN_NUM, "job", private=False, sticky=False)
    if meta is not None:
        ctx.set_prop(FLContextKey.JOB_META, meta, private=True, sticky=False)
    assert asked(ctx) == Asked("north", "job", submitter)
