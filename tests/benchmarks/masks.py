# SPDX-License-Identifier: Apache-2.0
"""E to I: what masks cost without a network: kernel, client, server, sizes, against the machine and other programs.

Everything that is compared alternates within one run: floor, ours, theirs, and again.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.app_common.decomposers import common_decomposers
from nvflare.fuel.utils import fobs
from torchvision.models import resnet18

from fairflare.engine.explain_traffic import Messages
from fairflare.engine.masked import params_of
from fairflare.engine.messages import TRAIN, layout_of
from fairflare.flare import wire
from fairflare.privacy.gate import ReleaseGate, ReleaseLog, Weighted
from fairflare.secagg.envelope import pack
from fairflare.secagg.identity import DEVELOPMENT
from fairflare.secagg.masking import add_masks
from fairflare.secagg.params import threshold
from fairflare.secagg.protection import Payload, SiteProtection
from tests.benchmarks.environments import FLOWER, TENSEAL, Unavailable, Worker, interpreter
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.masked_rounds import protected
from tests.benchmarks.processes import say
from tests.benchmarks.sessions import WEIGHT, Seconds, Sessions, drawn, seconds_of
from tests.benchmarks.subjects import plan_of

CLIENT = "E. Masks at a client"
SERVER = "F. Masks at the server"
ENCRYPTED = "G. Masks against homomorphic encryption"
SIZES = "H. The whole protocol by number of sites"
UPLOAD = "I. Bytes of an upload"
MOST_OVER_FLOOR, LEAST_CLIENT, LEAST_SERVER, MOST_BYTES = 1.25, 8.0, 3.0, 1.001
#: The clients of the comparisons, one of whom is lost after it shared its keys.
CLIENTS, LOST = 8, 1
PARTS = ("keys", "shares", "mask", "confirm", "unmask")
#: The floor uses pieces that the machine is fastest with.
_STREAM, _ADD = 1 << 18, 1 << 17
#: Repeats of what is short, within a repeat.
_PAIRS = 3


@dataclass(frozen=True)
class Masks:
    """How much is run; ``others``: whether other programs are compared with."""

    shapes: tuple[tuple[int, ...], ...]
    repeats: int
    sites: tuple[int, ...]
    parameters: int
    steps: int
    others: bool

    @property
    def large(self) -> int:
        """Parameters of the model of ``shapes``."""
        return sum(int(np.prod(shape)) for shape in self.shapes)


def resnet_shapes() -> tuple[tuple[int, ...], ...]:
    """The 62 tensors of torchvision's ResNet-18: 11,689,512 parameters."""
    return tuple(tuple(one.shape) for one in resnet18().parameters())


def full() -> Masks:
    """What ``make bench`` runs."""
    return Masks(resnet_shapes(), 5, (4, 8, 16, 32, 50), 1_000_000, 3, True)


QUICK = Masks(((100, 100), (50,)), 1, (3, 4), 2000, 1, False)


def all_figures(size: Masks, folder: Path) -> tuple[list[Figure], dict[str, str]]:
    """All figures, and which parts were skipped for which reason."""
    skipped: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    figures = [*_compared(size, skipped), *_by_sites(size, folder), *_bytes(size)]
    return figures, skipped


# ------------------------------------------------------------------------------------------------- one machine's floor


