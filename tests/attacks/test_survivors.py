# SPDX-License-Identifier: Apache-2.0
"""Attacks on the set of survivors: overlaps, split views, second reveals, small sets, and uploads that come late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from fairflare.secagg import dealing as dealing_module
from fairflare.secagg import params as params_module
from fairflare.secagg import schedule, transcript
from fairflare.secagg import server as server_module
from fairflare.secagg import site as site_module
from fairflare.secagg.params import Params, threshold
from fairflare.secagg.schedule import self_key
from fairflare.secagg.transcript import Signed, confirms_message, dealers_message, parse_dealers, signed_list
from tests.attacks.federation import (
    INPUTS,
    LENGTH,
    Federation,
    Forgetful,
    Seen,
    confirms_of,
    looks_random,
    members,
    open_secret,
    params,
    parse_signed_list,
    refused,
    stripped,
    survivors_of,
    unmask_of,
    vectors,
)

VICTIM = "site-02"
LONG = 4096


def uploaded(sites: int, length: int = LENGTH, **options: object) -> tuple[Federation, Seen, dict[str, np.ndarray]]:
    """A step in which everybody uploaded; the server goes on as it likes."""
    federation = Federation(sites, params(length), **options)  # type: ignore[arg-type]
    values = vectors(federation.names, length=length)
    return federation, federation.uploaded(values), values


def confirmed(federation: Federation, seen: Seen, names: Sequence[str]) -> dict[str, bytes]:
    """These sites agree to be the survivors."""
    message = survivors_of(seen, names)
    return {name: federation.sites[name].confirm(seen.number, message) for name in names}


def mask_key(federation: Federation, unmasks: Mapping[str, bytes], place: int = 0) -> bytes:
    return open_secret({federation.index(name): unmask_of(one).key_shares[place] for name, one in unmasks.items()})


def self_mask(federation: Federation, unmasks: Mapping[str, bytes], place: int) -> bytes:
    return open_secret({federation.index(name): unmask_of(one).self_shares[place] for name, one in unmasks.items()})


# --------------------------------------------------------------------------------- overlap: attack 4 of the second list


class Both(tuple):  # type: ignore[type-arg]
    """Survivors that hold the victim when they are listed, and do not when one asks."""

    def __contains__(self, item: object) -> bool:
        return item != 3 and super().__contains__(item)


def ask_for_one_site_as_alive_and_as_lost(
    federation: Federation, seen: Seen, values: dict[str, np.ndarray], *, overlap: bool
) -> np.ndarray:
    confirms = confirmed(federation, seen, federation.names)
    if overlap:
        for site in federation.sites.values():
            site._steps[seen.number].survivors = Both(site._steps[seen.number].survivors)
    others = {name: confirms[name] for name in federation.without(VICTIM)}
    unmasks = {name: federation.sites[name].unmask(seen.number, confirms_of(federation, others)) for name in others}
    index = federation.index(VICTIM)
    secret = self_mask(federation, unmasks, federation.names.index(VICTIM))
    if not overlap:
        assert all(unmask_of(one).key_shares == () for one in unmasks.values())
        return stripped(seen, VICTIM, index, others={}, peers=(), self_mask=secret)
    return stripped(seen, VICTIM, index, mask=mask_key(federation, unmasks), self_mask=secret)


def test_no_site_is_both_alive_and_lost() -> None:
    federation, seen, values = uploaded(5, LONG)
    found = ask_for_one_site_as_alive_and_as_lost(federation, seen, values, overlap=False)
    assert looks_random(found)  # the pair masks are still on


def test_a_site_opened_as_alive_and_as_lost_is_read() -> None:
    federation, seen, values = uploaded(5)
    found = ask_for_one_site_as_alive_and_as_lost(federation, seen, values, overlap=True)
    assert np.array_equal(found, values[VICTIM])


def test_a_list_with_one_site_twice_is_refused() -> None:
    federation, seen, _ = uploaded(4)
    uploads = [seen.uploads[name] for name in federation.names]
    for site in federation.sites.values():
        with refused("VIEW"):
            site.confirm(seen.number, signed_list("survivors", [*uploads[:3], uploads[2], uploads[3]]))
        with refused("VIEW"):
            site.confirm(seen.number, signed_list("survivors", uploads[::-1]))


# --------------------------------------------------------------------------- second reveal: attack 5 of the second list


def reveal_twice(federation: Federation, seen: Seen, *, again: bool) -> np.ndarray:
    """First with everybody as a survivor, then with the victim called lost."""
    others = federation.without(VICTIM)
    index = federation.index(VICTIM)
    kept = {name: dict(federation.sites[name]._steps[seen.number].held) for name in others}
    everybody = confirmed(federation, seen, federation.names)
    first = {name: federation.sites[name].unmask(seen.number, confirms_of(federation, everybody)) for name in others}
    if again:
        for name in others:
            step = federation.sites[name]._steps[seen.number]
            step.phase, step.held = "uploaded", kept[name]
    confirms = confirmed(federation, seen, others)
    second = {name: federation.sites[name].unmask(seen.number, confirms_of(federation, confirms)) for name in others}
    secret = self_mask(federation, first, federation.names.index(VICTIM))
    return stripped(seen, VICTIM, index, mask=mask_key(federation, second), self_mask=secret)


def test_shares_are_revealed_once() -> None:
    federation, seen, _ = uploaded(4)
    with refused("STATE"):
        reveal_twice(federation, seen, again=False)


def test_the_memory_alone_stops_a_second_reveal() -> None:
    federation, seen, _ = uploaded(4)
    with refused("STATE", "UPLOADED, SIGNED, REVEALED"):
        reveal_twice(federation, seen, again=True)


def test_shares_revealed_twice_give_a_site_away() -> None:
    names = [f"site-{at:02d}" for at in range(4)]
    federation, seen, values = uploaded(4, memories={name: Forgetful() for name in names})
    assert np.array_equal(reveal_twice(federation, seen, again=True), values[VICTIM])


def test_a_site_confirms_once() -> None:
    federation, seen, _ = uploaded(4)
    confirmed(federation, seen, federation.names)
    with refused("STATE"):
        confirmed(federation, seen, federation.without(VICTIM))


# ------------------------------------------------------------------------------ split view: attack 6 of the second list


def split_the_survivors(federation: Federation, seen: Seen, halves: Sequence[Sequence[str]]) -> np.ndarray:
    """Tell one part of the sites that the victim survived, and the other part that it was lost."""
    alive, lost = halves
    confirms = {**confirmed(federation, seen, alive), **confirmed(federation, seen, lost)}
    for_alive, for_lost = (confirms_of(federation, {name: confirms[name] for name in part}) for part in halves)
    unmasked_alive = {name: federation.sites[name].unmask(seen.number, for_alive) for name in alive}
    unmasked_lost = {name: federation.sites[name].unmask(seen.number, for_lost) for name in lost}
    secret = self_mask(federation, unmasked_alive, list(alive).index(VICTIM))
    lost_indices = [federation.index(name) for name in federation.names if name not in lost]
    key = mask_key(federation, unmasked_lost, lost_indices.index(federation.index(VICTIM)))
    return stripped(seen, VICTIM, federation.index(VICTIM), mask=key, self_mask=secret)


#: Six sites: two sets of three can be told different things only if three are enough.
HALVES = (("site-00", "site-01", "site-02"), ("site-03", "site-04", "site-05"))


def test_two_sets_of_survivors_need_more_sites_than_there_are() -> None:
    federation, seen, _ = uploaded(6)
    with refused("QUORUM", "3 sites"):
        split_the_survivors(federation, seen, HALVES)


def test_a_threshold_of_one_half_lets_a_split_view_read_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (params_module, dealing_module, site_module, server_module):
        monkeypatch.setattr(module, "threshold", lambda sites: sites // 2)
    with refused("COLLUDERS"):  # such a rule does not even begin
        Federation(6)
    monkeypatch.setattr(Params, "verify_sites", lambda self, sites: None)
    federation, seen, values = uploaded(6)
    assert np.array_equal(split_the_survivors(federation, seen, HALVES), values[VICTIM])


def test_confirmations_of_different_sets_do_not_add_up() -> None:
    federation, seen, _ = uploaded(4)
    with refused("SIGNATURE"):
        split_with_mixed_confirmations(federation, seen)


def split_with_mixed_confirmations(federation: Federation, seen: Seen) -> np.ndarray:
    """Five or four sites, one set for each half, and every confirmation is passed to everybody."""
    others = federation.without(VICTIM)
    told_all = [VICTIM, *others[: len(others) // 2]]
    told_less = others[len(others) // 2 :]
    confirms = {}
    for name in told_all:
        confirms[name] = federation.sites[name].confirm(seen.number, survivors_of(seen, federation.names))
    for name in told_less:
        confirms[name] = federation.sites[name].confirm(seen.number, survivors_of(seen, others))
    kept = {name: dict(federation.sites[name]._steps[seen.number].held) for name in federation.names}
    everything = confirms_of(federation, confirms)
    but_victim = confirms_of(federation, {name: confirms[name] for name in others})
    alive = {name: federation.sites[name].unmask(seen.number, everything) for name in told_all}
    lost = {name: federation.sites[name].unmask(seen.number, but_victim) for name in told_less}
    index, colluder = federation.index(VICTIM), told_less[0]
    selves = {federation.index(name): unmask_of(one).self_shares[index - 1] for name, one in alive.items()}
    selves[federation.index(colluder)] = kept[colluder][index][1]
    keys = {federation.index(name): unmask_of(one).key_shares[0] for name, one in lost.items()}
    friend = told_all[1]  # the second colluder
    keys[federation.index(friend)] = kept[friend][index][0]
    return stripped(seen, VICTIM, index, mask=open_secret(keys), self_mask=open_secret(selves))


def test_confirmations_that_are_not_compared_let_a_split_view_read_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    federation, seen, values = uploaded(4)
    for site in federation.sites.values():
        monkeypatch.setattr(site, "_verify_signed", lambda *_: None)
    assert np.array_equal(split_with_mixed_confirmations(federation, seen), values[VICTIM])


def test_two_key_sets_or_sets_of_dealers_are_two_views() -> None:
    """The server shows two groups different members; nobody agrees to a set that holds uploads of both."""
    federation = Federation(5)
    seen = federation.offer()
    federation.keys(seen)
    keys = [federation.server._steps[seen.number].keys[index] for index in range(1, 6)]
    small = signed_list("keyset", keys[:4])
    for name in federation.names[:3]:
        federation.sites[name].keyset(seen.number, small)
    for name in federation.names[3:4]:
        federation.sites[name].keyset(seen.number, seen.keyset)
    with refused("KEYS", "without this site's own"):
        federation.sites[federation.names[4]].keyset(seen.number, small)
    federation.sites[federation.names[4]].keyset(seen.number, seen.keyset)
    dealt = {name: federation.sites[name].deal(seen.number) for name in federation.names}
    mixed = [transcript.Dealt.parse(dealt[name]) for name in federation.names[:4]]
    for name in federation.names:
        with refused("SHARES", "another set of keys"):
            federation.sites[name].dealers(seen.number, dealers_message(mixed))


def test_two_sets_of_dealers_are_two_views() -> None:
    federation = Federation(5)
    seen = federation.offer()
    federation.keys(seen)
    federation.keyset(seen)
    federation.shares(seen)
    all_dealt = parse_dealers(seen.dealers)
    four = dealers_message(all_dealt[:4])
    for name in federation.names[:3]:
        federation.sites[name].dealers(seen.number, four)
    for name in federation.names[3:]:
        federation.sites[name].dealers(seen.number, seen.dealers)
    for name in federation.names:
        (seen.uploads[name],) = federation.sites[name].upload(
            [(seen.number, np.zeros(LENGTH, dtype=np.uint32))], INPUTS, "train"
        )
    for name in federation.names:
        with refused("VIEW"):
            federation.sites[name].confirm(seen.number, survivors_of(seen, federation.names))


# ------------------------------------------------------- too few: attack 8 of the first list, and 11 of the second list


def test_a_hostile_server_gets_nothing_from_too_small_sets() -> None:
    federation = Federation(5)
    t = threshold(5)
    seen = federation.offer()
    federation.keys(seen)
    keys = parse_signed_list("keyset", seen.keyset)
    site = federation.sites[federation.names[0]]
    for size in range(t):
        with refused("QUORUM" if size else "KEYS"):
            site.keyset(seen.number, signed_list("keyset", keys[:size]))
    federation.keyset(seen)
    federation.shares(seen)
    dealt = parse_dealers(seen.dealers)
    for size in range(t):
        with refused("QUORUM" if size else "SHARES"):
            site.dealers(seen.number, dealers_message(dealt[:size]))
    federation.dealers(seen)
    federation.upload(seen, vectors(federation.names))
    for size in range(t):
        with refused("QUORUM" if size else "SURVIVORS"):
            site.confirm(seen.number, survivors_of(seen, federation.names[:size]))
    confirms = confirmed(federation, seen, federation.names)
    for size in range(t):
        few = confirms_of(federation, {name: confirms[name] for name in federation.names[:size]})
        with refused("CONFIRM", f"{size} confirmations"):
            site.unmask(seen.number, few)
    one = (1, confirms[federation.names[0]])
    with refused("CONFIRM", "two of one"):
        site.unmask(seen.number, confirms_message([one] * t))
    with refused("CONFIRM", "no survivor"):
        site.unmask(seen.number, confirms_message([(0, confirms[federation.names[0]])]))
    assert site._steps[seen.number].held  # still there: nothing was revealed


def test_a_small_sum_shows_a_site_where_the_quorum_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the quorum the server names the victim and one colluding site as the survivors, and subtracts."""
    monkeypatch.setattr(Params, "least", lambda self, sites: 2)
    for module in (dealing_module, site_module, server_module):
        monkeypatch.setattr(module, "threshold", lambda sites: 2)
    federation = Federation(5)
    values = vectors(federation.names)
    colluder = "site-04"
    lost = dict.fromkeys(federation.without(VICTIM, colluder), "upload")
    total, *_ = federation.run(values, lost, 0)
    assert np.array_equal(total - values[colluder], values[VICTIM])


