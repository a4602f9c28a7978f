# SPDX-License-Identifier: Apache-2.0
"""The protocol between honest sites and an honest server: the exact sum, or a named refusal that opens nothing.

What dishonest ones can try stands in ``tests/attacks``.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairflare.errors import SecaggError
from fairflare.secagg.encoding import Reader, digest, encode
from fairflare.secagg.fixedpoint import StatisticsCodec, UpdateCodec
from fairflare.secagg.params import MOST_SITES, most_colluders, threshold
from fairflare.secagg.server import ServerSession
from fairflare.secagg.site import SiteSession
from fairflare.secagg.state import Offer
from fairflare.secagg.transcript import Join, Joining, Keys, Signed, Upload, signed_list
from tests.attacks.federation import (
    INPUTS,
    JOB,
    LENGTH,
    STAGES,
    Federation,
    Seen,
    make_site,
    params,
    plain_sum,
    refused,
    site_names,
    trust,
    vectors,
)

SIZES = range(3, 11)
ROUNDS = itertools.count()


@cache
def federation(sites: int) -> Federation:
    """One session of so many sites: every test takes a round of its own in it."""
    return Federation(sites)


def spare(sites: int) -> int:
    """How many sites of an open step may be lost."""
    return sites - max(threshold(sites), 3)


def losses(sites: int, most: int) -> Iterator[dict[str, str]]:
    """Every way to lose up to ``most`` sites, each at any stage."""
    for count in range(most + 1):
        for names in itertools.combinations(site_names(sites), count):
            for stages in itertools.product(STAGES, repeat=count):
                yield dict(zip(names, stages, strict=True))


def some_losses(sites: int) -> list[dict[str, str]]:
    """All of them for few sites; for more, samples of every size with every stage in them."""
    if sites <= 6:
        return list(losses(sites, spare(sites)))
    chosen = random.Random(sites)
    found: list[dict[str, str]] = [{}]
    for count in range(1, spare(sites) + 1):
        for stage in STAGES:
            names = chosen.sample(site_names(sites), count)
            found.append(dict.fromkeys(names, stage))
            found.append({name: chosen.choice(STAGES) for name in names})
    return found


def in_sum(names: list[str], lost: Mapping[str, str]) -> list[str]:
    """Who is in the sum: also a site that was lost only after its upload."""
    return [name for name in names if lost.get(name, "confirm") in ("confirm", "unmask")]


# ------------------------------------------------------------------------------------------------------------- equality


@pytest.mark.parametrize("sites", SIZES)
def test_the_sum_is_the_plain_sum_whoever_is_lost_wherever(sites: int) -> None:
    members = federation(sites)
    for lost in some_losses(sites):
        values = vectors(members.names, seed=next(ROUNDS))
        total, found, _ = members.run(values, lost, next(ROUNDS))
        expected = in_sum(members.names, lost)
        assert list(found) == expected, lost
        assert np.array_equal(total, plain_sum([values[name] for name in expected])), lost


@pytest.mark.slow
def test_the_sum_of_seven_is_the_plain_sum_for_every_loss_there_is() -> None:
    members = federation(7)
    values = vectors(members.names)
    for lost in losses(7, spare(7)):
        total, found, _ = members.run(values, lost, next(ROUNDS))
        assert list(found) == in_sum(members.names, lost), lost
        assert np.array_equal(total, plain_sum([values[name] for name in found])), lost


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_sum_is_the_plain_sum_of_any_words_in_any_order(data: st.DataObject) -> None:
    sites = data.draw(st.sampled_from(SIZES))
    members = federation(sites)
    words = st.lists(st.integers(0, 2**32 - 1), min_size=LENGTH, max_size=LENGTH)
    values = {name: np.array(data.draw(words), dtype=np.uint32) for name in members.names}
    names = data.draw(st.lists(st.sampled_from(members.names), max_size=spare(sites), unique=True))
    lost = {name: data.draw(st.sampled_from(STAGES)) for name in names}
    order = data.draw(st.permutations(members.names))
    total, found, _ = members.run(values, lost, next(ROUNDS), order=order)
    assert list(found) == in_sum(members.names, lost)
    assert np.array_equal(total, plain_sum([values[name] for name in found]))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_updates_of_any_weights_come_back_as_their_weighted_mean(data: st.DataObject) -> None:
    sites = data.draw(st.sampled_from(SIZES))
    members, codec = federation(sites), UpdateCodec(8.0, None)
    counts = {name: data.draw(st.integers(1, 10_000)) for name in members.names}
    numbers = st.lists(st.floats(-9, 9, width=32), min_size=LENGTH - 1, max_size=LENGTH - 1)
    updates = {name: np.array(data.draw(numbers), dtype=np.float32) for name in members.names}
    weights = {name: codec.weight(count, sum(counts.values())) for name, count in counts.items()}
    words = {name: codec.encode(updates[name], weights[name], name.encode().ljust(32))[0] for name in members.names}
    lost = dict.fromkeys(members.names[: spare(sites)], "upload")
    total, found, _ = members.run(words, lost, next(ROUNDS))
    assert np.array_equal(total, plain_sum([words[name] for name in found]))
    mean, weight = codec.decode(total, len(found))
    assert weight == sum(weights[name] for name in found)
    exact = sum(weights[name] * np.clip(updates[name].astype(float), -8, 8) for name in found) / weight
    assert np.abs(mean - exact).max() <= len(found) * 8 / weight


@pytest.mark.parametrize("sites", SIZES)
def test_a_closed_sum_is_exact_at_the_server_and_at_every_site(sites: int) -> None:
    members, codec = federation(sites), StatisticsCodec(sites)
    generator = np.random.default_rng(sites)
    values = {name: generator.integers(-(2**20), 2**20, LENGTH) / 8 for name in members.names}
    seen = members.uploaded({name: codec.encode(one) for name, one in values.items()}, "risk", next(ROUNDS))
    members.server.is_whole(seen.number)
    expected = np.sum(list(values.values()), axis=0)
    assert np.array_equal(codec.decode(members.server.opened(seen.number)), expected)
    uploads, payloads = members.server.opening(seen.number)
    for site in members.sites.values():
        assert np.array_equal(codec.decode(site.opening(seen.number, uploads, payloads)), expected)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_closed_sum_is_exact_for_any_words(data: st.DataObject) -> None:
    members = federation(data.draw(st.sampled_from(SIZES)))
    words = st.lists(st.integers(0, 2**64 - 1), min_size=LENGTH, max_size=LENGTH)
    values = {name: np.array(data.draw(words), dtype=np.uint64) for name in members.names}
    seen = members.to_upload("risk", next(ROUNDS))
    order = data.draw(st.permutations(members.names))
    members.upload(seen, {name: values[name] for name in order})
    assert np.array_equal(members.server.opened(seen.number), plain_sum(list(values.values())))


def test_updates_and_statistics_of_one_task_are_committed_together() -> None:
    members = Federation(4)
    closed, opened = members.to_upload("risk"), members.to_upload("update")
    for seen in (closed, opened):
        members.server.expect(seen.number, INPUTS, "train")
    for name, site in members.sites.items():
        pair = [np.full(LENGTH, 3, dtype=np.uint64), np.full(LENGTH, 5, dtype=np.uint32)]
        signed = site.upload([(closed.number, pair[0]), (opened.number, pair[1])], INPUTS, "train")
        for seen, one, words in zip((closed, opened), signed, pair, strict=True):
            members.server.verify_upload(name, seen.number, one.encoded(), words)
            members.server.upload(name, seen.number, one.encoded(), words)
    members.unmask(opened, members.confirm(opened))
    assert set(members.server.opened(closed.number)) == {12}
    assert set(members.opened(opened)[0]) == {20}


@pytest.mark.parametrize(("sites", "least"), [(4, 4), (7, 6)])
def test_a_plan_may_ask_for_more_sites_than_the_threshold(sites: int, least: int) -> None:
    members = Federation(sites, params(least_sites=least, colluders=1))
    values = vectors(members.names)
    names = members.names[: sites - least]
    total, found, _ = members.run(values, dict.fromkeys(names, "upload"), 0)
    assert len(found) == least
    assert np.array_equal(total, plain_sum([values[name] for name in found]))
    seen = members.to_upload(fl_round=1)
    members.upload(seen, {name: values[name] for name in members.names[: least - 1]})
    with refused("QUORUM", f"{least - 1} sites"):
        members.server.survivors(seen.number)


# ----------------------------------------------------------------------------------------------------- one site too few


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("sites", SIZES)
def test_one_site_too_few_at_any_stage_opens_nothing_and_the_next_round_goes_on(sites: int, stage: str) -> None:
    members = federation(sites)
    values = vectors(members.names)
    lost = dict.fromkeys(random.Random(sites).sample(members.names, spare(sites) + 1), stage)
    before = [site._memory.head[0] for site in members.sites.values()]
    with refused("QUORUM", "nothing was opened"):
        members.run(values, lost, next(ROUNDS))
    number = members.server._next - 1
    step = members.server._steps[number]
    assert len(step.shares) < threshold(sites)
    assert stage == "unmask" or not any(site._steps[number].phase == "over" for site in alive(members, number))
    assert step.total is None or not np.array_equal(step.total, plain_sum(list(values.values())))
    assert [site._memory.head[0] for site in members.sites.values()] >= before
    total, found, _ = members.run(values, {}, next(ROUNDS))
    assert list(found) == members.names
    assert np.array_equal(total, plain_sum(list(values.values())))


def alive(members: Federation, number: int) -> list[SiteSession]:
    return [site for site in members.sites.values() if number in site._steps]


@pytest.mark.parametrize("sites", SIZES)
def test_a_closed_step_without_any_one_site_opens_nothing(sites: int) -> None:
    members = federation(sites)
    values = vectors(members.names, 64)
    for name in members.names:
        seen = members.offer("risk", next(ROUNDS))
        with refused("QUORUM"):
            members.keys(seen, members.without(name))
        seen = members.to_upload("risk", next(ROUNDS))
        members.upload(seen, {one: values[one] for one in members.without(name)})
        assert not members.server.is_whole(seen.number)
        assert members.server.uploaded(seen.number) == tuple(members.without(name))
        with refused("QUORUM", f"{sites - 1} of {sites}"):
            members.server.opened(seen.number)
        with refused("STATE", "other mode"):
            members.server.survivors(seen.number)
        uploads, payloads = members.server.opening(seen.number)
        for one in members.without(name):
            with refused("QUORUM", "without all sites"):
                members.sites[one].opening(seen.number, uploads, payloads)


# ------------------------------------------------------------------------------------------------------- state machines

Call = Callable[[SiteSession], Any]

OPEN_STATES = ("started", "keyed", "sharing", "dealt", "uploaded", "signed", "over")
CLOSED_STATES = ("started", "keyed", "uploaded", "over")
ALLOWED = {
    "open": {
        "started": {"keyset"}, "keyed": {"deal"}, "sharing": {"dealers"}, "dealt": {"view", "upload"},
        "uploaded": {"confirm"}, "signed": {"unmask"}, "over": set(),
    },
    "closed": {"started": {"keyset"}, "keyed": {"view", "upload"}, "uploaded": {"opening"}, "over": set()},
}  # fmt: skip
#: Redelivered messages that the site answers as it did before, without any change.
REPEATED = {"keyed": {"keyset"}, "sharing": {"keyset", "deal"}}


def states(members: Federation, name: str, seen: Seen, label: str, bits: int) -> Iterator[str]:
    """Lead one site through all states of a step, the others one state ahead of it."""
    site, others = members.sites[name], members.without(name)
    members.keys(seen)
    yield "started"
    members.keyset(seen)
    yield "keyed"
    values = vectors(members.names, bits)
    if label == "risk":
        members.upload(seen, values)
        yield "uploaded"
        uploads, payloads = members.server.opening(seen.number)
        site.opening(seen.number, uploads, payloads)
        yield "over"
        return
    members.shares(seen)
    yield "sharing"
    members.dealers(seen)
    yield "dealt"
    members.upload(seen, values)
    yield "uploaded"
    confirms = members.confirm(seen)
    yield "signed"
    members.unmask(seen, confirms, [*others, name])
    yield "over"


def calls(members: Federation, seen: Seen, spent: Seen, bits: int) -> dict[str, Call]:
    """Every method, with the step's own messages as far as they exist, else with those of another step."""
    number, words = seen.number, np.zeros(LENGTH, dtype=f"u{bits // 8}")
    confirms = members.server.confirms(spent.number)
    closed = members.server._steps[number].payloads
    payloads = [closed[index] for index in sorted(closed)]
    return {
        "join": lambda site: site.join(),
        "begin": lambda site: site.begin(b""),
        "keys": lambda site: site.keys([Offer(number, seen.offer.label, seen.offer.fl_round)]),
        "keyset": lambda site: site.keyset(number, seen.keyset),
        "deal": lambda site: site.deal(number),
        "dealers": lambda site: site.dealers(number, seen.dealers or spent.dealers),
        "view": lambda site: site.view(number, INPUTS, "train"),
        "upload": lambda site: site.upload([(number, words.copy())], INPUTS, "train"),
        "opening": lambda site: site.opening(number, signed_list("survivors", list(seen.uploads.values())), payloads),
        "confirm": lambda site: site.confirm(number, seen.survivors or spent.survivors),
        "unmask": lambda site: site.unmask(number, confirms),
    }


