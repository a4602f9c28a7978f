# SPDX-License-Identifier: Apache-2.0
"""Attacks on mask keys: one key for two vectors, keys that were revealed before, keys that can be guessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fairflare.privacy.reveals import RevealMemory
from fairflare.secagg import masking, transcript
from fairflare.secagg import site as site_module
from fairflare.secagg.masking import add_masks, keystream
from fairflare.secagg.params import VectorParams
from fairflare.secagg.schedule import agree, pair_key
from fairflare.secagg.site import SiteSession
from fairflare.secagg.state import Offer
from fairflare.secagg.transcript import Joining, Keys, roster_message, signed_list
from tests.attacks.federation import (
    INPUTS,
    JOB,
    AnyStep,
    Federation,
    Seen,
    identity,
    looks_random,
    members,
    open_secret,
    params,
    parse_signed_list,
    refused,
    stripped,
    trust,
    unmask_of,
    vectors,
    view_of,
)

VICTIM = "site-01"


def two_open_vectors() -> Federation:
    measure = VectorParams("measure", "open", params().vectors[0].length, 32, 27, 8.0)
    return Federation(4, replace(params(), vectors=(measure, *params().vectors)))


def opened_mask_key(federation: Federation, seen: Seen, place: int = 0) -> bytes:
    """The mask key of a site that was called lost, from the shares that the survivors sent."""
    shares = {federation.index(name): unmask_of(one).key_shares[place] for name, one in seen.unmasks.items()}
    return open_secret(shares)


def opened_self_mask(federation: Federation, seen: Seen, name: str) -> bytes:
    place = [one.signature for one in parse_signed_list("survivors", seen.survivors)].index(
        seen.uploads[name].signature
    )
    shares = {federation.index(one): unmask_of(sent).self_shares[place] for one, sent in seen.unmasks.items()}
    return open_secret(shares)


# ------------------------------------------------------------- one mask key for two vectors: attack 1 of the first list


def measure_then_call_it_dropped(federation: Federation, values: dict[str, np.ndarray]) -> np.ndarray:
    """Open the victim's self-mask of one vector and its mask key of the other; strip the first with both."""
    *_, measured = federation.run(values, {}, 0, label="measure")
    *_, trained = federation.run(values, {VICTIM: "upload"}, 0)
    key, self_mask = opened_mask_key(federation, trained), opened_self_mask(federation, measured, VICTIM)
    return stripped(measured, VICTIM, federation.index(VICTIM), mask=key, self_mask=self_mask)


def test_a_revealed_mask_key_opens_no_other_vector() -> None:
    federation = two_open_vectors()
    values = vectors(federation.names)
    assert not np.array_equal(measure_then_call_it_dropped(federation, values), values[VICTIM])


def test_one_mask_key_for_two_vectors_gives_the_statistics_away() -> None:
    federation = two_open_vectors()
    site = federation.sites[VICTIM]
    fresh, draws = site._random, cycle((True, False))
    site._random = lambda size: bytes(32) if size == 32 and next(draws) else fresh(size)
    values = vectors(federation.names)
    assert np.array_equal(measure_then_call_it_dropped(federation, values), values[VICTIM])


# --------------------------------------------------------------------- keys revealed before: attack 3 of the first list


def collect_revealed_keys(federation: Federation) -> tuple[dict[int, bytes], list[transcript.Signed]]:
    """Three ordinary rounds, each without another peer of the victim: their old KEYS, and the mask keys to them."""
    values, secrets, old = vectors(federation.names), {}, []
    for at, name in enumerate(federation.without(VICTIM)):
        *_, seen = federation.run(values, {name: "upload"}, at)
        index = federation.index(name)
        secrets[index] = opened_mask_key(federation, seen)
        old += [one for one in parse_signed_list("keyset", seen.keyset) if Keys.parse(one.message).index == index]
    return secrets, old


def closed_step_with_old_keys(federation: Federation, victim: SiteSession, values: np.ndarray) -> np.ndarray:
    """Replay the revealed keys to the victim for a statistic, which has no self-mask, and take every pair mask off."""
    secrets, old = collect_revealed_keys(federation)
    return with_keys(federation, victim, values, secrets, old)


