# SPDX-License-Identifier: Apache-2.0
"""A second reading of the protocol: straight down its page, with nothing of the package in it.

Two programs that were written apart and give the same bytes are unlikely to share a mistake. This one is the shorter:
it plays all sites and the server at once, from the fixed secrets in the vector files. It is slow, keeps every secret,
and checks nothing; never use it for anything else.

``python tests/vectors/straight.py --write`` computes the expected values of every file anew; the README says more.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import math
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FOLDER = Path(__file__).resolve().parent
P = 2**256 + 297

# -------------------------------------------------------------------------------------------------------- primitives


def E(name: str, *fields: Any) -> bytes:
    return b"".join(_field(_bytes(part)) for part in ("fairflare/sa/1", name, *fields))


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int):
        return struct.pack(">Q", value)
    return struct.pack(">Q", len(value)) + b"".join(_field(_bytes(item)) for item in value)


def _field(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def H(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    extracted = hmac.new(salt, secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def x25519_public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def dh(secret: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))


def sign(secret: bytes, message: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(secret).sign(message)


def ed25519_public(secret: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def keystream(key: bytes, size: int) -> bytes:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def words_of(data: bytes, bits: int) -> list[int]:
    size = bits // 8
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


def mask(key: bytes, length: int, bits: int) -> list[int]:
    return words_of(keystream(key, length * bits // 8), bits)


def bytes_of(words: Iterable[int], bits: int) -> bytes:
    return b"".join(word.to_bytes(bits // 8, "little") for word in words)


def split(secret: bytes, coefficients: Sequence[int], indices: Sequence[int]) -> dict[int, bytes]:
    """Shares; the coefficients are those of x^(t-1) down to x, the secret is that of 1."""
    shares = {}
    for x in indices:
        terms = [*coefficients, int.from_bytes(secret, "big")]
        value = sum(term * x ** (len(terms) - 1 - place) for place, term in enumerate(terms)) % P
        shares[x] = value.to_bytes(33, "big")
    return shares


def combine(shares: dict[int, bytes]) -> bytes:
    total = 0
    for i, share in shares.items():
        value = int.from_bytes(share, "big")
        for j in shares:
            if j != i:
                value = value * j * pow(j - i, -1, P) % P
        total += value
    return (total % P).to_bytes(32, "big")


# ------------------------------------------------------------------------------------------------------------- codecs


def weight(own: int, total: int) -> int:
    return 2**30 * own // total


def fraction_bits(clip: float) -> int:
    bits = 0
    while math.ldexp(1.0, bits) < clip:
        bits += 1
    while math.ldexp(1.0, bits - 1) >= clip:
        bits -= 1
    return 30 - bits


def encode_update(values: Sequence[float], clip: float, norm_clip: float | None, w: int, key: bytes) -> list[int]:
    """Words of the update and its weight: floor(W clip(x) 2^(f-30) + u) modulo 2^32, all in float64.

    The norm is only right where its sum of squares is exact: the files hold no other example.
    """
    unit = math.ldexp(1.0, -math.frexp(max(abs(x) for x in values))[1])
    norm = math.sqrt(math.fsum((x * unit) ** 2 for x in values))
    if norm_clip is not None and norm > norm_clip * unit:
        values = [x * unit * (norm_clip / norm * (1.0 - 2.0**-36)) for x in values]
    step = math.ldexp(float(w), fraction_bits(clip) - 30)
    noise = mask(key, len(values), 32)
    clipped = [min(max(x, -clip), clip) for x in values]
    return [math.floor(x * step + u * 2.0**-32) % 2**32 for x, u in zip(clipped, noise, strict=True)] + [w]


def decode_update(words: Sequence[int], clip: float) -> list[float]:
    scale = math.ldexp(float(words[-1]), fraction_bits(clip) - 30)
    return [(word - 2**32 if word >= 2**31 else word) / scale for word in words[:-1]]


def encode_statistics(values: Sequence[float]) -> list[int]:
    return [round(math.ldexp(x, 32)) % 2**64 for x in values]


def decode_statistics(words: Sequence[int]) -> list[float]:
    return [math.ldexp(float(word - 2**64 if word >= 2**63 else word), -32) for word in words]


# ------------------------------------------------------------------------------------------------------- whole session


def as_json(value: Any) -> Any:
    """The form of the vector files: bytes in hex, numbers with a point as ``float.hex``."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return value