def snapshot(thing: SiteSession | ServerSession) -> object:
    """All that a session holds, copied; keys stay the same objects."""
    held = {}
    for name, value in vars(thing).items():
        if name == "_steps":
            held[name] = {number: copy.copy(vars(step)) for number, step in value.items()}
            for step in held[name].values():
                step.update({key: dict(item) for key, item in step.items() if isinstance(item, dict)})
                step["total"] = None if step.get("total") is None else step["total"].tobytes()
                step["payloads"] = {key: item.tobytes() for key, item in step.get("payloads", {}).items()}
        else:
            held[name] = dict(value) if isinstance(value, dict) else value
    return held


@pytest.mark.parametrize(("label", "bits"), [("update", 32), ("risk", 64)])
def test_a_site_refuses_every_method_in_every_wrong_state_and_changes_nothing(label: str, bits: int) -> None:
    members = Federation(4)
    *_, spent = members.run(vectors(members.names), {}, 0)
    name = members.names[0]
    site, seen = members.sites[name], members.offer(label, 1)
    mode = members.params.vector(label).mode
    visited = []
    for state in states(members, name, seen, label, bits):
        visited.append(state)
        for method, call in calls(members, seen, spent, bits).items():
            if method in ALLOWED[mode][state]:
                continue
            before, head = snapshot(site), site._memory.head
            if method in REPEATED.get(state, ()) and (method, mode) != ("deal", "closed"):
                assert call(site) == call(site)
            else:
                with refused("STEP" if method == "keys" else "STATE"):
                    call(site)
            assert snapshot(site) == before, (state, method)
            assert site._memory.head == head, (state, method)
    assert tuple(visited) == (OPEN_STATES if mode == "open" else CLOSED_STATES)
    assert members.run(vectors(members.names), {}, 2)[1] == tuple(members.names)