def with_keys(
    federation: Federation,
    victim: SiteSession,
    values: np.ndarray,
    secrets: dict[int, bytes],
    old: Sequence[transcript.Signed],
) -> np.ndarray:
    seen = Seen(Offer(1000, "risk", 0))
    (own,) = victim.keys([seen.offer])
    keyset = sorted([transcript.Signed.parse(own), *old], key=lambda one: Keys.parse(one.message).index)
    seen.keyset = signed_list("keyset", keyset)
    victim.keyset(seen.number, seen.keyset)
    words = values.copy()
    (seen.uploads[VICTIM],) = victim.upload([(seen.number, words)], INPUTS, "measure")
    seen.words[VICTIM] = words
    return stripped(seen, VICTIM, victim.index, others=secrets)


def test_replayed_keys_are_refused() -> None:
    federation = Federation(4)
    with refused("KEYS", "another step"):
        closed_step_with_old_keys(federation, federation.sites[VICTIM], vectors([VICTIM], 64)[VICTIM])


def believe_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take T, r and v out of what a site compares."""
    parse = Keys.parse

    def careless(data: bytes) -> Keys:
        keys = parse(data)
        return replace(keys, step=AnyStep(keys.step.session, keys.step.number, keys.step.label))

    monkeypatch.setattr(Keys, "parse", careless)


def test_replayed_keys_open_a_statistic_where_the_step_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(4)
    believe_any_step(monkeypatch)
    values = vectors([VICTIM], 64)[VICTIM]
    assert np.array_equal(closed_step_with_old_keys(federation, federation.sites[VICTIM], values), values)


def session_from_old_joins(federation: Federation) -> SiteSession:
    """The victim restarts and joins again; the server answers with the others' old JOINs, all genuine."""
    again = SiteSession(identity(VICTIM), trust(), federation.params, RevealMemory.volatile(), JOB)
    joinings = {name: federation.server._joinings[name] for name in federation.names}
    joinings[VICTIM] = Joining.parse(again.join())
    again.begin(roster_message([joinings[name] for name in federation.names]))
    return again


def test_old_joins_make_a_session_in_which_no_old_key_is_taken() -> None:
    federation = Federation(4)
    secrets, old = collect_revealed_keys(federation)
    again = session_from_old_joins(federation)
    assert again.session != federation.server.session
    with refused("KEYS", "another step"):
        with_keys(federation, again, vectors([VICTIM], 64)[VICTIM], secrets, old)


def test_old_joins_and_old_keys_open_a_statistic_where_the_session_is_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation = Federation(4)
    secrets, old = collect_revealed_keys(federation)
    again = session_from_old_joins(federation)
    believe_any_step(monkeypatch)
    values = vectors([VICTIM], 64)[VICTIM]
    assert np.array_equal(with_keys(federation, again, values, secrets, old), values)


def test_the_old_roster_itself_is_refused() -> None:
    federation = Federation(4, begin=False)
    roster = federation.begin()
    again = SiteSession(identity(VICTIM), trust(), federation.params, RevealMemory.volatile(), JOB)
    again.join()
    with refused("ROSTER", "own JOIN"):
        again.begin(roster)


# ---------------------------------------------------------------- keys that can be guessed: attack 1 of the second list


SEEDS = 2**12


def folded(seed: int) -> bytes:
    """A key that looks like 256 bits, and has 12."""
    return seed.to_bytes(2, "big") * 16


def search(seen: Seen, federation: Federation, colluder: str, fold: Callable[[bytes], bytes]) -> object:
    """With one colluder among three, one pair mask is left: try seeds until what comes out is small."""
    victim, index = federation.sites[VICTIM], federation.index(colluder)
    secret = federation.sites[colluder]._steps[seen.number].mask
    keys, view = members(seen), view_of(seen.uploads[VICTIM])
    known = hkdf_pair(secret or b"", view, keys, index, victim.index)
    words = seen.words[VICTIM].copy()
    add_masks(words, [] if victim.index < index else [fold(known)], [fold(known)] if victim.index < index else [])
    (other,) = {1, 2, 3} - {index, victim.index}
    for seed in range(SEEDS):
        key, guess = folded(seed), words.copy()
        add_masks(guess, *(([], [key]) if victim.index < other else ([key], [])))
        if np.abs(guess.view(np.int64)).max() <= 1000:
            return guess
    return None


def hkdf_pair(secret: bytes, view: bytes, keys: dict[int, Keys], own: int, other: int) -> bytes:
    shared = agree(X25519PrivateKey.from_private_bytes(secret), keys[other].public)
    return pair_key(shared, view, (own, keys[own].public), (other, keys[other].public))