def test_a_dropped_or_foreign_upload_makes_no_survivor() -> None:
    federation, seen, _ = uploaded(5)
    site = federation.sites["site-00"]
    with refused("SURVIVORS", "own"):
        site.confirm(seen.number, survivors_of(seen, federation.names[1:]))
    seen.uploads["site-04"] = Signed(seen.uploads["site-04"].message, bytes(64))
    with refused("SIGNATURE", "site-04"):
        site.confirm(seen.number, survivors_of(seen, federation.names))


def test_an_upload_of_a_site_that_dealt_nothing_makes_no_survivor() -> None:
    federation = Federation(5)
    seen = federation.offer()
    federation.keys(seen)
    federation.keyset(seen)
    federation.shares(seen, federation.names[:4])
    federation.dealers(seen, federation.names[:4])
    federation.upload(seen, vectors(federation.names[:4]))
    colluder = federation.sites["site-04"]
    forged = site_module.Upload(site_module.Upload.parse(seen.uploads["site-00"].message).view, 5, LENGTH, b"")
    seen.uploads["site-04"] = Signed(forged.encoded(), colluder._signing.sign(forged.encoded()))
    with refused("SURVIVORS", "dealt no shares"):
        federation.sites["site-00"].confirm(seen.number, survivors_of(seen, federation.names))