def test_a_site_without_a_session_refuses_every_step() -> None:
    members = Federation(4)
    seen = members.uploaded(vectors(members.names))
    *_, spent = members.run(vectors(members.names), {}, 1)
    for joined in (False, True):
        site = make_site(members.names[0])
        if joined:
            site.join()
        for method, call in calls(members, seen, spent, 32).items():
            if method == "join" or (method == "begin" and joined):
                continue
            before = snapshot(site)
            with refused("STATE"):
                call(site)
            assert snapshot(site) == before
        assert site.roster == ()


def test_a_step_that_ended_with_its_round_never_goes_on() -> None:
    members = Federation(4)
    for stage in ("started", "keyed", "sharing", "dealt", "uploaded", "signed"):
        fl_round = next(ROUNDS)
        seen = members.offer("update", fl_round)
        name = members.names[1]
        for state in states(members, name, seen, "update", 32):
            if state == stage:
                break
        site = members.sites[name]
        later = members.offer("update", fl_round + 1_000_000)
        site.keys([later.offer])
        site.end_round(fl_round)
        step = site._steps[seen.number]
        assert (step.mask, step.self_mask, step.own_share, step.held, step.phase) == (None, None, None, {}, "over")
        assert site._steps[later.number].mask is not None
        *_, spent = members.run(vectors(members.names), {}, next(ROUNDS))
        for method, call in calls(members, seen, spent, 32).items():
            with refused("STEP" if method == "keys" else "STATE"):
                call(site)


