# SPDX-License-Identifier: Apache-2.0
"""What else could leave a site: numbers in clear, sizes of messages, secrets in logs; and inputs that break a sum."""

from __future__ import annotations

import base64
import logging
import traceback
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fairflare.errors import SecaggError
from fairflare.secagg import state as state_module
from fairflare.secagg.encoding import Reader
from fairflare.secagg.fixedpoint import StatisticsCodec, UpdateCodec
from fairflare.secagg.site import SiteSession
from fairflare.secagg.transcript import Dealt, Join, Joining, Keys, Shares, Signed, Unmask, Upload
from tests.attacks.federation import (
    INPUTS,
    LENGTH,
    Federation,
    Seen,
    plain_sum,
    refused,
    resigned,
    vectors,
)

VICTIM = "site-02"


# ---------------------------------------------------------------- inputs that break a sum: attack 14 of the second list


KEY = bytes(range(32))


def updates() -> dict[str, tuple[np.ndarray, int, str]]:
    good = np.linspace(-1, 1, LENGTH - 1, dtype=np.float32)
    return {
        "NaN": (np.where(good == 1, np.float32(np.nan), good), 5, "NAN"),
        "infinity": (np.where(good == 1, np.float32(np.inf), good), 5, "NAN"),
        "weight 0": (good, 0, "WEIGHT"),
        "weight below 0": (good, -1, "WEIGHT"),
        "weight above all": (good, 2**30 + 1, "WEIGHT"),
        "integers": (good.astype(np.int32), 5, "DTYPE"),
        "half precision": (good.astype(np.float16), 5, "DTYPE"),
        "a matrix": (good[:4].reshape(2, 2), 5, "SHAPE"),
    }


@pytest.mark.parametrize("kind", updates())
def test_an_update_that_would_break_the_sum_is_refused_before_it_is_masked(kind: str) -> None:
    values, weight, code = updates()[kind]
    with refused(code):
        UpdateCodec(8.0, None).encode(values, weight, KEY)


def test_a_coordinate_far_beyond_the_clip_moves_the_sum_by_the_clip_only() -> None:
    federation, codec = Federation(4), UpdateCodec(8.0, None)
    huge = np.full(LENGTH - 1, 1e30, dtype=np.float32)
    words = {
        name: codec.encode(huge if name == VICTIM else huge * 0, codec.weight(1, 4), KEY)[0]
        for name in federation.names
    }
    total, sites, _ = federation.run(words, {}, 0)
    assert np.abs(codec.decode(total, len(sites))[0]).max() <= 2.0 + 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**31, 1e300])
def test_a_statistic_that_would_wrap_is_refused_before_it_is_masked(value: float) -> None:
    with refused("RANGE" if np.isfinite(value) else "NAN"):
        StatisticsCodec(4).encode(np.full(LENGTH, value))


def largest_statistics(federation: Federation) -> tuple[float, float]:
    """Everybody sends a number that alone still fits into 64 bits."""
    codec = StatisticsCodec(4)
    values = {name: codec.encode(np.full(LENGTH, 2.0**30)) for name in federation.names}
    seen = federation.uploaded(values, "risk")
    return float(codec.decode(federation.server.opened(seen.number))[0]), 4 * 2.0**30


def test_no_statistic_is_so_large_that_the_sum_wraps() -> None:
    with refused("RANGE"):
        largest_statistics(Federation(4))


def test_the_sum_wraps_where_a_site_may_use_all_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StatisticsCodec, "limit", 2**63 - 1)
    found, right = largest_statistics(Federation(4))
    assert found != right


def test_a_dishonest_update_beyond_the_range_is_found_in_the_sum() -> None:
    federation, codec = Federation(4), UpdateCodec(8.0, None)
    words = {
        name: codec.encode(np.zeros(LENGTH - 1, dtype=np.float32), codec.weight(1, 4), KEY)[0]
        for name in federation.names
    }
    words[VICTIM][0] = 2**31 - 1
    total, sites, _ = federation.run(words, {}, 0)
    with refused("RANGE"):
        codec.decode(total, len(sites))


@pytest.mark.parametrize("length", [LENGTH - 1, LENGTH + 1, 0])
def test_an_upload_of_another_length_is_refused_by_the_server(length: int) -> None:
    federation = Federation(4)
    seen = federation.to_upload()
    federation.server.expect(seen.number, INPUTS, "train")
    words = np.zeros(LENGTH, dtype=np.uint32)
    site = federation.sites[VICTIM]
    (signed,) = site.upload([(seen.number, words)], INPUTS, "train")
    with refused("SHAPE"):
        federation.server.upload(VICTIM, seen.number, signed.encoded(), np.zeros(length, dtype=np.uint32))
    with refused("SHAPE"):
        federation.server.upload(VICTIM, seen.number, signed.encoded(), words.astype(np.uint64))
    other = resigned(site, replace(Upload.parse(signed.message), length=length).encoded())
    with refused("SHAPE"):
        federation.server.upload(VICTIM, seen.number, other.encoded(), words)


