# SPDX-License-Identifier: Apache-2.0
"""The package and the straight script give the same bytes as the files, and every defect is refused with its code."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fairflare.errors import SecaggError
from fairflare.secagg import shamir
from fairflare.secagg.encoding import encode
from fairflare.secagg.fixedpoint import StatisticsCodec, UpdateCodec
from fairflare.secagg.masking import keystream
from fairflare.secagg.schedule import agree, channel_key, dealers_digest, pair_key, self_key
from fairflare.secagg.transcript import (
    Dealt,
    Join,
    Joining,
    Keys,
    Shares,
    Signed,
    Unmask,
    Upload,
    parse_confirms,
    parse_dealers,
    parse_roster,
    parse_signed_list,
)
from tests.vectors import defects, straight
from tests.vectors.replay import Replay

SESSIONS = ("session_late_loss.json", "session_early_loss.json")


def read(name: str) -> Any:
    return json.loads((straight.FOLDER / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", straight.FILES)
def test_the_straight_script_writes_the_committed_file(name: str) -> None:
    assert straight.text(read(name)["inputs"]) == (straight.FOLDER / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SESSIONS)
def test_the_package_plays_the_session_of_the_file(name: str) -> None:
    given, expected = read(name).values()
    found = straight.as_json(Replay(given).to("end").out)
    steps, expected_steps = found.pop("steps"), expected.pop("steps")
    assert found == expected
    for label, values in steps.items():
        left = {what: expected_steps[label].pop(what) for what in values}
        assert values == left
    # What sites never say is in the next test; nothing of the file may be left without one.
    inner = {"Z", "pair_keys", "self_keys", "masks"}
    shares = {"shares", "exchange_keys", "CONFIRM", "recovered"}
    assert expected_steps["risk"].keys() == inner
    assert expected_steps["update"].keys() == inner | shares


@pytest.mark.parametrize("name", SESSIONS)
def test_keys_and_masks_that_never_leave_a_site(name: str) -> None:
    given, expected = read(name).values()
    replay = Replay(given).to("confirm")
    index = {n: place for place, n in enumerate(replay.names, start=1)}
    for label, number in replay.number.items():
        want, bits = expected["steps"][label], next(v["bits"] for v in given["vectors"] if v["label"] == label)
        members = replay.sites[replay.U2[0]]._steps[number].members
        view, length = bytes.fromhex(want["V"]), len(next(iter(want["masks"].values())))
        keys = {f"self {n}": bytes.fromhex(key) for n, key in want["self_keys"].items()}
        for pair in want["pair_keys"]:
            low, high = map(int, pair.split(","))
            secret = bytes.fromhex(given["sites"][replay.names[low - 1]]["steps"][label]["mask_secret"])
            public = {i: members[i].public for i in (low, high)}
            shared = agree(X25519PrivateKey.from_private_bytes(secret), public[high])
            keys[pair] = pair_key(shared, view, (high, public[high]), (low, public[low]))
            assert keys[pair].hex() == want["pair_keys"][pair]
        for n, key in want["self_keys"].items():
            secret = bytes.fromhex(given["sites"][n]["steps"][label]["self_mask"])
            assert self_key(secret, view, index[n]).hex() == key
        assert {what: keystream(k, length, f"<u{bits // 8}").tolist() for what, k in keys.items()} == want["masks"]


@pytest.mark.parametrize("name", SESSIONS)
def test_shares_and_their_keys(name: str) -> None:
    given, expected = read(name).values()
    want, replay = expected["steps"]["update"], Replay(given).to("unmask")
    number = replay.number["update"]
    for pair, key in want["exchange_keys"].items():
        dealer, holder = map(int, pair.split("->"))
        site, peer = replay.sites[replay.names[dealer - 1]], replay.sites[replay.names[holder - 1]]
        public = peer._channel.public_key().public_bytes_raw()
        keyset = bytes.fromhex(want["K"])
        assert channel_key(site._channel, public, replay.step("update"), keyset, dealer, holder).hex() == key
    for holder in replay.U2:
        held = replay.sites[holder]._steps[number].held
        for dealer in replay.U1:
            shares = held[replay.names.index(dealer) + 1]
            assert [one.hex() for one in shares] == want["shares"][dealer][holder]
    one = replay.sites[replay.U2[0]]._steps[number]
    assert (one.dealers.hex(), one.confirm.hex()) == (want["Z"], want["CONFIRM"])
    closed = expected["steps"]["risk"]
    assert dealers_digest(bytes.fromhex(closed["K"]), None).hex() == closed["Z"]
    for what, secret in want["recovered"].items():
        kind, _, n = what.split(" ")
        place = {"sk": 0, "b": 1}[kind]
        found = shamir.combine(
            {replay.names.index(h) + 1: bytes.fromhex(want["shares"][n][h][place]) for h in replay.U2[:3]}
        )
        assert found.hex() == secret == given["sites"][n]["steps"]["update"][("mask_secret", "self_mask")[place]]


@pytest.mark.parametrize("name", SESSIONS)
def test_the_sum_is_the_plain_sum(name: str) -> None:
    given, expected = read(name).values()
    replay = Replay(given).to("end")
    for label, who in (("risk", replay.names), ("update", replay.U2)):
        want = expected["steps"][label]
        bits = 64 if label == "risk" else 32
        plain = [sum(column) % 2**bits for column in zip(*(want["words"][n] for n in who), strict=True)]
        assert plain == want["sum"]


@pytest.mark.parametrize("name", SESSIONS)
def test_kit_signatures_without_the_package(name: str) -> None:
    given, expected = read(name).values()
    scheme = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    for n, site in given["sites"].items():
        key = x509.load_der_x509_certificate(bytes.fromhex(site["certificate"])).public_key()
        signed = bytes.fromhex(expected["signed_by_kit"][n])
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert straight.H(spki).hex() == site["spki_sha256"]
        key.verify(bytes.fromhex(site["signature"]), signed, scheme, hashes.SHA256())


# -------------------------------------------------------------------------------------------------------- single values


def cases(what: str) -> list[Any]:
    file = read("single.json")
    return list(zip(file["inputs"][what], file["expected"][what], strict=True))


@pytest.mark.parametrize(("given", "expected"), cases("encoding"))
def test_encoding(given: Any, expected: Any) -> None:
    assert encode(given["name"], *map(straight._read, given["fields"])).hex() == expected["bytes"]


@pytest.mark.parametrize(("given", "expected"), cases("masks"))
def test_masks(given: Any, expected: Any) -> None:
    words = keystream(bytes.fromhex(given["key"]), given["length"], f"<u{given['bits'] // 8}")
    assert (words[:16].tolist(), words[-16:].tolist()) == (expected["first"], expected["last"])
    assert straight.H(words.tobytes()).hex() == expected["sha256"]


@pytest.mark.parametrize(("given", "expected"), cases("updates"))
def test_updates(given: Any, expected: Any) -> None:
    norm = given["norm_clip"] and float.fromhex(given["norm_clip"])
    codec = UpdateCodec(float.fromhex(given["clip"]), norm)
    weight = codec.weight(given["own"], given["total"])
    values = np.array([float.fromhex(x) for x in given["values"]])
    words, _ = codec.encode(values, weight, bytes.fromhex(given["rounding_key"]))
    assert (weight, codec.fraction_bits) == (expected["weight"], expected["fraction_bits"])
    assert words.tolist() == expected["words"]


@pytest.mark.parametrize(("given", "expected"), cases("statistics"))
def test_statistics(given: Any, expected: Any) -> None:
    codec = StatisticsCodec(given["sites"])
    words = codec.encode(np.array([float.fromhex(x) for x in given["values"]]))
    assert words.tolist() == expected["words"]
    assert [x.hex() for x in codec.decode(words).tolist()] == expected["back"]


@pytest.mark.parametrize(("given", "expected"), cases("shares"))
def test_shares(given: Any, expected: Any) -> None:
    left = [int(one, 16) for one in given["coefficients"]]
    t = len(left) + 1
    shares = shamir._split(bytes.fromhex(given["secret"]), t, given["indices"], lambda _: left.pop(0))
    assert {str(i): share.hex() for i, share in shares.items()} == expected["shares"]
    assert shamir.combine(dict(list(shares.items())[:t])).hex() == given["secret"] == expected["combined"]


# ------------------------------------------------------------------------------------------------------------- defects


def defective() -> list[Any]:
    return [pytest.param(one, id=one["name"]) for one in read(defects.FILE)]


def test_the_straight_script_writes_the_committed_defects() -> None:
    assert defects.text() == (straight.FOLDER / defects.FILE).read_text(encoding="utf-8")
    names = [one["name"] for one in read(defects.FILE)]
    assert len(names) == len(set(names)) >= 40


@pytest.mark.parametrize("one", defective())
def test_defect(one: Any) -> None:
    with pytest.raises(SecaggError) as caught:
        offer(one, bytes.fromhex(one["message"]))
    assert caught.value.code == one["code"]


PARSERS: dict[str, Callable[[bytes], Any]] = {
    "join": Join.parse,
    "joining": Joining.parse,
    "roster": parse_roster,
    "signed": Signed.parse,
    "keys": Keys.parse,
    "keyset": lambda data: parse_signed_list("keyset", data),
    "shares": Shares.parse,
    "dealt": Dealt.parse,
    "dealers": parse_dealers,
    "up": Upload.parse,
    "survivors": lambda data: parse_signed_list("survivors", data),
    "confirms": parse_confirms,
    "unmask": Unmask.parse,
}


def offer(one: Any, message: bytes) -> None:
    """Put the message where it belongs; it must be refused there."""
    what, _, which = one["target"].partition(" ")
    if what == "parse":
        PARSERS[which](message)
    elif what.startswith(("site.", "server.")):
        to_party(one, what, which or "update", message)
    elif what == "agree":
        agree(X25519PrivateKey.generate(), message)
    elif what == "mask":
        keystream(message, 4, "<u4")
    elif what == "combine":
        shamir.combine(dict(enumerate(defects.fields(message[8:]), start=1)))
    else:
        to_codec(one, what, message)


def to_codec(one: Any, what: str, message: bytes) -> None:
    codec = UpdateCodec(8.0, None)
    if what == "codec.weight":
        codec.weight(*struct.unpack(">2Q", message))
    elif what == "codec.sum":
        codec.decode(np.array(one["words"], dtype=np.uint32), 4)
    else:
        values = np.frombuffer(message, dtype=">f8").astype(np.float64)
        statistics = what == "codec.statistics"
        StatisticsCodec(4).encode(values) if statistics else codec.encode(values, 1, bytes(32))


def to_party(one: Any, what: str, label: str, message: bytes) -> None:
    party, _, name = what.partition(".")
    given = read("session_late_loss.json")["inputs"]
    replay = Replay(given).to({"shares": "deal"}.get(name, name))
    site, number = one["site"], replay.number[label]
    words = one.get("words")
    if party == "server":
        more = () if words is None else (np.array(words, dtype=np.uint32 if label == "update" else np.uint64),)
        method = {"upload": "verify_upload"}.get(name, name)
        getattr(replay.server, method)(site, number, message, *more)
    elif name == "begin":
        replay.sites[site].begin(message)
    elif name == "opening":
        payloads = [np.array(row, dtype=np.uint64) for row in words]
        replay.sites[site].opening(replay.number["risk"], message, payloads)
    else:
        getattr(replay.sites[site], name)(number, message)