def params_of(given: dict[str, Any]) -> bytes:
    vectors = [
        [v["label"], v["mode"], v["length"], v["bits"], v["fraction_bits"], struct.pack(">d", float.fromhex(v["clip"]))]
        for v in given["vectors"]
    ]
    return E(
        "params", given["plan_sha256"], given["identities"], given["least_sites"], "floor(2n/3)+1", given["colluders"],
        given["weight_unit"], struct.pack(">d", float.fromhex(given["norm_clip"])), vectors,
    )  # fmt: skip


def join_of(given: dict[str, Any], name: str) -> bytes:
    site = given["sites"][name]
    seen = sorted((peer, seq, bytes.fromhex(head)) for peer, seq, head in site["seen"])
    channel, signing = bytes.fromhex(site["channel_secret"]), bytes.fromhex(site["signing_secret"])
    return E(
        "join", given["job"], given["plan_sha256"], params_of(given), name, bytes.fromhex(site["spki_sha256"]),
        bytes.fromhex(site["join_nonce"]), x25519_public(channel), ed25519_public(signing),
        site["seq"], bytes.fromhex(site["head"]), [list(one) for one in seen],
    )  # fmt: skip


def task_of(task: dict[str, Any], fl_round: int) -> bytes:
    """D, in two levels: a digest of each tensor, then the digest of all of them, sorted by their bytes."""
    tensors = [
        H(E("tensor", one["name"], one["dtype"], list(one["shape"]), H(bytes.fromhex(one["bytes"]))))
        for one in task["tensors"]
    ]
    numbers = sorted((name, bytes.fromhex(data)) for name, data in task["numbers"])
    return H(E("task", task["name"], fl_round, task["step"], sorted(tensors), [list(one) for one in numbers]))