# ------------------------------------------------------------------------ numbers in clear and sizes: attacks 15 and 18


def recorded(values: dict[str, np.ndarray], statistics: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
    """Every message of every site in a session with one statistic and one update."""
    federation = Federation(4, begin=False)
    sent: dict[str, list[bytes]] = {name: [] for name in federation.names}
    federation.begin()
    for name in federation.names:
        sent[name].append(federation.server._joinings[name].encoded())
    seen = federation.to_upload("risk")
    federation.upload(seen, statistics)
    keep(federation, seen, sent)
    *_, seen = federation.run(values, {VICTIM: "upload"}, 0)
    keep(federation, seen, sent)
    return sent


def keep(federation: Federation, seen: Seen, sent: dict[str, list[bytes]]) -> None:
    step = federation.server._steps[seen.number]
    for name, messages in sent.items():
        index = federation.index(name)
        messages.append(step.keys[index].encoded())
        if index in step.dealt:
            messages.append(step.dealt[index].encoded())
        if name in seen.uploads:
            messages += [seen.uploads[name].encoded(), seen.words[name].tobytes()]
        if name in seen.confirms:
            messages += [seen.confirms[name], seen.unmasks[name]]


def sizes(sent: dict[str, list[bytes]]) -> dict[str, list[int]]:
    return {name: [len(message) for message in messages] for name, messages in sent.items()}


def test_no_message_is_longer_or_shorter_for_other_data() -> None:
    names = [f"site-{at:02d}" for at in range(4)]
    zeros = recorded(
        {name: np.zeros(LENGTH, dtype=np.uint32) for name in names},
        {name: np.zeros(LENGTH, dtype=np.uint64) for name in names},
    )
    others = recorded(vectors(names), vectors(names, 64))
    assert sizes(zeros) == sizes(others)


def test_every_message_of_a_site_holds_the_fields_of_the_protocol_and_no_other() -> None:
    """The parsers are strict, so a message that comes back byte for byte holds nothing else: no count, no loss."""
    names = [f"site-{at:02d}" for at in range(4)]
    for messages in recorded(vectors(names), vectors(names, 64)).values():
        kinds = [known(message) for message in messages if message[4:18] == b"fairflare/sa/1"]
        assert set(kinds) <= {"joining", "keys", "dealt", "up", "unmask"}
        assert kinds[:3] == ["joining", "keys", "up"]


def known(message: bytes) -> str:
    """The kind of a message, once it was written again from its fields."""
    name = message[22 : 22 + int.from_bytes(message[18:22], "big")].decode()
    if name == "joining":
        joining = Joining.parse(message)
        assert joining.encoded() == message
        assert Join.parse(joining.join).encoded() == joining.join
        return name
    if name == "dealt":
        dealt = Dealt.parse(message)
        assert dealt.encoded() == message
        assert Shares.parse(dealt.signed.message).encoded() == dealt.signed.message
        return name
    signed = Signed.parse(message)
    assert signed.encoded() == message
    inner = signed.message[22 : 22 + int.from_bytes(signed.message[18:22], "big")].decode()
    kinds = {"keys": Keys, "up": Upload, "unmask": Unmask}
    assert kinds[inner].parse(signed.message).encoded() == signed.message  # type: ignore[attr-defined]
    return inner


@pytest.mark.parametrize("extra", [b"count=812", b"812".ljust(32, b"\0")])
def test_a_number_in_clear_is_refused(extra: bytes) -> None:
    """A site that adds its number of records to an upload: in no field is there room for it."""
    federation = Federation(4)
    seen = federation.to_upload()
    federation.server.expect(seen.number, INPUTS, "train")
    words = np.zeros(LENGTH, dtype=np.uint32)
    site = federation.sites[VICTIM]
    (signed,) = site.upload([(seen.number, words)], INPUTS, "train")
    for message in (replace(Upload.parse(signed.message), payload=extra).encoded(), signed.message + extra):
        with pytest.raises(SecaggError, match=r"FF-SECAGG-(FORM|PAYLOAD)"):
            federation.server.upload(VICTIM, seen.number, resigned(site, message).encoded(), words)


def test_the_check_of_fields_finds_a_number_in_clear() -> None:
    federation = Federation(4)
    seen = federation.uploaded(vectors(federation.names))
    signed = seen.uploads[VICTIM]
    with pytest.raises(SecaggError, match="FF-SECAGG-FORM"):
        known(Signed(signed.message + b"\0\0\0\x01x", signed.signature).encoded())
    with pytest.raises(SecaggError, match="FF-SECAGG-FORM"):
        Reader(signed.message, "keys")


# ----------------------------------------------------------------------- secrets in texts: attack 20 of the second list


def secrets_of(site: SiteSession) -> Iterator[bytes]:
    """Every secret that a site holds at this moment."""
    raw = (serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
    yield site._channel.private_bytes(*raw)
    yield site._signing.private_bytes(*raw)
    for step in site._steps.values():
        yield from (one for one in (step.mask, step.self_mask) if one is not None)
        yield from step.own_share or ()
        for pair in step.held.values():
            yield from pair


def shapes(secret: bytes) -> Iterator[str]:
    """How bytes can stand in a text."""
    core = secret[4:-4]
    yield core.hex()
    yield repr(core)[2:-1]
    yield str(int.from_bytes(secret, "big"))
    yield str(int.from_bytes(secret, "little"))
    yield ", ".join(str(byte) for byte in core)
    for cut in range(3):
        yield base64.b64encode(core[cut : cut + 3 * ((len(core) - cut) // 3)]).decode().rstrip("=")


def texts_of(federation: Federation, seen: Seen) -> Iterator[str]:
    """All that a log or a crash report would print."""
    things = [federation.server, *federation.server._steps.values(), seen]
    for site in federation.sites.values():
        things += [site, site._channel, site._signing, site._memory, site._identity, *site._steps.values()]
        things += [vars(step).get("dealt") for step in site._steps.values()]
    for thing in things:
        yield repr(thing)
        yield str(thing)
    names, real = federation.names, [one for one in (seen.keyset, seen.dealers, seen.survivors) if one]
    bad = [b"", *(one + b"x" for one in real), *(one[:-1] + bytes([one[-1] ^ 1]) for one in real)]
    for site in (federation.sites[names[0]], federation.sites[names[1]]):
        for message in bad:
            for call in (site.keyset, site.dealers, site.confirm, site.unmask):
                yield from failure(call, seen.number, message)
        yield from failure(site.begin, b"")
        yield from failure(site.opening, seen.number, b"", [])
        yield from failure(site.upload, [(seen.number, np.zeros(1, dtype=np.uint8))], INPUTS, "train")


def failure(call: object, *arguments: object) -> Iterator[str]:
    try:
        call(*arguments)  # type: ignore[operator]
    except SecaggError as error:
        yield "".join(traceback.format_exception(type(error), error, error.__traceback__))
        yield repr(error)
        yield repr(error.__dict__)


def search(federation: Federation, seen: Seen, known_secrets: set[bytes], log: str) -> list[str]:
    texts = [log, *texts_of(federation, seen)]
    wanted = {shape for secret in known_secrets for shape in shapes(secret)}
    return [shape for shape in wanted if any(shape in text for text in texts)]


def leaks_at_every_stage(log: pytest.LogCaptureFixture) -> list[str]:
    """Run a step and look for every secret in every text after every stage."""
    log.set_level(logging.DEBUG)
    federation, found = Federation(4), []
    secrets: set[bytes] = set()

    def look() -> None:
        for site in federation.sites.values():
            secrets.update(secrets_of(site))
        found.extend(search(federation, seen, secrets, log.text))

    seen = federation.offer()
    federation.keys(seen)
    look()
    federation.keyset(seen)
    federation.shares(seen)
    look()
    federation.dealers(seen)
    look()
    values = vectors(federation.names)
    federation.upload(seen, {name: values[name] for name in federation.without(VICTIM)})
    confirms = federation.confirm(seen)
    look()
    # What the server is sent in the end is no secret from it, but it is no text for a log either.
    for name in federation.without(VICTIM):
        federation.server.unmask(name, seen.number, federation.sites[name].unmask(seen.number, confirms))
    look()
    assert len(secrets) > 40
    total, sites = federation.opened(seen)
    assert np.array_equal(total, plain_sum([values[name] for name in sites]))
    return found


def test_no_secret_stands_in_a_text(caplog: pytest.LogCaptureFixture) -> None:
    assert leaks_at_every_stage(caplog) == []


def test_a_secret_in_a_text_is_found(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same search, once the fields of a step are printed with it."""
    monkeypatch.setattr(state_module.SiteStep, "__repr__", lambda self: str({**vars(self), "held": dict(self.held)}))
    assert leaks_at_every_stage(caplog)


def test_secrets_are_gone_after_they_were_used() -> None:
    federation = Federation(4)
    *_, seen = federation.run(vectors(federation.names), {}, 0)
    closed = federation.uploaded(vectors(federation.names, 64), "risk", 1)
    for site in federation.sites.values():
        for number in (seen.number, closed.number):
            step = site._steps[number]
            assert (step.mask, step.self_mask, step.own_share, step.held) == (None, None, None, {})


def test_key_objects_show_nothing() -> None:
    for key in (X25519PrivateKey.generate(), Ed25519PrivateKey.generate()):
        assert not any(shape in repr(key) for shape in shapes(key.private_bytes_raw()))