def closed_upload_of_three(colluder: str) -> tuple[Federation, Seen, dict[str, np.ndarray]]:
    federation = Federation(3)
    seen = federation.to_upload("risk")
    values = vectors(federation.names, 64)
    federation.upload(seen, {name: values[name] for name in federation.without(colluder)})
    return federation, seen, values


def test_a_search_through_few_seeds_finds_nothing() -> None:
    federation, seen, _ = closed_upload_of_three("site-02")
    assert search(seen, federation, "site-02", lambda key: key) is None


def test_a_mask_key_folded_to_twelve_bits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another framework folds its keys to 28 bits, which took 42 seconds on one core; 12 bits keep this test short.
    def fold(key: bytes) -> bytes:
        return folded(int.from_bytes(key[:2], "big") % SEEDS)

    monkeypatch.setattr(site_module, "pair_key", lambda *arguments: fold(pair_key(*arguments)))
    federation, seen, values = closed_upload_of_three("site-02")
    found = search(seen, federation, "site-02", fold)
    assert np.array_equal(np.asarray(found), values[VICTIM])


def test_every_bit_of_a_key_reaches_the_cipher() -> None:
    key = bytes(range(32))
    streams = {keystream(key, 4, np.uint32).tobytes()}
    for bit in range(256):
        other = (int.from_bytes(key, "big") ^ 1 << bit).to_bytes(32, "big")
        streams.add(keystream(other, 4, np.uint32).tobytes())
    assert len(streams) == 257


def test_every_secret_of_a_step_has_256_bits_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bytes] = []

    def watched(words: np.ndarray, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
        used.extend([*plus, *minus])
        masking.add_masks(words, plus, minus)

    monkeypatch.setattr(site_module, "add_masks", watched)
    federation = Federation(4)
    for fl_round in range(2):
        for label, bits in (("update", 32), ("risk", 64)):
            federation.uploaded(vectors(federation.names, bits), label, fl_round)
    assert all(len(key) == 32 for key in used)
    # Per round: 6 pairs at both ends, in an update and in a statistic, and 4 self-masks.
    assert len(set(used)) == 2 * (6 + 6 + 4)
    bits = np.unpackbits(np.frombuffer(b"".join(sorted(set(used))), dtype=np.uint8)).reshape(-1, 256)
    assert 0.4 < bits.mean() < 0.6
    assert SiteSession.__init__.__kwdefaults__["random"].__name__ == "urandom"


# ------------------------------------------------------------------ independent keystreams: attack 2 of the second list

LONG = 4096


def two_uploads(federation: Federation, first: tuple[str, int], second: tuple[str, int]) -> np.ndarray:
    """The difference of the victim's masked words in two steps, both of which hide zeros."""
    found = []
    for label, fl_round in (first, second):
        zeros = {name: np.zeros(LONG, dtype=np.uint64) for name in federation.names}
        seen = federation.uploaded(zeros, label, fl_round)
        found.append(seen.words[VICTIM])
    return found[0] - found[1]


PAIRS = [(("risk", 0), ("size", 0)), (("risk", 0), ("risk", 1)), (("size", 7), ("risk", 3))]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_vectors_or_rounds_have_independent_masks(first: tuple[str, int], second: tuple[str, int]) -> None:
    difference = two_uploads(Federation(3, params(LONG)), first, second)
    assert looks_random(difference)
    assert np.unique(difference).size == LONG


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_one_key_without_a_view_masks_two_vectors_alike(
    first: tuple[str, int], second: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(3, params(LONG))
    for at, site in enumerate(federation.sites.values()):
        site._random = lambda size, at=at: bytes([at + 1]) * size
    monkeypatch.setattr(site_module, "pair_key", lambda shared, view, *pair: pair_key(shared, bytes(32), *pair))
    assert not two_uploads(federation, first, second).any()


def test_two_attempts_of_a_round_have_independent_masks() -> None:
    first, second = Federation(3, params(LONG)), Federation(3, params(LONG))  # the same round in another session
    found = [
        one.uploaded({name: np.zeros(LONG, dtype=np.uint64) for name in one.names}, "risk").words[VICTIM]
        for one in (first, second)
    ]
    assert looks_random(found[0])
    assert looks_random(found[1])
    assert looks_random(found[0] - found[1])
    assert looks_random(found[0] ^ found[1])