class Session:
    """All parties of one session, who hide nothing from each other; ``out`` is what the file holds."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.names = sorted(given["sites"])
        self.index = {name: place for place, name in enumerate(self.names, start=1)}
        self.joins = {name: join_of(given, name) for name in self.names}
        self.T = H(E("session", [self.joins[name] for name in self.names]))
        self.joinings = {
            n: [self.joins[n], self.secret(n, "signature"), self.secret(n, "certificate")] for n in self.names
        }
        self.roster = E("roster", [self.joinings[n] for n in self.names])
        self.steps: dict[str, OneStep] = {}
        self.out: dict[str, Any] = {
            "params": params_of(given),
            "join": self.joins,
            "signed_by_kit": {n: b"FFSA1-JOIN\0" + H(join) for n, join in self.joins.items()},
            "T": self.T,
            "roster_sha256": H(self.roster),
            "steps": {},
        }

    def secret(self, name: str, what: str) -> bytes:
        """Bytes of a site, most of them secret."""
        return bytes.fromhex(self.given["sites"][name][what])

    def signed(self, name: str, message: bytes) -> list[bytes]:
        return [message, sign(self.secret(name, "signing_secret"), message)]

    def run(self) -> dict[str, Any]:
        for step in self.given["steps"]:
            vector = next(one for one in self.given["vectors"] if one["label"] == step["label"])
            one = self.steps[step["label"]] = OneStep(self, step, vector)
            self.out["steps"][step["label"]] = one.run()
        return self.out


class OneStep:
    """One step (T, r, v) of a session."""

    def __init__(self, session: Session, step: dict[str, Any], vector: dict[str, Any]) -> None:
        self.s, self.step, self.vector = session, step, vector
        self.head = (session.T, step["number"], step["label"])
        self.rv = (step["number"], step["label"])
        self.open = vector["mode"] == "open"
        everybody = session.names
        self.U1 = [n for n in everybody if not (self.open and n in session.given["lost_before_shares"])]
        self.U2 = [n for n in self.U1 if not (self.open and n in session.given["lost_before_upload"])]
        self.t = 2 * len(everybody) // 3 + 1
        self.out: dict[str, Any] = {}

    def own(self, name: str) -> dict[str, Any]:
        return self.s.given["sites"][name]["steps"][self.step["label"]]

    def run(self) -> dict[str, Any]:
        self.keys()
        if self.open:
            self.shares()
        else:
            self.Z = self.out["Z"] = H(E("u1", self.K))
        self.view()
        self.masks()
        self.uploads()
        if self.open:
            self.unmasking()
        return self.out

    def keys(self) -> None:
        self.mask_secret = {n: bytes.fromhex(self.own(n)["mask_secret"]) for n in self.s.names}
        self.self_mask = {n: bytes.fromhex(self.own(n)["self_mask"]) for n in self.s.names}
        self.public = {n: x25519_public(secret) for n, secret in self.mask_secret.items()}
        signed = {}
        for n, i in self.s.index.items():
            commitment = H(E("b", *self.head, i, self.self_mask[n]))
            signed[n] = self.s.signed(n, E("keys", *self.head, i, self.public[n], commitment))
        self.keyset = E("keyset", [signed[n] for n in self.s.names])
        self.K = H(self.keyset)
        self.out |= {"keys": signed, "keyset": self.keyset, "K": self.K}

    def shares(self) -> None:
        index, all_ciphers, all_signed = self.s.index, {}, {}
        self.dealt: dict[str, dict[str, tuple[bytes, bytes]]] = {}
        exchange: dict[str, bytes] = {}
        for n in self.U1:
            parts = [
                split(secret[n], [int(one, 16) for one in self.own(n)[what]], list(index.values()))
                for secret, what in ((self.mask_secret, "mask_coefficients"), (self.self_mask, "self_coefficients"))
            ]
            ciphers = []
            for other, nonce in zip((m for m in self.s.names if m != n), self.own(n)["share_nonces"], strict=True):
                key = self.exchange_key(n, other)
                exchange[f"{index[n]}->{index[other]}"] = key
                plain = parts[0][index[other]] + parts[1][index[other]]
                context = E("share", *self.head, self.K, index[n], index[other])
                ciphers.append(bytes.fromhex(nonce) + AESGCM(key).encrypt(bytes.fromhex(nonce), plain, context))
            commitments = [
                [H(E("sc", kind, *self.head, index[n], j, share)) for j, share in part.items()]
                for kind, part in zip(("sk", "b"), parts, strict=True)
            ]
            message = E("shares", *self.head, self.K, index[n], [H(one) for one in ciphers], *commitments)
            all_ciphers[n], all_signed[n] = ciphers, self.s.signed(n, message)
            self.dealt[n] = {m: (parts[0][index[m]], parts[1][index[m]]) for m in self.s.names}
        self.Z = H(E("u1", self.K, [all_signed[n] for n in self.U1]))
        self.dealers = E("dealers", [[*all_signed[n], all_ciphers[n]] for n in self.U1])
        self.out |= {
            "shares": self.dealt, "exchange_keys": exchange, "ciphers": all_ciphers, "SHARES": all_signed,
            "dealt_sha256": {n: H(E("dealt", *all_signed[n], all_ciphers[n])) for n in self.U1},
            "dealers_sha256": H(self.dealers), "Z": self.Z,
        }  # fmt: skip

    def exchange_key(self, n: str, other: str) -> bytes:
        shared = dh(self.s.secret(n, "channel_secret"), x25519_public(self.s.secret(other, "channel_secret")))
        return hkdf(shared, self.s.T, E("ek", *self.rv, self.K, self.s.index[n], self.s.index[other]))

    def view(self) -> None:
        given, v = self.s.given, self.vector
        self.D = task_of(given["tasks"][self.step["task"]], given["fl_round"])
        self.V = H(
            E(
                "view", *self.head, v["mode"], self.Z, self.D, given["fl_round"], self.step["query"],
                v["length"], v["bits"], v["fraction_bits"], struct.pack(">d", float.fromhex(v["clip"])),
            )
        )  # fmt: skip
        self.out |= {"D": self.D, "V": self.V}

    def masks(self) -> None:
        length, bits, index = self.vector["length"], self.vector["bits"], self.s.index
        self.pair: dict[tuple[str, str], bytes] = {}
        for low in self.U1:
            for high in self.U1:
                if index[low] < index[high]:
                    info = E("pair", index[low], index[high], self.public[low], self.public[high])
                    key = hkdf(dh(self.mask_secret[low], self.public[high]), self.V, info)
                    self.pair[low, high] = self.pair[high, low] = key
        self.own_key = {n: hkdf(self.self_mask[n], self.V, E("self", index[n])) for n in self.U1 if self.open}
        self.out["pair_keys"] = {f"{index[a]},{index[b]}": k for (a, b), k in self.pair.items() if index[a] < index[b]}
        self.out["self_keys"] = self.own_key
        keys = {**self.out["pair_keys"], **{f"self {n}": key for n, key in self.own_key.items()}}
        self.out["masks"] = {what: mask(key, length, bits) for what, key in keys.items()}

    def uploads(self) -> None:
        length, bits = self.vector["length"], self.vector["bits"]
        self.words, self.masked, self.up = {}, {}, {}
        for n in self.U2:
            self.words[n] = self.encoded(n)
            total = list(self.words[n])
            for other in self.U1:
                if other != n:
                    sign_ = 1 if self.s.index[n] < self.s.index[other] else -1
                    one = mask(self.pair[n, other], length, bits)
                    total = [(a + sign_ * b) % 2**bits for a, b in zip(total, one, strict=True)]
            if self.open:
                one = mask(self.own_key[n], length, bits)
                total = [(a + b) % 2**bits for a, b in zip(total, one, strict=True)]
            self.masked[n] = total
            payload = b"" if self.open else H(bytes_of(total, bits))
            self.up[n] = self.s.signed(n, E("up", self.V, self.s.index[n], length, payload))
        self.survivors = E("survivors", [self.up[n] for n in self.U2])
        self.out |= {"words": self.words, "masked": self.masked, "UP": self.up, "survivors": self.survivors}
        if not self.open:
            self.sum(self.masked.values())

    def encoded(self, n: str) -> list[int]:
        values = [float.fromhex(x) for x in self.own(n)["values"]]
        if not self.open:
            return encode_statistics(values)
        w = weight(self.s.given["sites"][n]["records"], self.s.given["records"])
        key = bytes.fromhex(self.own(n)["rounding_key"])
        return encode_update(values, float.fromhex(self.vector["clip"]), None, w, key)

    def sum(self, vectors: Iterable[Sequence[int]]) -> None:
        total = [sum(column) % 2 ** self.vector["bits"] for column in zip(*vectors, strict=True)]
        self.out["sum"] = total
        clip = float.fromhex(self.vector["clip"])
        self.out["result"] = decode_update(total, clip) if self.open else decode_statistics(total)

    def unmasking(self) -> None:
        index = self.s.index
        confirm = E("confirm", self.V, [index[n] for n in self.U2], [H(self.up[n][0]) for n in self.U2])
        signatures = {n: self.s.signed(n, confirm)[1] for n in self.U2}
        lost = [n for n in self.U1 if n not in self.U2]
        unmask = {}
        for n in self.U2:
            selves = [self.dealt[dealer][n][1] for dealer in self.U2]
            keys = [self.dealt[dealer][n][0] for dealer in lost]
            unmask[n] = self.s.signed(n, E("unmask", self.V, H(confirm), selves, keys))
        self.confirms = E("confirms", [[index[n], signatures[n]] for n in self.U2])
        self.out |= {"CONFIRM": confirm, "confirm_signatures": signatures, "confirms": self.confirms, "UNMASK": unmask}
        self.open_sum(lost)

    def open_sum(self, lost: Sequence[str]) -> None:
        """From t survivors' shares and the masked words alone."""
        index, bits, length = self.s.index, self.vector["bits"], self.vector["length"]
        holders = self.U2[: self.t]
        vectors = list(self.masked.values())
        recovered = {}
        for n in self.U2:
            secret = combine({index[h]: self.dealt[n][h][1] for h in holders})
            recovered[f"b of {n}"] = secret
            vectors.append([-word for word in mask(hkdf(secret, self.V, E("self", index[n])), length, bits)])
        for n in lost:
            secret = combine({index[h]: self.dealt[n][h][0] for h in holders})
            recovered[f"sk of {n}"] = secret
            for other in self.U2:
                low, high = sorted((n, other), key=index.__getitem__)
                info = E("pair", index[low], index[high], self.public[low], self.public[high])
                one = mask(hkdf(dh(secret, self.public[other]), self.V, info), length, bits)
                vectors.append([-word for word in one] if other == low else one)
        self.out["recovered"] = recovered
        self.sum(vectors)