def test_the_server_refuses_what_comes_too_early_twice_or_too_late() -> None:
    members = Federation(4, begin=False)
    server, names = members.server, members.names
    with refused("STATE", "before the session began"):
        server.offer("update", 0)
    with refused("STATE", "did not join"):
        server.begin(names)
    members.begin()
    with refused("STATE", "did not join"):
        server.begin(names)
    with refused("STATE", "after the session began"):
        server.join(names[0], make_site(names[0]).join())
    unknown: dict[str, Callable[[], Any]] = {
        "keys": lambda: server.keys(names[0], 9, b""),
        "with_keys": lambda: server.with_keys(9),
        "keyset": lambda: server.keyset(9),
        "shares": lambda: server.shares(names[0], 9, b""),
        "with_shares": lambda: server.with_shares(9),
        "dealers": lambda: server.dealers(9),
        "expect": lambda: server.expect(9, INPUTS, "train"),
        "verify_upload": lambda: server.verify_upload(names[0], 9, b"", np.zeros(1, dtype=np.uint32)),
        "upload": lambda: server.upload(names[0], 9, b"", np.zeros(1, dtype=np.uint32)),
        "is_whole": lambda: server.is_whole(9),
        "opening": lambda: server.opening(9),
        "opened": lambda: server.opened(9),
        "survivors": lambda: server.survivors(9),
        "uploaded": lambda: server.uploaded(9),
        "confirm": lambda: server.confirm(names[0], 9, bytes(64)),
        "confirms": lambda: server.confirms(9),
        "unmask": lambda: server.unmask(names[0], 9, b""),
        "unmasked": lambda: server.unmasked(9),
    }
    for call in unknown.values():
        with refused("STATE", "unknown"):
            call()


