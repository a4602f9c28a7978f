# SPDX-License-Identifier: Apache-2.0
"""A few thousand inputs with a fixed seed; ``make fuzz`` does the same a thousand times as long, guided by coverage."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fairflare.errors import SecaggError
from fairflare.secagg import server
from fairflare.secagg.encoding import LONGEST, VERSION, Reader
from fairflare.secagg.transcript import Signed, Unmask
from tests.fuzz.structure import take_apart
from tests.fuzz.targets import changed, targets
from tests.fuzz.world import plot

#: Seconds that no input may take.
PATIENCE = 5.0


@pytest.mark.parametrize("name", targets())
def test_whatever_comes_in(name: str) -> None:
    target = targets()[name]
    rng = random.Random(f"quick {name}")
    pool = list(target.mutator.seeds)
    for data in pool:
        target.run(data)
    for _ in range({1: 1500, 10: 300, 30: 200}.get(target.cost, 60)):
        data = changed(target, rng.choice(pool), rng)
        start = time.process_time()
        target.run(data)
        assert time.process_time() - start < PATIENCE
        if rng.random() < 0.1 and len(data) < 10_000:
            pool.append(data)


@pytest.mark.parametrize("name", [name for name in targets() if not name.startswith(("certificate", "any"))])
def test_the_honest_message_is_accepted(name: str) -> None:
    target = targets()[name]
    assert target.run(target.mutator.seeds[0])


def test_at_least_half_of_the_inputs_keep_version_and_lengths() -> None:
    target, rng = targets()["parse-keyset"], random.Random(1)
    seed = target.mutator.seeds[0]
    assert take_apart(seed).encoded() == seed
    whole = sum(take_apart(changed(target, seed, rng)) is not None for _ in range(1000))
    assert whole > 500


@pytest.mark.parametrize(
    "data", ["text", None, bytearray(VERSION), bytes(LONGEST + 1)], ids=["str", "None", "array", "long"]
)
def test_what_is_no_message_at_all(data: object) -> None:
    with pytest.raises(SecaggError):
        Reader(data, "keys")


# ------------------------------------------------------------------------------------------- does it notice a defect?


class Anything:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def test_it_notices_a_parser_that_lets_bytes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "end", lambda self: None)
    target = targets()["parse-keys"]
    with pytest.raises(AssertionError, match="other bytes"):
        target.run(target.mutator.seeds[0] + b"\0")


def test_it_notices_an_exception_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(self: Reader) -> None:
        raise IndexError

    monkeypatch.setattr(Reader, "end", end)
    target = targets()["site.keyset-update"]
    with pytest.raises(IndexError):
        target.run(target.mutator.seeds[0])


def test_it_notices_a_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("share_commitment", "self_commitment"):  # a server that believes every share
        monkeypatch.setattr(server, check, lambda *_: Anything())
    target = targets()["server.unmask"]
    found = Unmask.parse(Signed.parse(target.mutator.seeds[0]).message)
    wrong = replace(found, self_shares=(bytes(33), *found.self_shares[1:])).encoded()
    key = bytes.fromhex(plot().given["sites"]["hospital-a"]["signing_secret"])
    signed = Signed(wrong, Ed25519PrivateKey.from_private_bytes(key).sign(wrong))
    with pytest.raises(AssertionError, match="not the plain sum"):
        target.run(signed.encoded())
