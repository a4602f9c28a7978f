# SPDX-License-Identifier: Apache-2.0
"""Bytes of a whole job as a rehearsal tells them, against those of whole runs."""

from __future__ import annotations

import json
import secrets
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairflare import presets, schema
from fairflare.engine.job_traffic import is_measured, job_messages, job_vectors
from fairflare.engine.local import local_account, local_masks, software
from fairflare.engine.messages import Layout, Reply, layout_of
from fairflare.engine.roles import coordinator_of, site_of
from fairflare.engine.rounds import is_measured as measured_in_a_session
from fairflare.engine.server import Start
from fairflare.evaluation.rehearsal import TaskBytes
from fairflare.evaluation.rehearsal_words import _protection
from fairflare.he.parameters import nominal
from fairflare.models import build, parameter_count
from fairflare.plan import Plan, parse_plan
from fairflare.privacy.gate import Release
from fairflare.record import Session
from tests.unit.engine.hospitals import PLAIN_SGD, encrypted, four, image_plan, masked, plan, three_of_images

FAIR: dict[str, Any] = presets.flexfair(presets.penalty("sex", "equalized_odds", 1.0))
METHODS = {
    "fedavg": presets.FEDAVG, "round": FAIR, "lagged": {**FAIR, "refresh": "round_lagged"},
    "every 2": {**FAIR, "refresh": {"rounds": 2}},
    "counts": {"name": "feasibility", "claims": [], "alpha": 0.05, "power": 0.8},
    "fedprox": presets.method("fedprox"), "scaffold": presets.method("scaffold"),
    "fednova": presets.method("fednova"), "fairfed": presets.method("fairfed", **presets.SITE_BOUNDS),
    "fairfed on everybody": presets.method("fairfed", gap="one_vs_overall", **presets.SITE_BOUNDS),
    "fairfed that compares nobody": presets.method("fairfed", beta=0.0),
    "fairmixup": presets.method("fairmixup"), "reweighting": presets.method("reweighting"),
}  # fmt: skip
#: Plain steps, as many at every site, which SCAFFOLD needs.
PLAIN = {"optimizer": PLAIN_SGD, "work": {"unit": "steps", "amount": 2}}
LOCK_STEP = {**FAIR, "refresh": "step"}
IMAGES = presets.flexfair(presets.penalty("sex", "equal_accuracy", 1.0, utility="dice_loss"))


def layout(of: Plan) -> Layout:
    return layout_of(of, parameter_count(build(of)))


def numbered(loaders: dict[str, Any]) -> dict[str, Any]:
    """The hospitals under the names that a rehearsal reckons with."""
    return {f"site-{number}": load for number, load in enumerate(loaders.values(), 1)}


class Sent:
    """What one site got and sent in a whole run, by task."""

    def __init__(self, of: Plan, loaders: dict[str, Any], folder: Path) -> None:
        self.times: dict[str, int] = defaultdict(int)
        self.down: dict[str, int] = defaultdict(int)
        self.up: dict[str, int] = defaultdict(int)
        self.protocol: dict[str, int] = defaultdict(int)
        self.vectors: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.record = 0
        played = {
            name: site_of(name, of, load, folder / name, None, local_masks(of, name), local_account(of, folder / name))
            for name, load in loaders.items()
        }
        coordinator = coordinator_of(of, folder, Start(secrets.token_hex(16), "local", software()))
        first = min(loaders)
        for phase in coordinator.phases(sorted(loaders)):
            for name in phase.targets:
                release = played[name].handle(phase.message)
                reply = (release.task, release.round, release.step, phase.message.session)
                phase.collector.accept(name, Reply(*reply, release.payloads, release.protocol))
                if name == first:
                    self._count(phase.message.vectors, phase.message.protocol, release)
        assert coordinator.record.status == "complete", coordinator.record.reason

    def _count(self, vectors: Any, protocol: bytes, release: Release) -> None:
        task = release.task
        self.times[task] += 1
        self.record += vectors["record"].nbytes if "record" in vectors else 0
        self.down[task] += len(protocol) + sum(one.nbytes for label, one in vectors.items() if label != "record")
        self.up[task] += len(release.protocol) + sum(one.values.nbytes for one in release.payloads.values())
        self.protocol[task] += len(release.protocol)
        for label, one in release.payloads.items():
            self.vectors[task, label].append(one.values.nbytes)


def compare(of: Plan, found: tuple[TaskBytes, ...], sent: Sent, sites: int) -> None:
    assert {one.task: one.times for one in found} == sent.times
    # Development identities name themselves with a longer word, and a certificate's numbers vary by a byte or two.
    slack = {"join": (0, 12), "session": (12 * sites, 0)} if of.protection.masked else {}
    for one in found:
        down, up = slack.get(one.task, (0, 0))
        assert one.down == pytest.approx(sent.down[one.task], abs=down), one.task
        assert one.up == pytest.approx(sent.up[one.task], abs=up), one.task
        assert one.protocol == pytest.approx(sent.protocol[one.task], abs=up), one.task
    parts, wanted = layout(of).parts if of.protection.masked else {}, defaultdict(int)
    for one in job_vectors(layout(of), found):
        wanted[one.task, "update" if one.label in parts else one.label] += one.bytes
    times = {one.task: one.times for one in found}
    assert {(task, label): [size] * times[task] for (task, label), size in wanted.items()} == sent.vectors


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rounds", [1, 3])
def test_masked_jobs(method: str, rounds: int, tmp_path: Path) -> None:
    of = masked(plan(METHODS[method], rounds=rounds, min_sites=3, minimum=2, sites=2, **PLAIN))
    compare(of, job_messages(layout(of), 4), Sent(of, numbered(four()), tmp_path), 4)