# ---------------------------------------------------------------------------- late uploads: attack 7 of the second list


def late_upload(federation: Federation, values: dict[str, np.ndarray]) -> tuple[Seen, np.ndarray]:
    """The victim is called lost and its key is opened; then its upload arrives. Everything known is taken off it."""
    seen = federation.to_upload()
    federation.upload(seen, {name: values[name] for name in federation.without(VICTIM)})
    federation.unmask(seen, federation.confirm(seen))
    federation.upload(seen, {VICTIM: values[VICTIM]}, add=False)
    key = mask_key(federation, seen.unmasks)
    return seen, stripped(seen, VICTIM, federation.index(VICTIM), mask=key)


def test_a_late_upload_stays_masked() -> None:
    federation = Federation(4, params(LONG))
    values = vectors(federation.names, length=LONG)
    seen, found = late_upload(federation, values)
    assert looks_random(found)
    with refused("LATE"):
        federation.server.upload(VICTIM, seen.number, seen.uploads[VICTIM].encoded(), seen.words[VICTIM])
    with refused("SURVIVORS", "own"):  # and it agrees to nothing that leaves it out
        federation.sites[VICTIM].confirm(seen.number, seen.survivors)
    # Its self-mask is in shares of which the server has none: survivors sent those of the survivors only.
    held = {share for one in seen.unmasks.values() for share in unmask_of(one).self_shares}
    assert len(held) == 3 * 3
    for name in federation.without(VICTIM):
        site = federation.sites[name]
        assert site._steps[seen.number].held == {}
        with refused("STATE"):
            site.confirm(seen.number, survivors_of(seen, federation.names))