def server_calls(server: ServerSession, seen: Seen, spent: Seen, site: str) -> dict[str, Call]:
    """Every method that takes something, with the step's own message if it exists, else another step's."""
    number = seen.number
    upload = seen.uploads.get(site) or spent.uploads[site]
    words = seen.words.get(site, spent.words[site])
    shares = next(iter(server._steps[number].dealt.values()), None) or server._steps[spent.number].dealt[1]
    keys = next(iter(server._steps[number].keys.values()), None) or server._steps[spent.number].keys[1]
    unmask = seen.unmasks.get(site) or spent.unmasks[site]
    return {
        "keys": lambda _: server.keys(site, number, keys.encoded()),
        "keyset": lambda _: server.keyset(number),
        "shares": lambda _: server.shares(site, number, shares.encoded()),
        "dealers": lambda _: server.dealers(number),
        "expect": lambda _: server.expect(number, bytes(32), "train"),
        "verify_upload": lambda _: server.verify_upload(site, number, upload.encoded(), words),
        "upload": lambda _: server.upload(site, number, upload.encoded(), words),
        "survivors": lambda _: server.survivors(number),
        "confirm": lambda _: server.confirm(site, number, seen.confirms.get(site) or bytes(64)),
        "confirms": lambda _: server.confirms(number),
        "unmask": lambda _: server.unmask(site, number, unmask),
        "unmasked": lambda _: server.unmasked(number),
        "opened": lambda _: server.opened(number),
    }


#: In each state of an open step, what an honest server may be asked; the rest is refused. Repeats that change nothing
#: (the same message for another site) are allowed.
SERVER_ALLOWED = {
    "offered": set(),
    "started": {"keyset"},
    "keyed": {"keyset", "shares"},
    "sharing": {"keyset", "dealers", "expect"},
    "dealt": {"keyset", "dealers", "expect"},
    "uploaded": {"keyset", "dealers", "survivors"},
    "signed": {"keyset", "dealers", "survivors", "confirm", "confirms"},
    "over": {"keyset", "dealers", "survivors", "confirm", "confirms", "unmask", "unmasked"},
    "opened": {"keyset", "dealers", "survivors", "confirm", "confirms", "unmask"},
}


def test_the_server_refuses_every_method_in_every_wrong_state_and_changes_nothing() -> None:
    members = Federation(4)
    *_, spent = members.run(vectors(members.names), {}, 0)
    name, seen = members.names[0], members.offer("update", 1)
    server = members.server

    def check(state: str) -> None:
        for method, call in server_calls(server, seen, spent, name).items():
            if method in SERVER_ALLOWED[state]:
                continue
            before = snapshot(server)
            with pytest.raises(SecaggError, match="FF-SECAGG-"):
                call(members.sites[name])
            assert snapshot(server) == before, (state, method)

    check("offered")
    for state in states(members, name, seen, "update", 32):
        if state != "started":  # the driver fixes U0 at once
            check(state)
    assert members.opened(seen)[1] == tuple(members.names)
    check("opened")
    server.forget(1)
    with refused("STATE", "forgotten"):
        server.keyset(seen.number)


def test_a_view_can_be_asked_for_again_but_not_another_one() -> None:
    members = Federation(4)
    seen = members.to_upload()
    members.server.expect(seen.number, bytes(32), "train")  # nobody has uploaded: the task may still change
    members.upload(seen, vectors(members.names))
    members.server.expect(seen.number, INPUTS, "train")
    with refused("STATE", "another view"):
        members.server.expect(seen.number, bytes(32), "train")


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("sites", "t", "colluders"),
    [(3, 3, 1), (4, 3, 1), (5, 4, 2), (6, 5, 3), (7, 5, 2), (8, 6, 3), (9, 7, 4), (10, 7, 3), (50, 34, 17)],
)
def test_thresholds(sites: int, t: int, colluders: int) -> None:
    assert (threshold(sites), most_colluders(sites)) == (t, colluders)
    assert 2 * t > sites + colluders  # two sets of t share an honest site
    assert t - colluders >= 2  # the smallest sum holds two honest sites
    params(colluders=colluders).verify_sites(sites)
    with refused("COLLUDERS"):
        params(colluders=colluders + 1).verify_sites(sites)