# -------------------------------------------------------------------------------------------------------- single values


def expected_encoding(given: list[dict[str, Any]]) -> list[Any]:
    return [{"bytes": E(one["name"], *map(_read, one["fields"]))} for one in given]


def _read(field: dict[str, Any]) -> Any:
    (kind, value), *_ = field.items()
    if kind == "bytes":
        return bytes.fromhex(value)
    return [_read(item) for item in value] if kind == "list" else value


def expected_masks(given: list[dict[str, Any]]) -> list[Any]:
    found = []
    for one in given:
        words = mask(bytes.fromhex(one["key"]), one["length"], one["bits"])
        found.append({"first": words[:16], "last": words[-16:], "sha256": H(bytes_of(words, one["bits"]))})
    return found


def expected_updates(given: list[dict[str, Any]]) -> list[Any]:
    found = []
    for one in given:
        clip, norm = float.fromhex(one["clip"]), one["norm_clip"] and float.fromhex(one["norm_clip"])
        w = weight(one["own"], one["total"])
        values = [float.fromhex(x) for x in one["values"]]
        words = encode_update(values, clip, norm, w, bytes.fromhex(one["rounding_key"]))
        found.append({"weight": w, "fraction_bits": fraction_bits(clip), "words": words})
    return found


def expected_statistics(given: list[dict[str, Any]]) -> list[Any]:
    found = []
    for one in given:
        words = encode_statistics(list(map(float.fromhex, one["values"])))
        found.append({"words": words, "back": decode_statistics(words)})
    return found


