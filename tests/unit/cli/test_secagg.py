# SPDX-License-Identifier: Apache-2.0
"""``fairflare secagg explain``: its numbers are those of the code that runs, and nothing is left out."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from fairflare import presets, schema
from fairflare.engine.explain import Explained, explain
from fairflare.engine.explain_traffic import Traffic, Trip
from fairflare.engine.local import local_masks, software
from fairflare.engine.masked import params_of
from fairflare.engine.messages import Reply, layout_of
from fairflare.engine.roles import coordinator_of
from fairflare.engine.server import Phase, Start
from fairflare.engine.site import Site
from fairflare.errors import SecaggError
from fairflare.evaluation.exchanged import TRUST
from fairflare.methods.flexfair import FlexFairParameters
from fairflare.plan import Plan, parse_plan
from fairflare.privacy.gate import Release
from fairflare.secagg.params import most_colluders, threshold
from tests.unit.cli.own import code, invoke
from tests.unit.engine.hospitals import hospital

FAIR: dict[str, Any] = presets.flexfair(presets.penalty("sex", "equalized_odds", 1.0))
METHODS = {
    "fedavg": presets.FEDAVG,
    "round": FAIR,
    "lagged": {**FAIR, "refresh": "round_lagged"},
    "every 2": {**FAIR, "refresh": {"rounds": 2}},
    "fedprox": presets.method("fedprox"),
    "scaffold": presets.method("scaffold"),
    "fednova": presets.method("fednova"),
    "fairfed": presets.method("fairfed", **presets.SITE_BOUNDS),
    "fairmixup": presets.method("fairmixup"),
    "reweighting": presets.method("reweighting"),
}
#: Changes of a plan that a method asks for.
NEEDS: dict[str, dict[str, Any]] = {
    "scaffold": {"optimizer": presets.sgd(0.1, momentum=0.0), "work": {"unit": "steps", "amount": 2}},
    "fednova": {"optimizer": presets.sgd(0.1, state="reset")},
    "fairfed": {"consents": ["pair_sums_of_three_hospitals", "second_sum_of_updates"]},
}


def needing(method: str, **changes: Any) -> Plan:
    """The plan of one of the methods, with what it needs."""
    return masked(METHODS[method], **{**NEEDS.get(method, {}), **changes})


def masked(method: dict[str, Any] = FAIR, **changes: Any) -> Plan:
    """The heart plan with masks for three sites or more, three rounds."""
    data = json.loads(schema.pretty(presets.heart("test", presets.FEDAVG)))
    data["training"]["rounds"], data["method"] = 3, method
    for name, value in changes.items():
        part = next((data[key] for key in ("federation", "cells", "training") if name in data[key]), data)
        (data["protection"]["masking"] if name in data["protection"]["masking"] else part)[name] = value
    return parse_plan(json.dumps(data))


def unmasked() -> Plan:
    data = json.loads(schema.pretty(masked()))
    return parse_plan(json.dumps({**data, "protection": presets.UNPROTECTED}))


def written(folder: Path, plan: Plan) -> Path:
    file = folder / "plan.json"
    file.write_text(schema.pretty(plan), encoding="utf-8")
    return file


def facts(plan: Plan, sites: int = 4) -> Explained:
    return explain(plan, sites, measure=False)


# --------------------------------------------------------------------------------------------------------------- bytes


def bytes_of(thing: Phase | Release) -> int:
    """Vectors and protocol messages."""
    if isinstance(thing, Release):
        return len(thing.protocol) + sum(one.values.nbytes for one in thing.payloads.values())
    return len(thing.message.protocol) + sum(one.nbytes for one in thing.message.vectors.values())


def really_sent(plan: Plan, sites: int, folder: Path) -> list[tuple[int, Trip]]:
    """Every trip of the first site in a real run: the round that it belongs to, and its bytes."""
    names = [f"site-{number}" for number in range(1, sites + 1)]
    data = {name: hospital(30, at, 0.0) for at, name in enumerate(names)}
    played = {
        name: Site(name, plan, (lambda one=one: one), folder / name, None, local_masks(plan, name))
        for name, one in data.items()
    }
    coordinator = coordinator_of(plan, folder, Start(secrets.token_hex(16), "local", software()))
    found = []
    for phase in coordinator.phases(names):
        for name in phase.targets:
            release = played[name].handle(phase.message)
            phase.collector.accept(name, reply_of(phase, release))
            if name == names[0]:
                found.append((phase.message.round, Trip(phase.message.task, bytes_of(phase), bytes_of(release))))
    assert coordinator.record.status == "complete", coordinator.record.reason
    return found


def reply_of(phase: Phase, release: Release) -> Reply:
    """A release as the server gets it."""
    return Reply(
        release.task, release.round, release.step, phase.message.session, release.payloads, release.protocol
    )  # fmt: skip


def part(found: Explained, name: str) -> Traffic:
    return next(one for one in found.traffic if one.part == name)


@pytest.mark.parametrize(
    ("method", "sites"),
    [("fedavg", 3), ("round", 4), ("round", 6), ("lagged", 4), ("fedprox", 4), ("scaffold", 4), ("fednova", 4),
     ("fairfed", 3), ("fairfed", 5), ("fairmixup", 4)],
)  # fmt: skip
def test_bytes_are_those_of_a_real_run(method: str, sites: int, tmp_path: Path) -> None:
    plan = needing(method)
    sent, found = really_sent(plan, sites, tmp_path), facts(plan, sites)
    assert [trip for number, trip in sent if number == 1] == list(part(found, "round").trips)
    start = {trip.task: trip for number, trip in sent if number == 0}
    # Nobody vouches for the sites of this run, and that word is longer than the one for kits.
    word = len("development") - len("kit")
    for trip, joins_up, joins_down in zip(part(found, "start").trips[:3], (1, 0, 0), (0, sites, 0), strict=True):
        # A certificate's numbers have a byte or two more or less.
        assert start[trip.task].up == pytest.approx(trip.up + joins_up * word, abs=3 * joins_up)
        assert start[trip.task].down == pytest.approx(trip.down + joins_down * word, abs=3 * joins_down)
    first = next(trip for number, trip in sent if number == 0 and trip.task in ("measure", "train_alone"))
    assert first.down - part(found, "round").trips[0].down == part(found, "start").trips[3].down


@pytest.mark.parametrize("method", ["every 2", "reweighting"])
def test_bytes_of_rounds_with_and_without_group_sums(method: str, tmp_path: Path) -> None:
    plan = masked(METHODS[method])
    sent, found = really_sent(plan, 4, tmp_path), facts(plan)
    tasks = {"round": 0, "round without group sums": 1}
    for name, number in tasks.items():
        real = [trip for where, trip in sent if where == number][-len(part(found, name).trips) :]
        assert [trip.task for trip in real] == [trip.task for trip in part(found, name).trips]
    alone = next(trip for number, trip in sent if number == 1 and trip.task == "train_alone")
    assert alone == part(found, "round without group sums").trips[0]


def test_bytes_grow_with_the_sites_but_hardly_with_the_update() -> None:
    few, many = (part(facts(masked(), sites), "round") for sites in (4, 50))
    model = 4 * facts(masked()).parameters
    assert few.down < many.down
    assert few.up < many.up < few.up + 50_000
    assert few.down > model
    assert [trip.task for trip in few.trips] == ["measure", "train", "confirm", "unmask"]


# ---------------------------------------------------------------------------------------------------------- thresholds


@pytest.mark.parametrize("sites", [3, 4, 5, 8, 16, 50])
def test_thresholds_are_those_of_the_session(sites: int) -> None:
    plan = masked()
    found = facts(plan, sites)
    params = params_of(layout_of(plan, found.parameters), "kit")
    assert (found.threshold, found.least_sites) == (threshold(sites), params.least(sites))
    assert (found.colluders, found.most_colluders) == (1, most_colluders(sites))
    exact, *update = found.stages
    assert (exact.least, exact.lost) == (sites, 0)
    assert {(stage.least, stage.lost) for stage in update} == {(found.least_sites, sites - found.least_sites)}
    assert found.speed is None


def test_min_sites_above_the_threshold_counts() -> None:
    found = facts(masked(min_sites=5), 6)
    assert (found.threshold, found.least_sites, found.stages[-1].lost) == (5, 5, 1)
    assert facts(masked(min_sites=6), 6).dropouts[0].startswith("No dropout is survivable: a sum must be of all")


def test_of_three_nobody_may_drop_out() -> None:
    assert facts(masked(), 3).dropouts[0].startswith("No dropout is survivable: with three sites t is three")
    assert "1 site may drop out" in facts(masked(), 4).dropouts[0]
    assert "2 sites may drop out" in facts(masked(), 7).dropouts[0]


@pytest.mark.parametrize("sites", [-1, 0, 1, 2, 1025])
def test_too_few_and_too_many_sites_are_refused(sites: int) -> None:
    with pytest.raises(SecaggError) as caught:
        facts(masked(), sites)
    assert caught.value.code == "FF-SECAGG-SITES"


def test_a_plan_for_more_sites_is_refused() -> None:
    with pytest.raises(SecaggError) as caught:
        facts(masked(min_sites=5), 4)
    assert caught.value.code == "FF-SECAGG-SITES"


# ----------------------------------------------------------------------------------------------------------- sentences


def said(found: Explained) -> str:
    return "\n".join([*found.dropouts, *found.server_learns, *found.hospitals_learn, *found.not_protected])


def test_what_every_plan_is_told() -> None:
    text = said(facts(masked()))
    for words in (
        "need everybody", "survivors", "units of 10", "3 hospitals that put their numbers together", "Poisoned inputs",
        "post-quantum", "cannot reliably wipe keys", "how long a site trains", "The sum itself", "roster",
    ):  # fmt: skip
        assert words in text


def test_sentences_follow_the_plan() -> None:
    assert "units of 1, so exactly" in said(facts(masked(weight_unit=1)))
    assert "The sum of weights" not in said(facts(masked(aggregation="uniform")))
    assert "3 hospitals colluding" in said(facts(masked(colluders=3, min_sites=13), 13))
    assert "counts on no hospital colluding" in said(facts(masked(colluders=0)))
    assert "then the run stops" in said(facts(masked(when_stale="stop")))
    assert "up to 1 round more" in said(facts(masked(max_stale=1)))
    assert "last group sums" not in said(facts(masked(presets.FEDAVG)))
    assert "how many sites have 11 records" in said(facts(masked(cells={"minimum": 11, "sites": 2})))
    assert "Groups of one site" in said(facts(masked()))
    assert "Groups of one site" not in said(facts(masked(cells={"minimum": 11, "sites": 2})))


#: Methods that tell the server nothing that FedAvg does not.
SILENT = ("fedprox", "fairmixup")
TOLD = {
    "scaffold": ("mean change of the sites' control variates", "it follows from the mean update"),
    "fednova": ("How far the sites' steps lead", "two others' numbers"),
    "fairfed": ("decisions by group", "sum of distances", "between 0.5 and 2 times", "two sums of nearly the same",
                "that site's own weight", "no site's weight moves", "sum of the two others' distances"),
    "reweighting": ("training records of all sites together each group has", "until then no record is weighed"),
}  # fmt: skip


@pytest.mark.parametrize("method", TOLD)
def test_what_the_server_learns_of_a_method(method: str) -> None:
    text, plain = said(facts(needing(method), 3)), said(facts(masked(presets.FEDAVG), 3))
    for words in TOLD[method]:
        assert words in text
        assert words not in plain


@pytest.mark.parametrize("method", SILENT)
def test_methods_that_send_no_more_than_fedavg_tell_no_more(method: str) -> None:
    assert said(facts(needing(method))) == said(facts(masked(presets.FEDAVG)))


def test_sums_that_hospitals_agreed_to_are_called_so() -> None:
    unequal = {"optimizer": presets.sgd(0.1, momentum=0.0), "consents": ["second_sum_of_updates"], "min_sites": 4}
    text = said(facts(masked(METHODS["scaffold"], **unequal)))
    assert "a second, different sum of the same updates: the hospitals agreed to it" in text
    hospitals = presets.method("fairfed", attribute="hospital", criterion="equal_accuracy", **presets.SITE_BOUNDS)
    consents = ["open_hospital_risks", "second_sum_of_updates"]
    assert "each hospital's part of it may be known to all" in said(facts(masked(hospitals, consents=consents)))
    four = said(facts(needing("fairfed"), 4))
    assert "Each of the 4 hospitals knows the sum of the 3 others' distances" in four


def between_hospitals(weights: str, sites: int, *consents: str) -> Plan:
    method = presets.flexfair(presets.penalty("hospital", "equal_accuracy", 1.0, weights=weights))
    plan = masked(method, consents=list(consents), min_sites=sites)
    assert isinstance(plan.method, FlexFairParameters)
    return plan


@pytest.mark.parametrize(
    ("weights", "sites", "consents", "words"),
    [
        ("uniform", 4, (), "Each of the 4 hospitals knows the sum of the 3 others' risks"),
        ("uniform", 3, ("pair_sums_of_three_hospitals",), "Of three, each hospital knows the sum of the two others'"),
        ("records", 5, (), "it needs five hospitals"),
        ("uniform", 3, ("open_hospital_risks",), "may be known to all"),
    ],
)
def test_what_hospitals_see_of_each_other(weights: str, sites: int, consents: tuple[str, ...], words: str) -> None:
    assert words in said(facts(between_hospitals(weights, sites, *consents), sites))


def test_a_plan_that_compares_no_hospitals_is_told_the_rule() -> None:
    assert "of two, each knows the other's (refused)" in said(facts(masked()))


# -------------------------------------------------------------------------------------------------------- command line


def test_the_page(tmp_path: Path) -> None:
    done = invoke("secagg", "explain", written(tmp_path, masked()), "--sites", 4)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    for sentence in said(facts(masked())).splitlines():
        assert sentence in text
    for words in ("any 3 of 4 (the threshold t)", "Measured here, now", "one site lost", "round: unmask", "1 at most"):
        assert words in text


def test_with_three_sites_there_is_no_time_of_a_loss(tmp_path: Path) -> None:
    done = invoke("secagg", "explain", written(tmp_path, masked()), "--sites", 3)
    assert done.exit_code == 0
    assert "one site lost" not in done.output


def test_json_has_the_same(tmp_path: Path) -> None:
    plan = masked()
    done = invoke("secagg", "explain", written(tmp_path, plan), "--sites", 4, "--json")
    found = json.loads(done.stdout)
    assert found["format"] == "fairflare/secagg-explain/1"
    assert (found["plan_sha256"], found["sites"], found["threshold"]) == (plan.sha256, 4, 3)
    assert found["speed"]["site"] > 0
    assert found["speed"]["server_lost"] > 0
    for part_, expected in zip(found["traffic"], facts(plan).traffic, strict=True):
        assert (part_["part"], part_["up"]) == (expected.part, sum(trip["up"] for trip in part_["trips"]))
    assert tuple(found["not_protected"]) == facts(plan).not_protected


def test_a_plan_without_masks_is_an_error(tmp_path: Path) -> None:
    done = invoke("secagg", "explain", written(tmp_path, unmasked()), "--sites", 4)
    assert done.exit_code == 1
    assert code(done) == "FF-SECAGG-PLAN"
    assert "has no masks" in str(done.exception)


def test_a_plan_that_only_counts_is_an_error() -> None:
    done = invoke("secagg", "explain", "jobs/heart_feasibility", "--sites", 4)
    assert (done.exit_code, code(done)) == (1, "FF-SECAGG-PLAN")


def test_two_sites_are_an_error(tmp_path: Path) -> None:
    done = invoke("secagg", "explain", written(tmp_path, masked()), "--sites", 2)
    assert (done.exit_code, code(done)) == (1, "FF-SECAGG-SITES")


def test_a_job_folder_is_a_plan(tmp_path: Path) -> None:
    home = tmp_path / "app" / "config"
    home.mkdir(parents=True)
    written(home, masked())
    assert invoke("secagg", "explain", tmp_path, "--sites", 4).exit_code == 0


def test_whoever_decides_on_a_plan_is_told_how_its_masks_work(tmp_path: Path) -> None:
    said = invoke("plan", "check", "jobs/heart_flexfair").output
    for words in ("1 colluding sites", "units of 10", "cut off at 16", "2 rounds old; then the sites train without"):
        assert words in said
    assert "masks:" not in invoke("plan", "check", written(tmp_path, unmasked())).output


def test_the_trust_model_is_said_where_encryption_is_switched_on(tmp_path):
    file = tmp_path / "plan.json"
    data = json.loads(schema.pretty(presets.shipped("heart_flexfair")))
    for statistics, said in (("masked", False), ("ckks", True)):
        data["protection"]["statistics"] = statistics
        file.write_text(json.dumps(data), encoding="utf-8")
        done = invoke("plan", "check", file)
        assert done.exit_code == 0, done.output
        assert (TRUST.hospitals in done.output) == said
        assert (TRUST.not_protected in done.output) == said