def test_too_few_and_too_many_sites() -> None:
    params().verify_sites(MOST_SITES)
    for sites in (0, 1, 2, MOST_SITES + 1):
        with refused("SITES"):
            params(least_sites=1).verify_sites(sites)
    with refused("SITES"):
        params(least_sites=5).verify_sites(4)


def test_every_parameter_is_bound() -> None:
    one = params()
    vector = one.vectors[0]
    others = [
        replace(one, plan_sha256="cd" * 32), replace(one, identities="kit"), replace(one, least_sites=4),
        replace(one, colluders=0), replace(one, weight_unit=10), replace(one, norm_clip=1.0),
        replace(one, vectors=one.vectors[::-1]),
        *(
            replace(one, vectors=(replace(vector, **change), *one.vectors[1:]))
            for change in (
                {"label": "other"}, {"mode": "closed"}, {"length": 7},
                {"bits": 64}, {"fraction_bits": 26}, {"clip": 1.0},
            )
        ),
    ]  # fmt: skip
    assert len({found.encoded() for found in (one, *others)}) == len(others) + 1
    for other in others:
        members = Federation(3, one, begin=False)
        members.sites[members.names[0]] = make_site(members.names[0], None, other)
        with refused("ROSTER", members.names[0]):
            members.begin()


@pytest.mark.parametrize("number", [-1, 0, 2**64, 2**70, True, 1.5, None, "7"])
def test_a_step_number_that_does_not_grow_or_is_no_number(number: Any) -> None:
    members = Federation(3)
    site = members.sites[members.names[0]]
    site.keys([Offer(0, "update", 0)])
    with refused("STEP"):
        site.keys([Offer(number, "update", 0)])
    with refused("STEP"):
        site.keys([Offer(5, "update", 0), Offer(5, "risk", 0)])
    assert list(site._steps) == [0]
    site.keys([Offer(2**64 - 1, "update", 0)])


@pytest.mark.parametrize("fl_round", [-1, 2**64, True, None])
def test_a_round_that_is_no_number(fl_round: Any) -> None:
    members = Federation(3)
    with refused("FORM"):
        members.sites[members.names[0]].keys([Offer(0, "update", fl_round)])


def test_a_vector_that_the_plan_does_not_have() -> None:
    members = Federation(3)
    with refused("LABEL"):
        members.sites[members.names[0]].keys([Offer(0, "other", 0)])
    with refused("LABEL"):
        members.server.offer("other", 0)


def bad_words() -> dict[str, Any]:
    words = np.arange(LENGTH, dtype=np.uint32)
    fixed = words.copy()
    fixed.setflags(write=False)
    return {
        "short": words[:-1],
        "long": np.zeros(LENGTH + 1, dtype=np.uint32),
        "wide": words.astype(np.uint64),
        "signed": words.view(np.int32),
        "float": words.astype(np.float32),
        "swapped": words.astype(">u4"),
        "square": words.reshape(2, -1),
        "pieces": np.zeros(2 * LENGTH, dtype=np.uint32)[::2],
        "masked array": np.ma.masked_array(words),
        "list": list(range(LENGTH)),
        "read-only": fixed,
    }


@pytest.mark.parametrize("kind", sorted(bad_words()))
def test_words_of_another_form_are_refused_before_anything_is_committed(kind: str) -> None:
    members = Federation(3)
    seen = members.to_upload()
    site = members.sites[members.names[0]]
    head = site._memory.head
    with refused("SHAPE"):
        site.upload([(seen.number, bad_words()[kind])], INPUTS, "train")
    assert site._memory.head == head
    site.upload([(seen.number, np.zeros(LENGTH, dtype=np.uint32))], INPUTS, "train")


def test_one_step_twice_in_a_task_is_refused_before_anything_is_committed() -> None:
    members = Federation(3)
    seen = members.to_upload()
    site, words = members.sites[members.names[0]], np.zeros((2, LENGTH), dtype=np.uint32)
    with refused("SHAPE"):
        site.upload([(seen.number, words[0]), (seen.number, words[1])], INPUTS, "train")
    assert not words.any()
    site.upload([(seen.number, words[0])], INPUTS, "train")


