# SPDX-License-Identifier: Apache-2.0
"""Attacks with wrong shares (attack 13 of the list): who sent them is named, and no wrong sum comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from fairflare.secagg import dealing as dealing_module
from fairflare.secagg import server as server_module
from fairflare.secagg import shamir
from fairflare.secagg import state as state_module
from fairflare.secagg.params import threshold
from fairflare.secagg.transcript import Dealt, Shares, Unmask, dealers_message, parse_dealers
from tests.attacks.federation import (
    Federation,
    Seen,
    plain_sum,
    refused,
    resigned,
    unmask_of,
    vectors,
)

LIAR = "site-01"
LOST = "site-03"


def with_keyset() -> tuple[Federation, Seen]:
    federation = Federation(5)
    seen = federation.offer()
    federation.keys(seen)
    federation.keyset(seen)
    return federation, seen


# ----------------------------------------------------------------------------------------------------- wrong at dealing


def flipped(data: bytes, at: int = -1) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if at >= 0 else data[:-1] + bytes([data[-1] ^ 1])


def deal_again(federation: Federation, seen: Seen, change: str) -> Dealt:
    """What the liar sends instead of its honest dealing; all of it is properly signed."""
    site = federation.sites[LIAR]
    dealt = Dealt.parse(site.deal(seen.number))
    shares = Shares.parse(dealt.signed.message)
    if change == "cipher":
        ciphers = tuple(flipped(one) for one in dealt.ciphers)
        shares = replace(shares, ciphers=tuple(state_module.sha256(one) for one in ciphers))
    elif change == "key commitment":
        ciphers = dealt.ciphers
        shares = replace(shares, key_commitments=tuple(flipped(one) for one in shares.key_commitments))
    else:
        ciphers = dealt.ciphers
        shares = replace(shares, self_commitments=tuple(flipped(one) for one in shares.self_commitments))
    return Dealt(resigned(site, shares.encoded()), ciphers)


@pytest.mark.parametrize("change", ["cipher", "key commitment", "self commitment"])
def test_a_dealer_of_wrong_shares_is_named_and_the_step_ends(change: str) -> None:
    federation, seen = with_keyset()
    wrong = deal_again(federation, seen, change)
    for name in federation.without(LIAR):
        federation.server.shares(name, seen.number, federation.sites[name].deal(seen.number))
    federation.server.shares(LIAR, seen.number, wrong.encoded())
    seen.dealers = federation.server.dealers(seen.number)
    for name in federation.without(LIAR):
        with refused("DEALER", LIAR):
            federation.sites[name].dealers(seen.number, seen.dealers)
        step = federation.sites[name]._steps[seen.number]
        assert (step.phase, step.mask, step.self_mask, step.held) == ("over", None, None, {})
    total, sites, _ = federation.run(vectors(federation.names), {}, 1)  # the next round goes on
    assert list(sites) == federation.names
    assert np.array_equal(total, plain_sum(list(vectors(federation.names).values())))


def test_shares_changed_on_their_way_are_refused_without_naming_their_dealer_a_liar() -> None:
    federation, seen = with_keyset()
    federation.shares(seen)
    dealt = parse_dealers(seen.dealers)
    site = federation.sites["site-00"]
    changed = Dealt(dealt[1].signed, tuple(flipped(one) for one in dealt[1].ciphers))
    with refused("SHARES", "other ciphertexts than site-01 signed"):
        site.dealers(seen.number, dealers_message([dealt[0], changed, *dealt[2:]]))
    swapped = Dealt(replace(dealt[1].signed, signature=dealt[2].signed.signature), dealt[1].ciphers)
    with refused("SIGNATURE", LIAR):
        site.dealers(seen.number, dealers_message([dealt[0], swapped, *dealt[2:]]))
    with refused("SHARES", "two dealings"):
        site.dealers(seen.number, dealers_message([dealt[0], dealt[1], dealt[1], *dealt[2:]]))
    with refused("SHARES", "out of order"):
        site.dealers(seen.number, dealers_message(dealt[::-1]))
    with refused("SHARES", "without this site"):
        site.dealers(seen.number, dealers_message(dealt[1:]))
    federation.dealers(seen)
    with refused("SHARES", "too late"):
        federation.server.shares(LIAR, seen.number, dealt[1].encoded())


@pytest.mark.parametrize("part", ["ciphers", "key_commitments", "self_commitments"])
@pytest.mark.parametrize("more", [True, False])
def test_too_few_or_too_many_shares_are_refused(part: str, more: bool) -> None:
    federation, seen = with_keyset()
    dealt = {name: Dealt.parse(federation.sites[name].deal(seen.number)) for name in federation.names}
    shares = Shares.parse(dealt[LIAR].signed.message)
    values = getattr(shares, part)
    wrong = replace(shares, **{part: (*values, values[0]) if more else values[:-1]})
    dealt[LIAR] = Dealt(resigned(federation.sites[LIAR], wrong.encoded()), dealt[LIAR].ciphers)
    with refused("SHARES", "too few or too many"):
        federation.sites["site-00"].dealers(seen.number, dealers_message(list(dealt.values())))
    with refused("SHARES", "size"):
        federation.server.shares(LIAR, seen.number, dealt[LIAR].encoded())


def test_a_site_that_sent_no_keys_deals_no_shares() -> None:
    federation = Federation(5)
    seen = federation.offer()
    federation.keys(seen, federation.names[:4])
    federation.keyset(seen, federation.names[:4])
    federation.shares(seen, federation.names[:4])
    stranger = Shares.parse(parse_dealers(seen.dealers)[0].signed.message)
    message = replace(stranger, index=5).encoded()
    dealt = Dealt(resigned(federation.sites["site-04"], message), parse_dealers(seen.dealers)[0].ciphers)
    with refused("SHARES", "no keys"):
        federation.sites["site-00"].dealers(seen.number, dealers_message([*parse_dealers(seen.dealers), dealt]))
    server = federation.server
    server._steps[seen.number].dealers = {}
    with refused("SHARES"):
        server.shares("site-04", seen.number, dealt.encoded())
    forged = Dealt(dealt.signed, tuple(flipped(one) for one in dealt.ciphers))
    with refused("SHARES", "another step"):
        server.shares("site-04", seen.number, forged.encoded())


def test_the_server_refuses_other_ciphertexts_than_were_signed() -> None:
    federation, seen = with_keyset()
    dealt = Dealt.parse(federation.sites[LIAR].deal(seen.number))
    changed = Dealt(dealt.signed, tuple(flipped(one) for one in dealt.ciphers))
    with refused("SHARES", "other ciphertexts"):
        federation.server.shares(LIAR, seen.number, changed.encoded())


# --------------------------------------------------------------------------------------------- shares of another secret


def deal_another_secret(
    monkeypatch: pytest.MonkeyPatch, federation: Federation, which: int, off_polynomial: bool
) -> None:
    """The liar deals good shares, with good commitments, of a secret that it never used."""
    honest, honest_split = federation.sites[LIAR].deal, shamir.split

    def deal(number: int) -> bytes:
        splits = []

        def split(secret: bytes, t: int, indices: Sequence[int]) -> dict[int, bytes]:
            splits.append(secret)
            if len(splits) - 1 != which:
                return honest_split(secret, t, indices)
            if off_polynomial:
                return {index: (2**256 + 296 - index).to_bytes(33, "big") for index in indices}
            return honest_split(bytes(31) + b"x", t, indices)

        with monkeypatch.context() as patch:
            patch.setattr(dealing_module.shamir, "split", split)
            return honest(number)

    federation.sites[LIAR].deal = deal  # type: ignore[method-assign]


@pytest.mark.parametrize("off_polynomial", [True, False])
@pytest.mark.parametrize("which", [0, 1])
def test_shares_of_another_secret_name_the_dealer_and_open_nothing(
    which: int, off_polynomial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(5)
    deal_another_secret(monkeypatch, federation, which, off_polynomial)
    lost = {LIAR: "upload"} if which == 0 else {}  # its mask key is opened only if it is lost
    with refused("CULPRIT", LIAR):
        federation.run(vectors(federation.names), lost, 0)
    step = federation.server._steps[0]
    assert step.total is not None
    assert not np.array_equal(step.total, plain_sum(list(vectors(federation.names).values())))


def test_shares_of_another_secret_give_a_wrong_sum_where_the_secret_is_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation = Federation(5)
    deal_another_secret(monkeypatch, federation, 1, False)

    def believing(step: object, dealer: int, secret: bytes) -> bytes:
        return federation.server._steps[0].members[dealer].commitment

    monkeypatch.setattr(server_module, "self_commitment", believing)
    total, *_ = federation.run(vectors(federation.names), {}, 0)
    assert not np.array_equal(total, plain_sum(list(vectors(federation.names).values())))


# --------------------------------------------------------------------------------------------------- wrong at unmasking


def lie_at_unmasking(federation: Federation, seen: Seen, kind: str, *, checked: bool = True) -> None:
    """The liar changes a share before it sends them; ``checked``: the server is expected to find it."""
    confirms = federation.confirm(seen)
    for name in seen.confirms:
        message = federation.sites[name].unmask(seen.number, confirms)
        if name == LIAR:
            unmask = unmask_of(message)
            if kind == "self":
                unmask = replace(unmask, self_shares=(flipped(unmask.self_shares[0]), *unmask.self_shares[1:]))
            else:
                unmask = replace(unmask, key_shares=tuple(flipped(one) for one in unmask.key_shares))
            message = resigned(federation.sites[LIAR], unmask.encoded()).encoded()
            if checked:
                with refused("CULPRIT", LIAR):
                    federation.server.unmask(name, seen.number, message)
                continue
        federation.server.unmask(name, seen.number, message)


def step_without_one(sites: int) -> tuple[Federation, Seen, dict[str, np.ndarray]]:
    federation = Federation(sites)
    values = vectors(federation.names)
    seen = federation.to_upload()
    federation.upload(seen, {name: values[name] for name in federation.without(LOST)})
    return federation, seen, values


@pytest.mark.parametrize("kind", ["self", "key"])
def test_a_wrong_share_names_its_sender_and_the_others_still_open_the_sum(kind: str) -> None:
    federation, seen, values = step_without_one(7)
    lie_at_unmasking(federation, seen, kind)
    assert len(federation.server._steps[seen.number].shares) == threshold(7)
    total, sites = federation.opened(seen)
    assert LIAR in sites
    assert np.array_equal(total, plain_sum([values[name] for name in federation.without(LOST)]))
    with refused("STATE", "second opening"):
        federation.opened(seen)


@pytest.mark.parametrize("kind", ["self", "key"])
def test_a_wrong_share_and_no_spare_one_open_nothing(kind: str) -> None:
    federation, seen, _ = step_without_one(4)
    lie_at_unmasking(federation, seen, kind)
    with refused("QUORUM", "2 sets of shares"):
        federation.opened(seen)


@pytest.mark.parametrize(("kind", "blamed"), [("self", "site-00"), ("key", LOST)])
def test_a_wrong_share_that_is_not_checked_puts_the_blame_on_an_honest_dealer(
    kind: str, blamed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, seen, _ = step_without_one(4)
    step = federation.server._steps[seen.number]

    def believing(which: str, _: object, dealer: int, holder: int, share: bytes) -> bytes:
        shares = step.dealers[dealer]
        return (shares.self_commitments if which == "b" else shares.key_commitments)[list(step.members).index(holder)]

    monkeypatch.setattr(server_module, "share_commitment", believing)
    lie_at_unmasking(federation, seen, kind, checked=False)
    with refused("CULPRIT", blamed):
        federation.opened(seen)


def test_shares_for_another_set_of_survivors_are_refused() -> None:
    federation, seen, _ = step_without_one(5)
    confirms = federation.confirm(seen)
    site = federation.sites["site-00"]
    unmask = unmask_of(site.unmask(seen.number, confirms))
    wrong = [
        replace(unmask, view=bytes(32)),
        replace(unmask, confirm=bytes(32)),
        replace(unmask, self_shares=unmask.self_shares[1:]),
        replace(unmask, key_shares=unmask.key_shares * 2),
    ]
    for one in wrong:
        with refused("UNMASK", "another set of survivors"):
            federation.server.unmask("site-00", seen.number, resigned(site, one.encoded()).encoded())
    with refused("UNMASK", "no survivor"):
        sent = resigned(federation.sites[LOST], unmask.encoded()).encoded()
        federation.server.unmask(LOST, seen.number, sent)
    with refused("SIGNATURE", LIAR):
        federation.server.unmask(LIAR, seen.number, resigned(site, unmask.encoded()).encoded())
    assert isinstance(unmask, Unmask)
    assert federation.server._steps[seen.number].shares == {}


def test_confirmations_that_nobody_waits_for_are_refused() -> None:
    federation, seen, _ = step_without_one(5)
    confirms = federation.confirm(seen)
    assert confirms
    with refused("CONFIRM", LOST):
        federation.server.confirm(LOST, seen.number, bytes(64))
    for signature in (b"", bytes(63), bytearray(64)):
        with refused("CONFIRM", LIAR):
            federation.server.confirm(LIAR, seen.number, signature)  # type: ignore[arg-type]
    with refused("SIGNATURE", LIAR):
        federation.server.confirm(LIAR, seen.number, bytes(64))
