# SPDX-License-Identifier: Apache-2.0
"""Runs the package from the fixed secrets of a vector file, stage by stage, so that any message can be put before it.

The secrets come in through the package's own seams: the ``random`` of a site, and the coefficients of its polynomials.
The two tables at the end are all the stages and all the places that take a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from cryptography import x509

from fairflare.secagg import shamir
from fairflare.secagg.fixedpoint import StatisticsCodec, UpdateCodec
from fairflare.secagg.identity import Identity, Trust
from fairflare.secagg.memory import Transition
from fairflare.secagg.params import Params, VectorParams
from fairflare.secagg.schedule import task_digest, tensor_digest
from fairflare.secagg.server import ServerSession
from fairflare.secagg.site import SiteSession
from fairflare.secagg.state import Offer
from fairflare.secagg.transcript import Dealt, Joining, Signed, Step, signed_join
from tests.vectors import straight

FOLDER = Path(straight.__file__).parent


class Script:
    """A source of "random" bytes that gives what is written down, in order."""

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = [bytes.fromhex(part) for part in parts]

    def __call__(self, size: int) -> bytes:
        part = self.parts.pop(0)
        assert len(part) == size
        return part


class FixedIdentity(Identity):
    """An identity whose one signature was made when the file was; its private key is gone."""

    signature = b""

    def sign(self, message: bytes) -> bytes:
        return self.signature


class FixedMemory:
    """The head and the peers of the file; it agrees to everything."""

    def __init__(self, site: Mapping[str, Any]) -> None:
        self.head = (site["seq"], bytes.fromhex(site["head"]))
        self._seen = {name: (seq, bytes.fromhex(head)) for name, seq, head in site["seen"]}
        self.transitions: list[Transition] = []

    def has(self, seq: int, head: bytes) -> bool:
        return (seq, head) == self.head

    def begin(self, session: bytes, plan_sha256: str, roster_digest: bytes) -> None:
        pass

    def commit(self, transitions: Sequence[Transition]) -> None:
        self.transitions += transitions

    def peer(self, name: str) -> tuple[int, bytes] | None:
        return self._seen.get(name)

    def remember_peers(self, heads: Mapping[str, tuple[int, bytes]]) -> None:
        pass

    def remember_active(self, least: object) -> None:
        pass


def params_of(given: Mapping[str, Any]) -> Params:
    vectors = tuple(
        VectorParams(v["label"], v["mode"], v["length"], v["bits"], v["fraction_bits"], float.fromhex(v["clip"]))
        for v in given["vectors"]
    )
    return Params(
        given["plan_sha256"], given["identities"], given["least_sites"], given["colluders"], given["weight_unit"],
        float.fromhex(given["norm_clip"]), vectors,
    )  # fmt: skip


def trust_of(given: Mapping[str, Any]) -> Trust:
    """Trust on the day on which the certificates were made, which is a day after their validity begins."""
    site = next(iter(given["sites"].values()))
    day = x509.load_der_x509_certificate(bytes.fromhex(site["certificate"])).not_valid_before_utc
    pinned = {name: one["spki_sha256"] for name, one in given["sites"].items()}
    return Trust(given["identities"], None, pinned, now=lambda: day + timedelta(days=1))


def digest_of(task: Mapping[str, Any], fl_round: int) -> bytes:
    """D of a task of the file."""
    tensors = [tensor_digest(t["name"], t["dtype"], t["shape"], bytes.fromhex(t["bytes"])) for t in task["tensors"]]
    numbers = [(name, bytes.fromhex(data)) for name, data in task["numbers"]]
    return task_digest(task["name"], fl_round, task["step"], tensors, numbers)


class Replay:
    """The four sites and the server of a file; call the stages in order."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given, self.names = given, sorted(given["sites"])
        self.params, self.trust = params_of(given), trust_of(given)
        self.number = {step["label"]: step["number"] for step in given["steps"]}
        self.memory = {name: FixedMemory(given["sites"][name]) for name in self.names}
        self.sites = {name: self._site(name) for name in self.names}
        self.server = ServerSession(self.params, given["job"], self.trust)
        self.U1 = [n for n in self.names if n not in given["lost_before_shares"]]
        self.U2 = [n for n in self.U1 if n not in given["lost_before_upload"]]
        self.out: dict[str, Any] = {"steps": {step["label"]: {} for step in given["steps"]}}
        self.messages: dict[str, Any] = {}
        self.query = {step["label"]: step["query"] for step in given["steps"]}
        self.inputs = {s["label"]: digest_of(given["tasks"][s["task"]], given["fl_round"]) for s in given["steps"]}

    def _site(self, name: str) -> SiteSession:
        site = self.given["sites"][name]
        parts = [site["channel_secret"], site["signing_secret"], site["join_nonce"]]
        parts += [step[what] for step in site["steps"].values() for what in ("mask_secret", "self_mask")]
        parts += site["steps"]["update"]["share_nonces"]
        spki, certificate = bytes.fromhex(site["spki_sha256"]), bytes.fromhex(site["certificate"])
        identity = FixedIdentity(name, self.given["identities"], certificate, spki, None)  # type: ignore[arg-type]
        object.__setattr__(identity, "signature", bytes.fromhex(site["signature"]))
        memory = self.memory[name]
        return SiteSession(identity, self.trust, self.params, memory, self.given["job"], random=Script(parts))

    def to(self, stage: str) -> Replay:
        """Run every stage before ``stage``."""
        for name, run in STAGES.items():
            if name == stage:
                return self
            run(self)
        assert stage == "end", stage
        return self

    # ------------------------------------------------------------------------------------------------------- stages

    def join(self) -> None:
        joined = {n: site.join([m for m in self.names if m != n]) for n, site in self.sites.items()}
        self.messages["join"] = joined
        joins = {n: Joining.parse(message).join for n, message in joined.items()}
        self.out |= {"params": self.params.encoded(), "join": joins}
        self.out["signed_by_kit"] = {n: signed_join(join) for n, join in joins.items()}
        for n in self.names:
            self.server.join(n, joined[n])

    def begin(self) -> None:
        roster = self.messages["roster"] = self.server.begin(self.names)
        for site in self.sites.values():
            site.begin(roster)
        self.out |= {"T": self.server.session, "roster_sha256": straight.H(roster)}

    def offer(self) -> None:
        label_of = {number: label for label, number in self.number.items()}
        for number in range(max(label_of) + 1):  # the server counts; the file's steps need not
            self.server.offer(label_of.get(number, "risk"), self.given["fl_round"])

    def keys(self) -> None:
        fl_round = self.given["fl_round"]
        offers = [Offer(number, label, fl_round) for label, number in self.number.items()]
        for n, site in self.sites.items():
            for offer, message in zip(offers, site.keys(offers), strict=True):
                self.server.keys(n, offer.number, message)
                self.messages.setdefault("keys", {})[offer.label, n] = message
                self.out["steps"][offer.label].setdefault("keys", {})[n] = Signed.parse(message).parts()

    def keyset(self) -> None:
        for label, number in self.number.items():
            message = self.messages["keyset", label] = self.server.keyset(number)
            for site in self.sites.values():
                site.keyset(number, message)
            self.out["steps"][label] |= {"keyset": message, "K": straight.H(message)}

    def deal(self) -> None:
        out = self.out["steps"]["update"]
        out |= {"ciphers": {}, "SHARES": {}, "dealt_sha256": {}}
        for n in self.U1:
            step = self.given["sites"][n]["steps"]["update"]
            with coefficients(step["mask_coefficients"] + step["self_coefficients"]) as left:
                message = self.sites[n].deal(self.number["update"])
            assert not left
            self.messages.setdefault("dealt", {})[n] = message
            dealt = Dealt.parse(message)
            out["ciphers"][n], out["SHARES"][n] = dealt.ciphers, dealt.signed.parts()
            out["dealt_sha256"][n] = straight.H(message)
            self.server.shares(n, self.number["update"], message)

    def dealers(self) -> None:
        number = self.number["update"]
        message = self.messages["dealers"] = self.server.dealers(number)
        for n in self.U1:
            self.sites[n].dealers(number, message)
        self.out["steps"]["update"]["dealers_sha256"] = straight.H(message)
        for label in self.number:
            self.server.expect(self.number[label], self.inputs[label], self.query[label])
            self.out["steps"][label]["D"] = self.inputs[label]

    def words(self, n: str, label: str) -> Any:
        site, step = self.given["sites"][n], self.given["sites"][n]["steps"][label]
        values = np.array([float.fromhex(x) for x in step["values"]])
        if label == "risk":
            return StatisticsCodec(len(self.names)).encode(values)
        codec = UpdateCodec(float.fromhex(self.given["vectors"][1]["clip"]), None)
        weight = codec.weight(site["records"], self.given["records"])
        return codec.encode(values, weight, bytes.fromhex(step["rounding_key"]))[0]

    def upload(self) -> None:
        for label, number in self.number.items():
            out = self.out["steps"][label]
            out |= {"words": {}, "masked": {}, "UP": {}}
            for n in self.U2 if label == "update" else self.names:
                words = self.words(n, label)
                out["words"][n] = words.tolist()
                out["V"] = self.sites[n].view(number, self.inputs[label], self.query[label])
                (signed,) = self.sites[n].upload([(number, words)], self.inputs[label], self.query[label])
                out["masked"][n], out["UP"][n] = words.tolist(), signed.parts()
                self.messages.setdefault("up", {})[label, n] = signed.encoded()
                self.messages.setdefault("words", {})[label, n] = words
                self.server.verify_upload(n, number, signed.encoded(), words)
                self.server.upload(n, number, signed.encoded(), words)

    def opening(self) -> None:
        number, out = self.number["risk"], self.out["steps"]["risk"]
        uploads, payloads = self.messages["opening"] = self.server.opening(number)
        total = self.server.opened(number)
        for site in self.sites.values():
            assert (site.opening(number, uploads, payloads) == total).all()
        out |= {"survivors": uploads, "sum": total.tolist()}
        out["result"] = StatisticsCodec(len(self.names)).decode(total).tolist()

    def survivors(self) -> None:
        message = self.messages["survivors"] = self.server.survivors(self.number["update"])
        self.out["steps"]["update"]["survivors"] = message

    def confirm(self) -> None:
        number, out = self.number["update"], self.out["steps"]["update"]
        message = self.messages["survivors"]
        out["confirm_signatures"] = {}
        for n in self.U2:
            out["confirm_signatures"][n] = self.sites[n].confirm(number, message)
            self.server.confirm(n, number, out["confirm_signatures"][n])

    def unmask(self) -> None:
        number, out = self.number["update"], self.out["steps"]["update"]
        message = self.messages["confirms"] = self.server.confirms(number)
        out |= {"confirms": message, "UNMASK": {}}
        for n in self.U2:
            answer = self.sites[n].unmask(number, message)
            self.messages.setdefault("unmask", {})[n] = answer
            out["UNMASK"][n] = Signed.parse(answer).parts()
            self.server.unmask(n, number, answer)

    def unmasked(self) -> None:
        out = self.out["steps"]["update"]
        total, sites = self.server.unmasked(self.number["update"])
        assert list(sites) == self.U2
        out["sum"] = total.tolist()
        mean, _ = UpdateCodec(float.fromhex(self.given["vectors"][1]["clip"]), None).decode(total, len(sites))
        out["result"] = mean.tolist()

    def step(self, label: str) -> Step:
        return Step(self.server.session, self.number[label], label)


@contextmanager
def coefficients(hexes: Sequence[str]) -> Iterator[list[int]]:
    """Sharing with these coefficients instead of random ones; gives those that are left."""
    left = [int(one, 16) for one in hexes]

    def split(secret: bytes, threshold: int, indices: Sequence[int]) -> dict[int, bytes]:
        return shamir._split(secret, threshold, indices, lambda _: left.pop(0))

    with mock.patch.object(shamir, "split", split):
        yield left


STAGES: dict[str, Callable[[Replay], None]] = {
    "join": Replay.join,
    "begin": Replay.begin,
    "offer": Replay.offer,
    "keys": Replay.keys,
    "keyset": Replay.keyset,
    "deal": Replay.deal,
    "dealers": Replay.dealers,
    "upload": Replay.upload,
    "opening": Replay.opening,
    "survivors": Replay.survivors,
    "confirm": Replay.confirm,
    "unmask": Replay.unmask,
    "unmasked": Replay.unmasked,
}
