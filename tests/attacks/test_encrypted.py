# SPDX-License-Identifier: Apache-2.0
"""Attacks on encrypted statistics: the server's, a hospital's, and both together.

All hospitals share one key, so whoever has it opens every ciphertext. What must hold then is the mask underneath.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tenseal as ts

from fairflare.errors import HeError
from fairflare.he.ckks import SiteCipher
from fairflare.he.context import Files
from fairflare.he.parameters import SMALL, Parameters, nominal
from fairflare.secagg.params import Params
from fairflare.secagg.site import SiteSession
from fairflare.secagg.state import sha256
from fairflare.secagg.transcript import Upload, signed_list
from tests.attacks.federation import (
    Federation,
    Seen,
    looks_random,
    params,
    plain_sum,
    refused,
    resigned,
    vectors,
)
from tests.unit.he.contexts import NARROW, PARAMETERS, cipher, contexts, other_contexts

VICTIM = "site-02"
LONG = 512


def encrypted(length: int = 6, parameters: Parameters = SMALL, by: Any = None) -> Params:
    """The job of the other attacks, whose ``risk`` travels encrypted."""
    box, base = by or cipher(parameters), params(length)
    vector = replace(base.vector("risk"), cipher=box.fingerprint, sizes=box.sizes(length))
    return replace(base, vectors=tuple(vector if one.label == "risk" else one for one in base.vectors))


def sealed(sites: int, length: int = 6, parameters: Parameters = SMALL) -> Federation:
    return Federation(sites, encrypted(length, parameters), opener=cipher(parameters))


def opening(federation: Federation, seen: Seen, order: list[str] | None = None) -> np.ndarray:
    """What a site makes of what the server passes on."""
    names = order or federation.names
    message = signed_list("survivors", [seen.uploads[name] for name in names])
    return federation.sites[VICTIM].opening(seen.number, message, [seen.words[name] for name in names])


@contextmanager
def he_refused(code: str) -> Iterator[None]:
    with pytest.raises(HeError) as caught:
        yield
    assert caught.value.code == f"FF-HE-{code}", caught.value


# ---------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize("sites", [3, 4, 8, 50])
def test_encrypted_totals_are_the_masked_ones_at_every_site(sites: int, parameters: Parameters) -> None:
    federation, length = sealed(sites, 6, parameters), 6
    values = vectors(federation.names, 64, length)
    hidden, plain = (federation.uploaded(values, label) for label in ("risk", "size"))
    message, payloads = federation.server.opening(hidden.number)
    message_plain, payloads_plain = federation.server.opening(plain.number)
    for name in federation.names if sites < 50 else federation.names[:2]:
        site = federation.sites[name]
        total = site.opening(hidden.number, message, payloads)
        assert np.array_equal(total, site.opening(plain.number, message_plain, payloads_plain))
        assert np.array_equal(total, plain_sum(list(values.values())))


def test_parameters_that_would_wrap_begin_no_session() -> None:
    sealed(3, 6, NARROW)
    for sites in (4, 50):
        with he_refused("ROOM"):
            sealed(sites, 6, NARROW)


# ----------------------------------------------------------------------------------------------------------- the server


def test_the_server_opens_nothing() -> None:
    federation = sealed(3)
    seen = federation.uploaded(vectors(federation.names, 64), "risk")
    assert federation.server.is_whole(seen.number)
    with refused("CIPHER"):
        federation.server.opened(seen.number)
    own = ts.context_from(contexts(SMALL).server)
    with pytest.raises(ValueError, match="secret"):
        ts.ckks_vector_from(own, seen.words[VICTIM].tobytes()[4:]).decrypt()


def test_one_ciphertext_handed_on_as_the_total_is_refused_and_would_be_noise() -> None:
    """Attack on stock encryption in FLARE: any hospital decrypts, so the server asks one about another's ciphertext."""
    federation = sealed(3, LONG)
    values = vectors(federation.names, 64, LONG)
    seen = federation.uploaded(values, "risk")
    alone = dict.fromkeys(federation.names, seen.words["site-00"])
    for words in (alone, {**seen.words, VICTIM: seen.words["site-00"]}):
        with refused("OPENING"):
            opening(federation, replace(seen, words=words))
    with refused("QUORUM"):
        opening(federation, seen, ["site-00", VICTIM])
    with refused("VIEW"):
        opening(federation, seen, ["site-00", "site-00", VICTIM])
    for payloads in ([alone["site-00"]], [alone["site-00"], seen.words["site-01"]]):
        assert looks_random(cipher().total(payloads, LONG))
    assert np.array_equal(opening(federation, seen), plain_sum(list(values.values())))