@pytest.mark.parametrize("method", [*METHODS.values(), LOCK_STEP], ids=[*METHODS, "lock step"])
def test_jobs_in_clear(method: dict[str, Any], tmp_path: Path) -> None:
    steps = {"work": {"unit": "steps", "amount": 2}} if method is LOCK_STEP else {}
    of = plan(method, rounds=3, **{**PLAIN, **steps})
    found = job_messages(layout(of), 4)
    compare(of, found, Sent(of, numbered(four()), tmp_path), 4)
    assert all(one.protocol == 0 for one in found)
    assert {one.mode for one in job_vectors(layout(of), found)} == {"clear"}


@pytest.mark.parametrize("name", [name for name in presets.JOBS if name.startswith("heart")])
def test_shipped_jobs(name: str, tmp_path: Path) -> None:
    job = json.loads(schema.pretty(presets.shipped(name)))
    job["training"]["rounds"] = 2
    of = parse_plan(json.dumps(job))
    compare(of, job_messages(layout(of), 4), Sent(of, numbered(four()), tmp_path), 4)


def test_a_job_on_images(tmp_path: Path) -> None:
    of = masked(image_plan(IMAGES, rounds=2, min_sites=3))
    compare(of, job_messages(layout(of), 3), Sent(of, numbered(three_of_images()), tmp_path), 3)


def test_the_list_of_counted_updates_grows_with_the_rounds(tmp_path: Path) -> None:
    """Its numbers get more digits; from the twelfth round on it names round 10."""
    of = masked(plan(METHODS["scaffold"], rounds=13, min_sites=3, **PLAIN))
    compare(of, job_messages(layout(of), 4), Sent(of, numbered(four()), tmp_path), 4)


def test_images_of_hospitals_that_compare_themselves(tmp_path: Path) -> None:
    job = json.loads(schema.pretty(image_plan(presets.FEDAVG, rounds=2, min_sites=3)))
    method = presets.method("fairfed", attribute="hospital", criterion="equal_accuracy", **presets.SITE_BOUNDS)
    consents = ["open_hospital_risks", "second_sum_of_updates"]
    of = masked(parse_plan(json.dumps({**job, "method": method, "consents": consents})))
    compare(of, job_messages(layout(of), 3), Sent(of, numbered(three_of_images()), tmp_path), 3)


def test_a_part_of_an_update_is_told_with_its_own_bound() -> None:
    of = masked(plan(METHODS["scaffold"], rounds=2, **PLAIN), clip=2.0)
    found = {one.label: one for one in job_vectors(layout(of), job_messages(layout(of), 4))}
    controls, update = found["controls"], found["update"]
    assert (controls.mode, controls.bits, controls.clip, update.clip) == ("open", 32, 16.0, 2.0)
    assert (controls.numbers, controls.bytes, update.bytes) == (update.numbers, 4 * update.numbers, controls.bytes + 4)


def test_how_a_vector_is_protected() -> None:
    of = masked(plan(FAIR, rounds=2), clip=2.0)
    found = {one.label: one for one in job_vectors(layout(of), job_messages(layout(of), 4))}
    assert (found["update"].mode, found["update"].bits, found["update"].clip) == ("open", 32, 2.0)
    assert found["update"].bytes == 4 * (found["update"].numbers + 1)  # the weight is in it
    assert (found["risk_sums"].mode, found["risk_sums"].bits, found["risk_sums"].clip) == ("closed", 64, 0.0)


def test_encrypted_vectors_are_told_with_the_most_bytes_that_they_can_have() -> None:
    of = encrypted(masked(plan(FAIR, rounds=2)))
    found = {one.label: one for one in job_vectors(layout(of), job_messages(layout(of), 4))}
    assert {label for label, one in found.items() if one.mode == "encrypted"} == {"risk_sums"}
    assert found["risk_sums"].bytes == nominal(4).sizes(found["risk_sums"].numbers)[1]
    assert (found["counts"].mode, found["counts"].bytes) == ("closed", 8 * found["counts"].numbers)
    assert "the server never" in _protection(found["risk_sums"])
    assert "encrypted" not in _protection(found["counts"])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_which_rounds_are_measured_is_decided_as_in_a_session(method: dict[str, Any]) -> None:
    of = plan(method, **PLAIN)
    session = Session(
        number=1, transport="local", started="", first_round=0, previous_record_sha256=None, roster=(),
        join_refusals=(), records={}, identities=None, transcript=None,
    )  # fmt: skip
    for number in np.arange(7).tolist():
        assert is_measured(of, number) == measured_in_a_session(of, session, number)