def floor(parameters: int, masks: int) -> float:
    """Seconds that this machine needs at least: masks x (keystream + addition in the cache) + one pass over memory."""
    size = 4 * parameters
    cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    zeros, stream = bytes(_STREAM), np.zeros(_STREAM + 16, dtype=np.uint8)
    a, b = np.ones((2, _ADD // 4), dtype=np.uint32)
    words = np.ones(parameters, dtype=np.uint32)

    def keystream() -> None:
        for _ in range(max(1, size // _STREAM)):
            cipher.update_into(zeros, stream.data)

    def addition() -> None:
        for _ in range(max(1, size // _ADD)):
            np.add(a, b, out=a)

    return masks * (seconds_of(keystream) + seconds_of(addition)) + seconds_of(lambda: np.add(words, 1, out=words))


class Ours:
    """Our side of the comparisons: the kernel on one thread, and whole steps of a real session."""

    def __init__(self, parameters: int) -> None:
        self.sessions = Sessions(CLIENTS, parameters)
        self.update = drawn(parameters)
        self.found: dict[str, list[float]] = defaultdict(list)

    def kernel(self) -> None:
        """The machine's floor, then our kernel, several times: they are short, and the machine may not be quiet."""
        words, keys = np.zeros(self.update.size + 1, dtype=np.uint32), [os.urandom(32) for _ in range(CLIENTS)]
        for _ in range(_PAIRS):
            self.found["floor"].append(floor(self.update.size, CLIENTS))
            for name, threads in (("kernel", 1), ("kernel_default", None)):
                work = partial(add_masks, words, keys[: CLIENTS // 2], keys[CLIENTS // 2 :], threads=threads)
                self.found[name].append(seconds_of(work))

    def client(self) -> None:
        """Round and mask: with as many threads as by default, and on one, as Flower does."""
        codec, keys = self.sessions.codec, [os.urandom(32) for _ in range(CLIENTS)]

        def work(threads: int | None) -> None:
            words, _ = codec.encode(self.update, codec.weight(WEIGHT, WEIGHT * CLIENTS), os.urandom(32))
            add_masks(words, keys[: CLIENTS // 2], keys[CLIENTS // 2 :], threads=threads)

        for name, threads in (("client_one", 1), ("client_default", None)):
            one = partial(work, threads)
            self.found[name].append(statistics.median(seconds_of(one) for _ in range(_PAIRS)))

    def session(self) -> None:
        """A whole step of a real session; its mean is checked."""
        self.sessions.seconds = Seconds()
        self.sessions.whole(self.update, LOST)
        seconds = self.sessions.seconds
        steps = zip(seconds.site["open shares"], seconds.site["mask"], strict=True)
        self.found["client_whole"].append(statistics.median(a + b for a, b in steps))
        self.found["server"].append(seconds.server["mask"] + seconds.server["confirm"] + seconds.server["unmask"])


# ------------------------------------------------------------------------------------------------------- other programs


def _workers(size: Masks, stack: ExitStack, skipped: dict[str, str]) -> dict[str, Worker]:
    found = {}
    for title, (name, packages) in (("Flower's SecAgg+", FLOWER), ("TenSEAL", TENSEAL)):
        if not size.others:
            skipped[title] = "not in a quick run"
            continue
        try:
            python = interpreter(name, packages)
        except Unavailable as problem:
            skipped[title] = str(problem)
            continue
        found[name] = stack.enter_context(Worker(python, "flower_worker.py" if name == "flwr" else "tenseal_worker.py"))
    return found


def _compared(size: Masks, skipped: dict[str, str]) -> Iterator[Figure]:
    ours = Ours(size.large)
    theirs: dict[str, list[dict[str, Any]]] = {"flwr": [], "tenseal": []}
    with ExitStack() as stack:
        workers = _workers(size, stack, skipped)
        for repeat in range(size.repeats):
            ours.kernel()
            ours.client()
            ours.session()
            if "flwr" in workers:
                asked = {"shapes": size.shapes, "clients": CLIENTS, "threshold": threshold(CLIENTS), "lost": LOST}
                theirs["flwr"].append(workers["flwr"].ask(**asked))
            if "tenseal" in workers:
                theirs["tenseal"].append(workers["tenseal"].ask(shapes=size.shapes))
            say(f"masks: repeat {repeat + 1} of {size.repeats}, {ours.found['kernel'][-1]:.3f} s for the kernel")
    yield from _client(size, ours)
    yield from _server(ours)
    if theirs["flwr"]:
        yield from _against_flower(ours, theirs["flwr"])
    if theirs["tenseal"]:
        yield from _against_tenseal(size, ours, theirs["tenseal"])


def _ratios(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Median of the ratios within each repeat."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def _client(size: Masks, ours: Ours) -> Iterator[Figure]:
    make = partial(Figure, CLIENT, f"{size.large:,} parameters, {CLIENTS - 1} peers")
    found = ours.found
    many = f"{len(found['floor'])} pairs in {size.repeats} repeats; median of the ratios within a pair"
    yield make("floor", "this machine's floor, one thread", unit="s", **spread(found["floor"]),
               remark=f"{CLIENTS} x (AES-256-CTR + addition in the cache) + one pass over memory")  # fmt: skip
    yield make("kernel", "adding the masks, one thread", unit="s", **spread(found["kernel"]),
               remark=f"{CLIENTS - 1} pairs and the self-mask")  # fmt: skip
    yield make("over_floor", "adding the masks / floor", unit="", **_ratios(found["kernel"], found["floor"]),
               most=MOST_OVER_FLOOR, remark=many)  # fmt: skip
    yield make("kernel_default", "adding the masks, as many threads as by default", unit="s",
               **spread(found["kernel_default"]))  # fmt: skip
    yield make("client_one", "round and mask, one thread", unit="s", **spread(found["client_one"]))
    yield make("client_default", "round and mask, as many threads as by default", unit="s",
               **spread(found["client_default"]))  # fmt: skip
    yield make("client_whole", "open shares, agree on keys, round, mask, sign", unit="s",
               **spread(found["client_whole"]),
               remark="a real session with as many threads as by default; median of the sites of a repeat")  # fmt: skip


def _server(ours: Ours) -> Iterator[Figure]:
    make = partial(Figure, SERVER, f"{CLIENTS} clients, {LOST} lost after sharing keys")
    yield make("server", "check and add the updates, unmask, decode", unit="s", **spread(ours.found["server"]),
               remark="a real session; confirmations and the checks of all shares and signatures included")  # fmt: skip


def _against_flower(ours: Ours, theirs: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    found, peers = ours.found, CLIENTS - 1
    make = partial(Figure, CLIENT, f"against {FLOWER[1][0]}, {peers} peers")
    mask = [statistics.median(one["mask"]) for one in theirs]
    yield make("flower_client", "Flower's _collect_masked_vectors", unit="s", **spread(mask),
               remark="open shares, quantise, 8 masks, np.save; "
               f"the last alone {statistics.median(one['write'] for one in theirs):.3g} s")  # fmt: skip
    yield make("flower_over_default", "Flower / ours (round and mask, as many threads as by default)", unit="",
               **_ratios(mask, found["client_default"]), least=LEAST_CLIENT, remark="Flower has one")  # fmt: skip
    yield make("flower_over_one", "Flower / ours (round and mask, one thread)", unit="",
               **_ratios(mask, found["client_one"]), remark="on the one thread that Flower uses")  # fmt: skip
    yield make("flower_over_whole", "Flower / ours (whole step of a real session)", unit="",
               **_ratios(mask, found["client_whole"]))  # fmt: skip
    make = partial(Figure, SERVER, f"against {FLOWER[1][0]}, {CLIENTS} clients, {LOST} lost after sharing keys")
    total = [one["sum"] + one["unmask"] for one in theirs]
    lean = [one["sum"] + one["unmask"] - one["read"] for one in theirs]
    yield make("flower_server", "Flower's workflow: sum and unmask", unit="s", **spread(total),
               remark="time in clients and its strategy's averaging left out")  # fmt: skip
    yield make("flower_server_ratio", "Flower / ours", unit="", **_ratios(total, found["server"]), least=LEAST_SERVER)
    yield make("flower_server_lean", "Flower without reading its bytes / ours", unit="",
               **_ratios(lean, found["server"]), remark="FLARE's reading is not in ours either")  # fmt: skip


def _against_tenseal(size: Masks, ours: Ours, theirs: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    make = partial(Figure, ENCRYPTED, f"against {TENSEAL[1][0]}, {size.large:,} parameters")
    both = [one["encrypt"] + one["write"] for one in theirs]
    yield make("tenseal_client", "TenSEAL: encrypt and serialise", unit="s", **spread(both),
               remark="the whole vector, tensor by tensor, with FLARE's parameters; threads as it likes")  # fmt: skip
    yield make("tenseal_ratio", "TenSEAL / ours (round and mask, one thread)", unit="",
               **_ratios(both, ours.found["client_one"]))  # fmt: skip
    large = theirs[-1]["bytes"]
    yield make("tenseal_bytes", "TenSEAL: bytes of an upload", large / 1e6, "MB")
    yield make("tenseal_bytes_ratio", "TenSEAL / ours, bytes", large / (4 * size.large + 4), "")


# ------------------------------------------------------------------------------------------------ the whole protocol


def _by_sites(size: Masks, folder: Path) -> Iterator[Figure]:
    for count in size.sites:
        home = folder / f"{count}-sites"
        home.mkdir(parents=True)
        sessions = Sessions(count, size.parameters, home)
        joined = sessions.seconds
        repeats = []
        for _ in range(size.steps):
            sessions.seconds = Seconds()
            sessions.whole(drawn(size.parameters))
            repeats.append(sessions.seconds)
        sessions.close()
        say(f"protocol with {count} sites: {statistics.median(repeats[-1].site['mask']):.3f} s a site for masks")
        yield from _steps(size, sessions, joined, repeats)
        yield _large(size, count)


def _steps(size: Masks, sessions: Sessions, joined: Seconds, repeats: Sequence[Seconds]) -> Iterator[Figure]:
    count = len(sessions.names)
    make = partial(Figure, SIZES, f"{count} sites, {size.parameters:,} parameters")
    yield make("join", "a site: join and check everybody's JOIN", unit="s", **spread(joined.site["join"]),
               remark="once a session; median over sites; memories on disk")  # fmt: skip
    for part in PARTS:
        names = ("shares", "open shares") if part == "shares" else (part,)
        median = [sum(statistics.median(one.site[name]) for name in names) for one in repeats]
        yield make(f"site_{part}", f"a site: {_WORDS[part]}", unit="s", **spread(median),
                   remark=f"median over sites, {size.steps} steps")  # fmt: skip
    for part in PARTS:
        yield make(f"server_{part}", f"the server, all sites: {part}", unit="s",
                   **spread([one.server[part] for one in repeats]))  # fmt: skip
    down, up = sessions.bytes.down, sessions.bytes.up
    words = 4 * (size.parameters + 1)
    for name, sizes, masked in (("down", down, 0), ("up", up, words)):
        protocol = sum(sizes[part] for part in PARTS) - masked
        split = ", ".join(f"{part} {sizes[part] - (masked if part == 'mask' else 0):,}" for part in PARTS)
        apart = "masked words" if masked else "the model"
        yield make(f"bytes_{name}", f"a site: bytes {name} of protocol messages, a round", protocol / 1e3, "kB",
                   remark=f"{split}; {apart} apart; join {sizes['join']:,}")  # fmt: skip


_WORDS = {
    "keys": "fresh keys", "shares": "deal shares, open those of the others", "mask": "agree on keys, round, mask, sign",
    "confirm": "check and sign the survivors", "unmask": "check the consents, reveal shares",
}  # fmt: skip


def _large(size: Masks, count: int) -> Figure:
    """The same client step with the large model: only one site uploads, since no length depends on the others."""
    sessions, update = Sessions(count, size.large), drawn(size.large)
    found = []
    for _ in range(size.steps):
        sessions.seconds = Seconds()
        sessions.masked(sessions.dealt(), sessions.names[0], update)
        found.append(sessions.seconds.site["mask"][0])
    return Figure(
        SIZES, f"{count} sites, {size.parameters:,} parameters", "site_mask_large",
        f"a site: the same with {size.large:,} parameters", unit="s", **spread(found),
        remark="agree on keys, round, mask, sign",
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- bytes of an upload


class _Silent(ReleaseLog):
    def __init__(self) -> None:
        pass

    def append(self, event: Any) -> None:
        pass


class _Masked(SiteProtection):
    """Random words as long as masked ones, and the protocol messages that go with them."""

    def __init__(self, layout: Any) -> None:
        self.params = params_of(layout, DEVELOPMENT)
        self.messages = Messages(self.params, [f"site-{number}" for number in range(1, CLIENTS + 1)])

    def protect(self, specs: Any, vectors: Any) -> tuple[dict[str, Payload], bytes]:
        random, found = np.random.default_rng(0), {}
        for label in specs:
            one = self.params.vector(label)
            words = random.integers(0, 2**one.bits, one.length, dtype=f"u{one.bits // 8}")
            found[label] = Payload(words, None)
        return found, pack([self.messages.upload(label) for label in specs])


def _bytes(size: Masks) -> Iterator[Figure]:
    flare_decomposers.register()
    common_decomposers.register()
    layout = layout_of(protected(plan_of("skin_flexfair", 1), "masked"), size.large)
    gate = ReleaseGate(layout.tasks, _Masked(layout), _Silent())
    vectors = {label: Weighted(np.zeros(one.length, one.dtype)) for label, one in layout.tasks[TRAIN].items()}
    release = gate.release(TRAIN, 1, 0, vectors)
    sent, raw = len(fobs.dumps(wire.encode_release(release, "0" * 32))), 4 * size.large
    make = partial(Figure, UPLOAD, f"{size.large:,} parameters")
    yield make("upload", "a masked reply to train, serialised by FLARE", sent / 1e6, "MB",
               remark=f"training sums, signatures and head are {sent - raw:,} B more than raw float32")  # fmt: skip
    yield make("upload_ratio", "the same / raw float32", sent / raw, "", most=MOST_BYTES)