def test_a_late_upload_without_a_self_mask_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(4)
    values = vectors(federation.names)
    known = bytes(32)
    monkeypatch.setattr(site_module, "self_key", lambda secret, view, index: self_key(known, view, index))
    monkeypatch.setattr(server_module, "self_key", lambda secret, view, index: self_key(known, view, index))
    seen, _ = late_upload(federation, values)
    key = mask_key(federation, seen.unmasks)
    found = stripped(seen, VICTIM, federation.index(VICTIM), mask=key, self_mask=known)
    assert np.array_equal(found, values[VICTIM])


def test_what_a_server_has_of_an_aborted_round_opens_nothing() -> None:
    """One share too few of everything: what it interpolates is neither the key nor the self-mask."""
    federation, seen, _ = uploaded(5)
    confirms = confirmed(federation, seen, federation.names)
    few = federation.without(VICTIM)[: threshold(5) - 1]
    unmasks = {name: federation.sites[name].unmask(seen.number, confirms_of(federation, confirms)) for name in few}
    secret = self_mask(federation, unmasks, federation.names.index(VICTIM))
    commitment = members(seen)[federation.index(VICTIM)].commitment
    step = federation.sites[VICTIM]._steps[seen.number]
    assert schedule.self_commitment(step.step, federation.index(VICTIM), secret) != commitment
    assert secret != step.self_mask