def test_a_dealing_or_key_set_of_other_steps_or_forms() -> None:
    members = Federation(4)
    old = members.to_upload(fl_round=0)
    seen = members.offer(fl_round=1)
    members.keys(seen)
    site = members.sites[members.names[0]]
    with refused("KEYS", "another step"):
        site.keyset(seen.number, old.keyset)
    keys = list(members.server._steps[seen.number].keys.values())
    with refused("KEYS", "two of one site"):
        site.keyset(seen.number, signed_list("keyset", [keys[0], *keys]))
    with refused("KEYS", "out of order"):
        site.keyset(seen.number, signed_list("keyset", keys[::-1]))
    with refused("KEYS", "without this site's own"):
        site.keyset(seen.number, signed_list("keyset", keys[1:]))
    with refused("FORM"):
        site.keyset(seen.number, seen.keyset + b"x")
    members.keyset(seen)
    members.shares(seen)
    with refused("SHARES", "another step"):
        site.dealers(seen.number, old.dealers)
    members.dealers(seen)


def test_an_index_that_nobody_has() -> None:
    members = Federation(3)
    seen = members.offer()
    members.keys(seen)
    site = members.sites[members.names[0]]
    for index in (0, 4, MOST_SITES):
        stranger = Keys(site._steps[seen.number].step, index, bytes(32), bytes(32))
        with refused("ROSTER", "not in the session"):
            site.keyset(seen.number, signed_list("keyset", [Signed(stranger.encoded(), bytes(64))]))
    with refused("ROSTER", "not in the session"):
        members.server.keys("nobody", seen.number, b"")


def test_a_roster_that_is_not_the_session_that_this_site_joined() -> None:
    members = Federation(4, begin=False)
    server = ServerSession(members.params, JOB, trust())
    for name, site in members.sites.items():
        server.join(name, site.join())
    roster = server.begin(members.names)
    late = members.sites[members.names[0]]
    late.join()  # a fresh nonce: the roster holds the old JOIN
    with refused("ROSTER", "own JOIN"):
        late.begin(roster)
    other = SiteSession(late._identity, trust(), members.params, late._memory, "another job")
    other.join()
    with refused("ROSTER", "another session"):
        other.begin(roster)
    with refused("ROSTER"):
        ServerSession(members.params, "another job").join(members.names[0], late.join())
    with refused("ROSTER"):
        ServerSession(members.params, JOB).join(members.names[1], late.join())


def test_a_disk_that_fails_stops_every_step_before_anything_leaves() -> None:
    members = Federation(4)
    seen = members.to_upload()
    site = members.sites[members.names[0]]
    site._memory.close()  # type: ignore[attr-defined]
    words = np.zeros(LENGTH, dtype=np.uint32)
    with refused("MEMORY"):
        site.upload([(seen.number, words)], INPUTS, "train")
    assert not words.any()
    with refused("MEMORY"):
        site.keys([Offer(7, "update", 1)])


def test_fixed_sets_come_again_as_they_were() -> None:
    members = Federation(4)
    seen = members.to_upload()
    assert members.server.keyset(seen.number) == seen.keyset
    assert members.server.dealers(seen.number) == seen.dealers
    assert members.server.roster == members.sites[members.names[0]].roster == tuple(members.names)


def test_a_site_says_what_a_step_is_about_and_whether_it_can_be_answered() -> None:
    members = Federation(4)
    site, seen = members.sites[members.names[0]], members.offer("update", 7)
    members.keys(seen)
    assert site.vector(seen.number) == members.params.vector("update")
    assert site.round_of(seen.number) == 7
    assert not site.is_ready(seen.number)
    members.keyset(seen)
    members.shares(seen)
    assert not site.is_ready(seen.number)
    members.dealers(seen)
    assert site.is_ready(seen.number)
    assert members.sites[members.names[0]].is_ready(members.to_upload("risk").number)
    assert not site.is_ready(99)
    for ask in (site.vector, site.round_of):
        with refused("STATE", "unknown"):
            ask(99)


# --------------------------------------------------------------------------------------------------------- the encoding