def test_a_context_with_a_key_of_the_servers_choice_joins_nobody() -> None:
    """The fingerprint is in every JOIN, and each site's own record proves it."""
    theirs = other_contexts(SMALL)
    other = SiteCipher(Files(theirs.client, theirs.record))
    federation = Federation(3, encrypted(), opener=cipher(), begin=False)
    lured = Federation(3, encrypted(by=other), opener=other, begin=False)
    federation.sites[VICTIM] = lured.sites[VICTIM]
    with refused("ROSTER"):
        federation.begin()


def test_a_site_whose_cipher_is_not_the_parameters_sends_nothing() -> None:
    theirs = other_contexts(SMALL)
    for opener in (None, SiteCipher(Files(theirs.client, theirs.record))):
        federation = Federation(3, encrypted(), opener=opener)
        with refused("CIPHER"):
            federation.uploaded(vectors(federation.names, 64), "risk")
        assert {site._steps[0].phase for site in federation.sites.values()} == {"keyed"}
        words = vectors(federation.names, 64)[VICTIM]
        with refused("CIPHER"):  # before anything is masked or written down: the question is not spent
            federation.sites[VICTIM].upload([(0, words)], b"d" * 32, "train")
        assert np.array_equal(words, vectors(federation.names, 64)[VICTIM])


def test_ciphertexts_are_handed_out_once_and_not_before_they_are_signed() -> None:
    """Nor does a session keep what it has sent: of an update that would be the size of the model, every round."""
    federation = sealed(3)
    values = vectors(federation.names, 64)
    site, seen = federation.sites[VICTIM], federation.to_upload("risk")
    with refused("STATE"):
        site.sealed(seen.number, values[VICTIM])
    federation.upload(seen, values)
    with refused("STATE"):
        site.sealed(seen.number, values[VICTIM])
    assert site._steps[seen.number].sealed is None


def test_words_in_clear_are_no_payload_of_an_encrypted_vector() -> None:
    federation = sealed(3)
    values = vectors(federation.names, 64)
    seen = federation.to_upload("risk")
    federation.upload(seen, values, add=False)
    federation.server.expect(seen.number, b"d" * 32, "train")
    for words in (values[VICTIM], np.zeros(10, dtype=np.uint8), seen.words[VICTIM].astype(np.uint16)):
        with refused("SHAPE"):
            federation.server.verify_upload(VICTIM, seen.number, seen.uploads[VICTIM].encoded(), words)


# ----------------------------------------------------------------------------------------------------------- a hospital


def test_a_hospital_opens_anothers_ciphertext_to_uniform_words() -> None:
    federation = sealed(3, LONG)
    values = vectors(federation.names, 64, LONG)
    seen = federation.uploaded(values, "risk")
    found = cipher().total([seen.words[VICTIM]], LONG)
    assert looks_random(found)
    assert not looks_random(values[VICTIM])


def test_without_masks_underneath_it_would_read_the_other_hospital(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SiteSession, "_mask", lambda self, one, view, words: None)
    federation = sealed(3, LONG)
    values = vectors(federation.names, 64, LONG)
    seen = federation.uploaded(values, "risk")
    assert np.array_equal(cipher().total([seen.words[VICTIM]], LONG), values[VICTIM])


def test_the_server_with_one_hospitals_key_gets_the_total_and_no_part_of_it() -> None:
    """What the trust model says plainly: the shared key keeps totals from the server alone."""
    federation = sealed(3, LONG)
    values = vectors(federation.names, 64, LONG)
    seen = federation.uploaded(values, "risk")
    payloads = [seen.words[name] for name in federation.names]
    assert np.array_equal(cipher().total(payloads, LONG), plain_sum(list(values.values())))
    for some in (payloads[:1], payloads[:2], payloads[1:]):
        assert looks_random(cipher().total(some, LONG))


def test_a_hospital_that_signs_what_is_no_limbs_is_refused_by_all() -> None:
    federation = sealed(3)
    seen = federation.uploaded(vectors(federation.names, 64), "risk")
    values = np.full(SMALL.slots, 0.25)
    data = ts.ckks_vector(ts.context_from(contexts(SMALL).client), values.tolist()).serialize()
    forged = np.frombuffer(len(data).to_bytes(4, "big") + data, dtype=np.uint8)
    hostile = federation.sites["site-00"]
    step = hostile._steps[seen.number]
    assert step.upload is not None
    upload = Upload(step.view, hostile.index, step.vector.length, sha256(forged.tobytes()))
    uploads = {**seen.uploads, "site-00": resigned(hostile, upload.encoded())}
    lying = replace(seen, uploads=uploads, words={**seen.words, "site-00": forged})
    with he_refused("SLOTS"):
        opening(federation, lying)


def test_sizes_and_cipher_are_in_every_join_and_view() -> None:
    """Else the server could tell two sites of two ciphers."""
    vector = encrypted().vector("risk")
    other = replace(vector, cipher=nominal(3).fingerprint)
    found = {str(one.encoded()) for one in (vector, other, replace(vector, sizes=(1, 2)), params().vector("risk"))}
    assert len(found) == 4