# ------------------------------------------- witness: what convinces a site that was away when others agreed


def test_a_site_that_was_away_believes_what_enough_others_confirmed() -> None:
    federation, seen, _ = uploaded(4)
    away, survivors = federation.sites[VICTIM], survivors_of(seen, federation.names)
    others = federation.without(VICTIM)  # three, which is t
    signatures = {name: federation.sites[name].confirm(seen.number, survivors) for name in others}
    confirms = confirms_of(federation, signatures)
    assert away.witness(seen.number, survivors, confirms) == tuple(federation.names)
    away.end_round(0)  # and also once its secrets are erased
    assert away.witness(seen.number, survivors, confirms) == tuple(federation.names)


def test_a_witness_of_too_few_forged_or_foreign_confirmations_is_refused() -> None:
    federation, seen, _ = uploaded(4)
    names = federation.names
    signatures = confirmed(federation, seen, names)
    away, survivors = federation.sites[VICTIM], survivors_of(seen, names)
    two = {name: signatures[name] for name in names[2:]}
    with refused("CONFIRM"):
        away.witness(seen.number, survivors, confirms_of(federation, two))
    with refused("SIGNATURE"):
        away.witness(seen.number, survivors, confirms_of(federation, {**two, names[0]: signatures[names[2]]}))
    with refused("CONFIRM"):  # one signature counted twice
        twice = [(federation.index(name), signatures[name]) for name in (*names[2:], names[3])]
        away.witness(seen.number, survivors, confirms_message(twice))
    with refused("FORM"):
        away.witness(seen.number, b"survivors", confirms_of(federation, signatures))
    less = survivors_of(seen, names[:3])  # confirmations are of all four: not of these three
    with refused("SIGNATURE"):
        away.witness(seen.number, less, confirms_of(federation, {name: signatures[name] for name in names[:3]}))


def test_a_witness_says_nothing_to_a_site_whose_update_is_not_in_it() -> None:
    federation, seen, _ = uploaded(5)
    others = federation.without(VICTIM)
    signatures = confirmed(federation, seen, others)
    message = survivors_of(seen, others), confirms_of(federation, signatures)
    assert federation.sites[VICTIM].witness(seen.number, *message) == ()
    assert federation.sites[VICTIM].witness(seen.number + 100, *message) == ()
