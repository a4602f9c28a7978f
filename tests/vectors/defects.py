# SPDX-License-Identifier: Apache-2.0
"""Messages with one defect each, made from the valid ones of a session, and the code with which each must be refused.

Where a defect is inside something signed, it is signed again: a liar has the keys of his own session. Nothing here
imports the package.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.vectors.straight import FOLDER, E, H, OneStep, P, Session, as_json, sign

FILE = "negative.json"
Case = dict[str, Any]

#: Points of small order on Curve25519 and its twist, and encodings above the prime.
SMALL_ORDER = {
    "zero": "00" * 32,
    "one": "01" + "00" * 31,
    "order eight": "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "order eight, other": "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "minus one": "ec" + "ff" * 30 + "7f",
    "the prime": "ed" + "ff" * 30 + "7f",
    "the prime and one": "ee" + "ff" * 30 + "7f",
}


def fields(message: bytes) -> list[bytes]:
    """The fields of a message, or of a list after its count."""
    found, at = [], 0
    while at < len(message):
        (size,) = struct.unpack(">I", message[at : at + 4])
        found.append(message[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def joined(parts: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def put(message: bytes, place: int, part: bytes) -> bytes:
    """The message with another field ``place`` (0 is the version, 1 the name)."""
    parts = fields(message)
    parts[place] = part
    return joined(parts)


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "big")


def case(name: str, target: str, code: str, message: bytes, site: str = "", **more: Any) -> Case:
    return as_json(
        {"name": name, "target": target, "code": f"FF-SECAGG-{code}", "site": site, "message": message, **more}
    )


# ----------------------------------------------------------------------------------------------------------------- form


def form_of_any(what: str, message: bytes) -> Iterator[Case]:
    """Defects that every message can have."""
    version, name, first = (4 + 14, 4 + 14 + 4 + len(what), 4 + 14 + 4 + len(what) + 4)
    yield case(f"{what}: a byte after the end", f"parse {what}", "FORM", message + b"\0")
    yield case(f"{what}: the last byte is missing", f"parse {what}", "FORM", message[:-1])
    yield case(f"{what}: nothing at all", f"parse {what}", "FORM", b"")
    yield case(f"{what}: ends inside a length", f"parse {what}", "FORM", message[: name + 2])
    yield case(f"{what}: version fairflare/sa/2", f"parse {what}", "FORM", put(message, 0, b"fairflare/sa/2"))
    yield case(f"{what}: a wrong byte in the version", f"parse {what}", "FORM", put(message, 0, b"fairflare/Sa/1"))
    yield case(f"{what}: another name", f"parse {what}", "FORM", put(message, 1, b"x" * len(what)))
    long = message[:version] + b"\xff\xff\xff\xff" + message[version + 4 :]
    yield case(f"{what}: a name longer than the message", f"parse {what}", "FORM", long)
    overflow = message[: first - 4] + b"\xff\xff\xff\xff" + message[first:]
    yield case(f"{what}: a first field longer than the message", f"parse {what}", "FORM", overflow)
    yield case(f"{what}: one field too many", f"parse {what}", "FORM", message + joined([b""]))
    yield case(f"{what}: one field too few", f"parse {what}", "FORM", joined(fields(message)[:-1]))


def form_of_fields(s: Session) -> Iterator[Case]:
    """Fields of another length or range."""
    one = s.steps["update"]
    keys, shares, up, unmask = (
        next(iter(signed.values()))[0] for signed in (one.out["keys"], one.out["SHARES"], one.up, one.out["UNMASK"])
    )
    join = s.joins[s.names[0]]
    broken = {
        "keys": [("T of 31 bytes", 2, bytes(31)), ("T of 33 bytes", 2, bytes(33)), ("r of 7 bytes", 3, number(1, 7)),
                 ("r of 9 bytes", 3, number(1, 9)), ("an empty label", 4, b""),
                 ("a label that is no UTF-8", 4, b"\xff"), ("a label of 129 bytes", 4, b"x" * 129),
                 ("index 1025", 5, number(1025)),
                 ("index 2^64 - 1", 5, number(2**64 - 1)), ("a public key of 31 bytes", 6, bytes(31)),
                 ("a commitment of 0 bytes", 7, b"")],
        "join": [("a seen list of 2^64 - 1", 12, number(2**64 - 1)), ("a seen list of one nothing", 12, number(1)),
                 ("an empty name", 5, b""), ("a nonce of 16 bytes", 7, bytes(16)), ("a plan of 65 bytes", 3, b"a" * 65),
                 ("seen peers out of order", 12, seen("b", "a")), ("a signing key of 33 bytes", 9, bytes(33))],
        "shares": [("K of 0 bytes", 5, b""), ("a hash of 31 bytes", 7, list_of([bytes(31)])),
                   ("1025 hashes", 7, list_of([bytes(32)] * 1025)), ("a list without a count", 8, b""),
                   ("a count of 7 bytes", 8, number(0, 7)),
                   ("a count that is too large", 9, number(2) + joined([bytes(32)])),
                   ("a count that is too small", 9, number(0) + joined([bytes(32)]))],
        "up": [("a payload hash of 31 bytes", 5, bytes(31)), ("a payload hash of 33 bytes", 5, bytes(33)),
               ("V of 31 bytes", 2, bytes(31)), ("a dim of 4 bytes", 4, number(1, 4))],
        "unmask": [("a share of 32 bytes", 4, list_of([bytes(32)])), ("a share of 34 bytes", 5, list_of([bytes(34)])),
                   ("H(CONFIRM) of 64 bytes", 3, bytes(64))],
    }  # fmt: skip
    messages = {"keys": keys, "join": join, "shares": shares, "up": up, "unmask": unmask}
    for what, defects in broken.items():
        for name, place, part in defects:
            yield case(f"{what}: {name}", f"parse {what}", "FORM", put(messages[what], place, part))
    signed = E("signed", *one.out["keys"][s.names[0]])
    yield case("signed: a signature of 63 bytes", "parse signed", "FORM", put(signed, 3, bytes(63)))
    yield case("signed: a signature of 65 bytes", "parse signed", "FORM", put(signed, 3, bytes(65)))
    yield case("confirms: a signature of 63 bytes", "parse confirms", "FORM", E("confirms", [[1, bytes(63)]]))
    yield case("confirms: a flat list", "parse confirms", "FORM", E("confirms", [1, bytes(64)]))
    yield case("confirms: three in a pair", "parse confirms", "FORM", E("confirms", [[1, bytes(64), b""]]))
    short = E("dealt", shares, bytes(64), [bytes(93)])
    yield case("dealt: a ciphertext of 93 bytes", "parse dealt", "FORM", short)
    yield case("roster: 1025 sites", "parse roster", "FORM", E("roster", [[b"", b"", b""]] * 1025))


def list_of(parts: Sequence[bytes]) -> bytes:
    return number(len(parts)) + joined(parts)


def seen(*names: str) -> bytes:
    return list_of([list_of([name.encode(), number(1), bytes(32)]) for name in names])


# ---------------------------------------------------------------------------------------------- what a site must refuse


def rosters(s: Session) -> Iterator[Case]:
    rows, own = [s.joinings[n] for n in s.names], s.names[1]

    def one(name: str, code: str, changed: Sequence[Sequence[bytes]]) -> Case:
        return case(f"begin: {name}", "site.begin", code, E("roster", list(changed)), own)

    a, b, c, d = rows
    yield one("sites out of order", "ROSTER", [b, a, c, d])
    yield one("a site twice", "ROSTER", [a, b, b, c, d])
    yield one("without this site", "ROSTER", [a, c, d])
    yield one("two sites", "SITES", [a, b])
    yield one("nobody", "SITES", [])
    yield one("kit signatures swapped", "SIGNATURE", [[a[0], c[1], a[2]], b, [c[0], a[1], c[2]], d])
    yield one("certificates swapped", "CERTIFICATE", [[a[0], a[1], c[2]], b, [c[0], c[1], a[2]], d])
    yield one("a certificate cut short", "CERTIFICATE", [[a[0], a[1], a[2][:-1]], b, c, d])
    yield one("a certificate and a byte", "CERTIFICATE", [[a[0], a[1], a[2] + b"\0"], b, c, d])
    yield one("another channel key under the old signature", "SIGNATURE", [[put(a[0], 8, bytes(32)), *a[1:]], b, c, d])
    yield one("other parameters under the old signature", "SIGNATURE", [[put(a[0], 4, b"x"), *a[1:]], b, c, d])
    yield one("this site's own kit signature changed", "SIGNATURE", [a, [b[0], bytes(256), b[2]], c, d])


def keysets(s: Session) -> Iterator[Case]:
    for label in ("risk", "update"):
        step = s.steps[label]
        rows, own = [step.out["keys"][n] for n in s.names], s.names[1]

        def one(name: str, code: str, changed: Sequence[Sequence[bytes]], label: str = label, own: str = own) -> Case:
            message = E("keyset", list(changed))
            return case(f"keyset of {label}: {name}", f"site.keyset {label}", code, message, own)

        a, b, c, d = rows
        resigned = again(s, s.names[0], a[0])
        yield one("out of order", "KEYS", [b, a, c, d])
        yield one("a site twice", "KEYS", [a, b, b, c, d])
        yield one("without this site", "KEYS", [a, c, d])
        yield one("signatures swapped", "SIGNATURE", [[a[0], c[1]], b, [c[0], a[1]], d])
        yield one("another T", "KEYS", [resigned(2, bytes(32)), b, c, d])
        yield one("another r", "KEYS", [resigned(3, number(1)), b, c, d])
        yield one("another label", "KEYS", [resigned(4, b"other"), b, c, d])
        yield one("an index outside the roster", "ROSTER", [resigned(5, number(5)), b, c, d])
        yield one("index 0", "ROSTER", [resigned(5, number(0)), b, c, d])
        yield one("the index of another site", "SIGNATURE", [resigned(5, number(3)), b, c, d])
        yield one("the public key of another site", "KEYS", [resigned(6, fields(c[0])[6]), b, c, d])
        for point, code in SMALL_ORDER.items():
            yield one(f"a public key of small order: {point}", "KEY", [resigned(6, bytes.fromhex(code)), b, c, d])
        yield one("too few", "QUORUM", [b, c, d] if label == "risk" else [b, c])
        yield case(f"keyset of {label}: T of another version", f"site.keyset {label}", "FORM",
                   E("keyset", [[put(a[0], 0, b"fairflare/sa/2"), a[1]], b, c, d]), own)  # fmt: skip


def again(s: Session, name: str, message: bytes) -> Callable[[int, bytes], list[bytes]]:
    """``message`` with one field changed, signed again by the site ``name``."""
    return lambda place, part: s.signed(name, put(message, place, part))


def dealings(s: Session) -> Iterator[Case]:
    step, own = s.steps["update"], s.names[1]
    rows = [[*step.out["SHARES"][n], step.out["ciphers"][n]] for n in s.names]

    def one(name: str, code: str, changed: Sequence[Any]) -> Case:
        return case(f"dealers: {name}", "site.dealers", code, E("dealers", list(changed)), own)

    a, b, c, d = rows
    resigned = again(s, s.names[0], a[0])
    yield one("out of order", "SHARES", [b, a, c, d])
    yield one("a dealer twice", "SHARES", [a, b, b, c, d])
    yield one("without this site", "SHARES", [a, c, d])
    yield one("too few", "QUORUM", [b, c])
    yield one("signatures swapped", "SIGNATURE", [[a[0], c[1], a[2]], b, c, d])
    yield one("another T", "SHARES", [[*resigned(2, bytes(32)), a[2]], b, c, d])
    yield one("another K", "SHARES", [[*resigned(5, bytes(32)), a[2]], b, c, d])
    yield one("an index outside the roster", "SHARES", [[*resigned(6, number(9)), a[2]], b, c, d])
    yield one("one commitment missing", "SHARES", [[*resigned(8, list_of([bytes(32)] * 3)), a[2]], b, c, d])
    yield one("ciphertexts swapped", "SHARES", [[a[0], a[1], [a[2][1], a[2][0], a[2][2]]], b, c, d])
    yield one("a ciphertext missing", "SHARES", [[a[0], a[1], a[2][:-1]], b, c, d])
    nonce = [bytes(12) + a[2][0][12:], *a[2][1:]]
    yield one("a wrong nonce, signed", "DEALER", [dealt(resigned, nonce), b, c, d])
    tag = [a[2][0][:-1] + bytes([a[2][0][-1] ^ 1]), *a[2][1:]]
    yield one("a wrong tag, signed", "DEALER", [dealt(resigned, tag), b, c, d])
    swapped = [a[2][1], a[2][0], a[2][2]]
    yield one("another holder's ciphertext, signed", "DEALER", [dealt(resigned, swapped), b, c, d])
    yield one("shares other than the commitments", "DEALER", [[*resigned(8, list_of([bytes(32)] * 4)), a[2]], b, c, d])
    yield one("other self-mask commitments", "DEALER", [[*resigned(9, list_of([bytes(32)] * 4)), a[2]], b, c, d])


def dealt(resigned: Callable[[int, bytes], list[bytes]], ciphers: Sequence[bytes]) -> list[Any]:
    return [*resigned(7, list_of([H(one) for one in ciphers])), list(ciphers)]


def openings(s: Session) -> Iterator[Case]:
    step, own = s.steps["risk"], s.names[1]
    rows, words = [step.up[n] for n in s.names], [step.masked[n] for n in s.names]

    def one(name: str, code: str, changed: Sequence[Any], payloads: Sequence[Any] = words) -> Case:
        return case(f"opening: {name}", "site.opening", code, E("survivors", list(changed)), own, words=payloads)

    a, b, c, d = rows
    resigned = again(s, s.names[0], a[0])
    yield one("a word changed", "OPENING", rows, [[words[0][0] ^ 1, *words[0][1:]], *words[1:]])
    yield one("two sites' words swapped", "OPENING", rows, [words[2], words[1], words[0], words[3]])
    yield one("a word too few", "OPENING", rows, [words[0][:-1], *words[1:]])
    yield one("words without a signature", "OPENING", rows[:3], words)
    yield one("a site left out", "QUORUM", rows[:3], words[:3])
    yield one("out of order", "VIEW", [b, a, c, d], [words[1], words[0], *words[2:]])
    yield one("a site twice", "VIEW", [a, a, b, c, d], [words[0], *words])
    yield one("another V", "VIEW", [resigned(2, bytes(32)), b, c, d])
    yield one("without this site", "SURVIVORS", [a, c, d], [words[0], *words[2:]])
    yield one("signatures swapped", "SIGNATURE", [[a[0], c[1]], b, c, d])


def survivors(s: Session) -> Iterator[Case]:
    step, own = s.steps["update"], s.names[1]
    a, b, d = (step.up[n] for n in step.U2)
    resigned = again(s, s.names[0], a[0])
    stranger = s.signed(s.names[2], E("up", step.V, 5, step.vector["length"], b""))

    def one(name: str, code: str, changed: Sequence[Any]) -> Case:
        return case(f"survivors: {name}", "site.confirm", code, E("survivors", list(changed)), own)

    yield one("out of order", "VIEW", [b, a, d])
    yield one("a site twice", "VIEW", [a, b, b, d])
    yield one("another V", "VIEW", [resigned(2, bytes(32)), b, d])
    yield one("another dim", "VIEW", [resigned(4, number(1)), b, d])
    yield one("an index outside the roster", "ROSTER", [a, b, d, stranger])
    yield one("signatures swapped", "SIGNATURE", [[a[0], d[1]], b, [d[0], a[1]]])
    yield one("without this site", "SURVIVORS", [a, d])
    yield one("its own upload in other words", "SURVIVORS", [a, again(s, own, b[0])(5, bytes(32)), d])
    yield one("too few", "QUORUM", [a, b])


def confirmations(s: Session) -> Iterator[Case]:
    step, own = s.steps["update"], s.names[1]
    signed = {s.index[n]: signature for n, signature in step.out["confirm_signatures"].items()}
    rows = [[index, signature] for index, signature in signed.items()]
    lost = [s.index["hospital-b"], sign(s.secret("hospital-b", "signing_secret"), step.out["CONFIRM"])]
    other = sign(s.secret(s.names[0], "signing_secret"), put(step.out["CONFIRM"], 2, bytes(32)))

    def one(name: str, code: str, changed: Sequence[Any]) -> Case:
        return case(f"confirms: {name}", "site.unmask", code, E("confirms", list(changed)), own)

    yield one("too few", "CONFIRM", rows[:2])
    yield one("nobody", "CONFIRM", [])
    yield one("a site twice", "CONFIRM", [rows[0], rows[0], rows[1]])
    yield one("a lost site", "CONFIRM", [*rows[:2], lost])
    yield one("signatures swapped", "SIGNATURE", [[1, signed[2]], [2, signed[1]], rows[2]])
    yield one("a confirmation of another V", "SIGNATURE", [[1, other], *rows[1:]])


# ------------------------------------------------------------------------------------------ what the server must refuse


def at_server(s: Session) -> Iterator[Case]:
    step, site = s.steps["update"], s.names[0]
    keys, other = step.out["keys"][site], step.out["keys"][s.names[1]]
    resigned = again(s, site, keys[0])
    for name, code, signed in (
        ("signed by another site", "SIGNATURE", [keys[0], other[1]]),
        ("the index of another site", "KEYS", resigned(5, number(2))),
        ("another T", "KEYS", resigned(2, bytes(32))),
        ("another label", "KEYS", resigned(4, b"risk")),
    ):
        yield case(f"server, keys: {name}", "server.keys", code, E("signed", *signed), site)
    yield from shares_at_server(s, step, site)
    yield from uploads_at_server(s, step, site)
    confirm = {n: step.out["confirm_signatures"][n] for n in step.U2}
    yield case("server, confirm: of another site", "server.confirm", "SIGNATURE", confirm[s.names[1]], site)
    yield case("server, confirm: 63 bytes", "server.confirm", "CONFIRM", confirm[site][:-1], site)
    yield case("server, confirm: a lost site", "server.confirm", "CONFIRM", confirm[site], "hospital-b")
    yield case("server, confirm: a stranger", "server.confirm", "ROSTER", confirm[site], "nobody")


def shares_at_server(s: Session, step: OneStep, site: str) -> Iterator[Case]:
    signed, ciphers = step.out["SHARES"][site], step.out["ciphers"][site]
    resigned = again(s, site, signed[0])
    for name, code, message, given in (
        ("another K", "SHARES", resigned(5, bytes(32)), ciphers),
        ("another T", "SHARES", resigned(2, bytes(32)), ciphers),
        ("the index of another site", "SHARES", resigned(6, number(2)), ciphers),
        ("a commitment missing", "SHARES", resigned(9, list_of([bytes(32)] * 3)), ciphers),
        ("other ciphertexts", "SHARES", signed, [bytes(94), *ciphers[1:]]),
        ("signed by another site", "SIGNATURE", [signed[0], step.out["SHARES"][s.names[1]][1]], ciphers),
    ):
        yield case(f"server, shares: {name}", "server.shares", code, E("dealt", *message, list(given)), site)
    unmask, other = step.out["UNMASK"][site], step.out["UNMASK"][s.names[1]]
    resigned = again(s, site, unmask[0])
    share = [bytes(33), *fields(fields(unmask[0])[4][8:])[1:]]
    for name, code, message in (
        ("a wrong share of a self-mask", "CULPRIT", resigned(4, list_of(share))),
        ("a wrong share of a mask key", "CULPRIT", resigned(5, list_of([bytes(33)]))),
        ("another site's shares", "CULPRIT", s.signed(site, other[0])),
        ("another set of survivors", "UNMASK", resigned(3, bytes(32))),
        ("another V", "UNMASK", resigned(2, bytes(32))),
        ("a share missing", "UNMASK", resigned(4, list_of(share[:-1]))),
        ("signed by another site", "SIGNATURE", [unmask[0], other[1]]),
    ):
        yield case(f"server, unmask: {name}", "server.unmask", code, E("signed", *message), site)
    lost = s.signed("hospital-b", unmask[0])
    yield case("server, unmask: a lost site", "server.unmask", "UNMASK", E("signed", *lost), "hospital-b")


def uploads_at_server(s: Session, step: OneStep, site: str) -> Iterator[Case]:
    for label, one in s.steps.items():
        up, words = one.up[site], one.masked[site]
        resigned = again(s, site, up[0])
        for name, code, message, given in (
            ("another V", "VIEW", resigned(2, bytes(32)), words),
            ("the index of another site", "LATE", resigned(3, number(2)), words),
            ("another dim", "SHAPE", resigned(4, number(1)), words),
            ("a word too few", "SHAPE", up, words[:-1]),
            ("a word too many", "SHAPE", up, [*words, 0]),
            ("another payload hash", "PAYLOAD", resigned(5, bytes(32)), words),
            ("signed by another site", "SIGNATURE", [up[0], one.up[s.names[1]][1]], words),
        ):
            message_ = E("signed", *message)
            yield case(
                f"server, upload of {label}: {name}", f"server.upload {label}", code, message_, site, words=given
            )
    up, words = s.steps["risk"].up[site], s.steps["risk"].masked[site]
    changed = [words[0] ^ 1, *words[1:]]
    yield case("server, upload of risk: a word changed", "server.upload risk", "PAYLOAD", E("signed", *up), site,
               words=changed)  # fmt: skip


# -------------------------------------------------------------------------------------------------------- single values


def values(s: Session) -> Iterator[Case]:
    for name, point in SMALL_ORDER.items():
        yield case(f"X25519: {name}", "agree", "KEY", bytes.fromhex(point))
    for size in (0, 31, 33):
        yield case(f"X25519: {size} bytes", "agree", "KEY", bytes(size))
        yield case(f"mask: a key of {size} bytes", "mask", "KEY", bytes(size))
    for name, code, value in (
        ("NaN", "NAN", "nan"), ("infinity", "NAN", "inf"), ("minus infinity", "NAN", "-inf"),
    ):  # fmt: skip
        yield case(f"update: {name}", "codec.update", code, struct.pack(">2d", 1.0, float(value)))
        yield case(f"statistics: {name}", "codec.statistics", code, struct.pack(">2d", 1.0, float(value)))
    yield case("statistics: above the limit", "codec.statistics", "RANGE", struct.pack(">d", 2.0**29))
    yield case("statistics: below the limit", "codec.statistics", "RANGE", struct.pack(">d", -(2.0**29)))
    yield case("statistics: overflows when scaled", "codec.statistics", "RANGE", struct.pack(">d", 1e308))
    for name, own, total in (("0 of 0", 0, 0), ("more than all", 2, 1), ("less than 2^-30", 1, 2**31)):
        yield case(f"weight: {name}", "codec.weight", "WEIGHT", struct.pack(">2Q", own, total))
    for name, words in (
        ("no weight", [5, 0]), ("a weight above 2^30", [5, 2**30 + 1]), ("too large", [2**30 + 5, 9]),
        ("too small", [2**32 - 2**30 - 5, 9]),
    ):  # fmt: skip
        yield case(f"sum of updates: {name}", "codec.sum", "RANGE", b"", words=words)
    good = number(5, 33)
    for name, shares in (
        ("the prime", [good, number(P, 33)]), ("2^264 - 1", [good, b"\xff" * 33]), ("32 bytes", [good, bytes(32)]),
        ("34 bytes", [good, bytes(34)]), ("only one", [good]), ("none", []),
        ("a secret of 2^256", [number(2**256, 33), number(2**256, 33)]),
    ):  # fmt: skip
        yield case(f"shares: {name}", "combine", "SHARE", list_of(shares))


def cases() -> list[Case]:
    """All of them, in the order of the file."""
    s = Session(json.loads((FOLDER / "session_late_loss.json").read_text(encoding="utf-8"))["inputs"])
    s.run()
    one, first = s.steps["update"], s.names[0]
    messages = {
        "join": s.joins[first],
        "joining": E("joining", b"join", b"signature", b"certificate"),
        "roster": E("roster", [[b"a", b"b", b"c"]]),
        "signed": E("signed", *one.out["keys"][first]),
        "keys": one.out["keys"][first][0],
        "keyset": one.keyset,
        "shares": one.out["SHARES"][first][0],
        "dealt": E("dealt", *one.out["SHARES"][first], one.out["ciphers"][first]),
        "dealers": E("dealers", [[*one.out["SHARES"][first], one.out["ciphers"][first]]]),
        "up": one.up[first][0],
        "survivors": one.survivors,
        "confirms": one.confirms,
        "unmask": one.out["UNMASK"][first][0],
    }
    found = [each for what, message in messages.items() for each in form_of_any(what, message)]
    makers = (form_of_fields, rosters, keysets, dealings, openings, survivors, confirmations, at_server, values)
    return found + [each for make in makers for each in make(s)]


def text() -> str:
    """The whole file: one case a line."""
    lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in cases())
    return f"[\n{lines}\n]\n"