def expected_shares(given: list[dict[str, Any]]) -> list[Any]:
    found = []
    for one in given:
        shares = split(bytes.fromhex(one["secret"]), [int(c, 16) for c in one["coefficients"]], one["indices"])
        some = dict(list(shares.items())[-len(one["coefficients"]) - 1 :])
        found.append({"shares": shares, "combined": combine(some)})
    return found


SINGLE = {
    "encoding": expected_encoding,
    "masks": expected_masks,
    "updates": expected_updates,
    "statistics": expected_statistics,
    "shares": expected_shares,
}


def expected(inputs: dict[str, Any]) -> Any:
    """What the file with these inputs holds under ``expected``."""
    if "sites" in inputs:
        return as_json(Session(inputs).run())
    return as_json({what: SINGLE[what](given) for what, given in inputs.items()})


def text(inputs: dict[str, Any]) -> str:
    """A whole vector file."""
    return json.dumps({"inputs": inputs, "expected": expected(inputs)}, indent=1, ensure_ascii=False) + "\n"


FILES = ("single.json", "session_late_loss.json", "session_early_loss.json")


def main() -> int:
    """Compare every file with what this script computes, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the files instead of comparing them")
    write, bad = parser.parse_args().write, 0
    for name in FILES:
        old = (FOLDER / name).read_text(encoding="utf-8")
        new = text(json.loads(old)["inputs"])
        if write:
            (FOLDER / name).write_text(new, encoding="utf-8")
        bad += old != new
        sys.stdout.write(f"{name}: {'as before' if old == new else 'written' if write else 'DIFFERS'}\n")
    sys.path.insert(0, str(FOLDER.parents[1]))
    from tests.vectors import defects

    if write:
        (FOLDER / defects.FILE).write_text(defects.text(), encoding="utf-8")
    return 0 if write else int(bad > 0 or (FOLDER / defects.FILE).read_text(encoding="utf-8") != defects.text())


if __name__ == "__main__":
    sys.exit(main())