def field(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


HEAD = field(b"fairflare/sa/1") + field(b"name")


def test_values_become_lengths_and_bytes() -> None:
    number = (7).to_bytes(8, "big")
    assert encode("name", b"ab", "\u00e9", 7) == HEAD + field(b"ab") + field("\u00e9".encode()) + field(number)
    items = (2).to_bytes(8, "big") + field(b"ab") + field(number)
    assert encode("name", [b"ab", 7]) == HEAD + field(items)
    assert digest("name") == hashlib.sha256(HEAD).digest()


@pytest.mark.parametrize(
    ("value", "kind"), [(True, TypeError), (-1, OverflowError), (2**64, OverflowError), (1.5, TypeError)]
)
def test_what_is_no_field_is_not_encoded(value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        encode("name", value)


def test_fields_are_read_in_order() -> None:
    reader = Reader(encode("name", b"abc", 7, "text", [b"x", b"y"], [[1], [2]]), "name")
    assert (reader.raw(3), reader.number(8), reader.text(), reader.raws(2, 1)) == (b"abc", 7, "text", [b"x", b"y"])
    found = []
    for item in reader.items(2):
        found.append(item.number())
        item.end()
    reader.end()
    assert found == [1, 2]


READ: dict[str, tuple[bytes, Callable[[Reader], Any]]] = {
    "another length": (field(b"abc"), lambda one: one.raw(4)),
    "no length": (b"\0\0", lambda one: one.raw()),
    "nothing": (b"", lambda one: one.raw()),
    "a length beyond the end": (field(b"abc")[:-1], lambda one: one.raw()),
    "the largest length": (b"\xff" * 4, lambda one: one.raw()),
    "a short number": (field(b"\0" * 7), lambda one: one.number()),
    "a long number": (field(b"\0" * 9), lambda one: one.number()),
    "a number at its limit": (field((8).to_bytes(8, "big")), lambda one: one.number(8)),
    "no text": (field(b"\xff\xfe"), lambda one: one.text()),
    "an overlong text form": (field(b"\xc0\x80"), lambda one: one.text()),
    "an empty text": (field(b""), lambda one: one.text()),
    "a long text": (field(b"a" * 257), lambda one: one.text()),
    "a list without a number": (field(b"\0" * 7), lambda one: one.raws(5)),
    "a list of too many": (field((6).to_bytes(8, "big")), lambda one: one.raws(5)),
    "a list of fewer than it says": (field((2).to_bytes(8, "big") + field(b"a")), lambda one: one.raws(5)),
    "a list of more than it says": (field(bytes(8) + field(b"a")), lambda one: one.raws(5)),
    "a list that ends early": (field((1).to_bytes(8, "big") + field(field(b"a"))), lambda one: one.items(5)[0].end()),
    "an item that has no more": (field((1).to_bytes(8, "big") + field(bytes(8))), lambda one: one.items(5)[0].raw()),
    "an item that has more": (
        field((1).to_bytes(8, "big") + field((1).to_bytes(8, "big") + field(b""))),
        lambda one: one.items(5)[0].end(),
    ),
    "something at the end": (b"x", lambda one: one.end()),
}


@pytest.mark.parametrize("kind", READ)
def test_what_is_not_expected_is_refused(kind: str) -> None:
    data, read = READ[kind]
    with refused("FORM", "'name'"):
        read(Reader(HEAD + data, "name"))


@pytest.mark.parametrize(
    "data",
    [b"", HEAD[:-1], field(b"fairflare/sa/2") + field(b"name"), field(b"name") + HEAD, bytearray(HEAD), None, "text"],
)
def test_another_head_is_refused(data: Any) -> None:
    with refused("FORM"):
        Reader(data, "name")
    with refused("FORM"):
        Reader(HEAD, "names")


def test_a_message_that_is_too_long_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    Reader(HEAD + field(b"x" * 8), "name")
    monkeypatch.setattr("fairflare.secagg.encoding.LONGEST", len(HEAD) + 11)
    with refused("FORM"):
        Reader(HEAD + field(b"x" * 8), "name")


def test_a_join_has_one_form_only() -> None:
    """Peers in another order, or one twice, would be other bytes for the same content."""
    join = Join.parse(Joining.parse(make_site("site-00").join()).join)
    peers = (("a", 1, bytes(32)), ("b", 2, bytes(32)))
    good = replace(join, seen=peers).encoded()
    assert Join.parse(good).seen == peers
    swapped = good.replace(encode_item(peers[0]) + encode_item(peers[1]), encode_item(peers[1]) + encode_item(peers[0]))
    assert swapped != good
    with refused("FORM"):
        Join.parse(swapped)


def encode_item(peer: tuple[str, int, bytes]) -> bytes:
    name, seq, head = peer
    return field((3).to_bytes(8, "big") + field(name.encode()) + field(seq.to_bytes(8, "big")) + field(head))


def test_an_upload_with_half_a_hash_is_refused() -> None:
    for length in (1, 31, 33):
        with refused("FORM"):
            Upload.parse(Upload(bytes(32), 1, 5, bytes(length)).encoded())
