# SPDX-License-Identifier: Apache-2.0
"""Bytes of a masked job at one site: what the encoders of its messages give for zeros, as no length depends on data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fairflare.engine.masked import params_of
from fairflare.engine.messages import (
    COMPARE,
    CONFIRM,
    COUNTED,
    EVALUATE,
    FINISH,
    JOIN,
    MEASURE,
    PREPARE,
    SESSION,
    TRAIN,
    TRAIN_ALONE,
    UNMASK,
    Layout,
)
from fairflare.he.parameters import nominal
from fairflare.methods import UPDATE
from fairflare.secagg.envelope import Item, offer_data, opening_data, pack
from fairflare.secagg.identity import KIT, development_identity
from fairflare.secagg.params import Params
from fairflare.secagg.state import Offer
from fairflare.secagg.transcript import (
    CIPHER_BYTES,
    SHARE_BYTES,
    Dealt,
    Join,
    Joining,
    Keys,
    Shares,
    Signed,
    Step,
    Unmask,
    Upload,
    confirms_message,
    dealers_message,
    roster_message,
    signed_list,
)

#: Bytes of one number of a vector in clear.
ITEM: Final[Mapping[str, int]] = {"float32": 4, "float64": 8, "uint8": 1}
#: A round of which ``explain`` tells the bytes; only the list of updates that were counted depends on it.
_SECOND: Final = 1
_HASH, _SIGNATURE, _KIT_SIGNATURE = bytes(32), bytes(64), bytes(256)


@dataclass(frozen=True)
class Trip:
    """One message to a site and its answer: vectors and protocol messages, in bytes."""

    task: str
    down: int
    up: int


@dataclass(frozen=True)
class Traffic:
    """What one site gets and sends in one part of a job while everybody is there; heads and transport apart."""

    part: str
    trips: tuple[Trip, ...]
    down: int
    up: int

    @classmethod
    def of(cls, part: str, *trips: Trip) -> Traffic:
        """With the sums of its trips."""
        return cls(part, trips, sum(trip.down for trip in trips), sum(trip.up for trip in trips))


class Messages:
    """The protocol's items for a roster of ``names``, everybody present, made by the real encoders."""

    def __init__(self, params: Params, names: Sequence[str]) -> None:
        self.params = params
        self.names = names
        self.certificate = development_identity(names[0]).certificate  # about as long as a kit's
        self.sites = range(1, len(names) + 1)

    def join(self, name: str) -> Item:
        """What one site says when it joins for the first time: it has seen no other site's memory."""
        return Item("join", 0, self._joining(name).encoded())

    def roster(self) -> Item:
        """Everybody's JOIN."""
        return Item("roster", 0, roster_message([self._joining(name) for name in self.names]))

    def _joining(self, name: str) -> Joining:
        join = Join(
            "0" * 32, self.params.encoded(), name, _HASH, _HASH, _HASH, _HASH, 0, _HASH, (), self.params.plan_sha256
        )  # fmt: skip
        return Joining(join.encoded(), _KIT_SIGNATURE, self.certificate)

    def offer(self, label: str) -> Item:
        """A new step."""
        return Item("offer", 0, offer_data(Offer(0, label, 0)))

    def keys(self, label: str) -> Item:
        """A site's keys for it."""
        return Item("keys", 0, self._keys(label).encoded())

    def keyset(self, label: str) -> Item:
        """Everybody's keys."""
        return Item("keyset", 0, signed_list("keyset", [self._keys(label) for _ in self.sites]))

    def _keys(self, label: str) -> Signed:
        return Signed(Keys(_step(label), 0, _HASH, _HASH).encoded(), _SIGNATURE)

    def shares(self) -> Item:
        """A site's dealing."""
        return Item("shares", 0, self._dealt().encoded())

    def dealers(self) -> Item:
        """Everybody's dealing."""
        return Item("dealers", 0, dealers_message([self._dealt() for _ in self.sites]))

    def _dealt(self) -> Dealt:
        hashes = (_HASH,) * len(self.sites)
        shares = Shares(_step(UPDATE), _HASH, 0, hashes[1:], hashes, hashes)
        return Dealt(Signed(shares.encoded(), _SIGNATURE), (bytes(CIPHER_BYTES),) * (len(self.sites) - 1))

    def upload(self, label: str) -> Item:
        """A site's signature of a vector."""
        return Item("upload", 0, self._upload(label).encoded())

    def survivors(self) -> Item:
        """Everybody's signatures of the update."""
        return Item("survivors", 0, self._uploads(UPDATE))

    def opening(self, label: str) -> Item:
        """Everybody's signatures and words of a statistic."""
        sent = np.zeros(self.params.vector(label).most_bytes, dtype=np.uint8)
        return Item("opening", 0, opening_data(self._uploads(label), [sent for _ in self.sites]))

    def _uploads(self, label: str) -> bytes:
        return signed_list("survivors", [self._upload(label) for _ in self.sites])

    def _upload(self, label: str) -> Signed:
        payload = _HASH if self.params.vector(label).mode == "closed" else b""
        return Signed(Upload(_HASH, 0, 0, payload).encoded(), _SIGNATURE)

    def confirm(self) -> Item:
        """A site's consent to the set of survivors."""
        return Item("confirm", 0, _SIGNATURE)

    def confirms(self) -> Item:
        """Everybody's consent."""
        return Item("confirms", 0, confirms_message([(site, _SIGNATURE) for site in self.sites]))

    def unmask(self) -> Item:
        """A site's shares of everybody's self-mask."""
        unmask = Unmask(_HASH, _HASH, (bytes(SHARE_BYTES),) * len(self.sites), ())
        return Item("unmask", 0, Signed(unmask.encoded(), _SIGNATURE).encoded())


def _step(label: str) -> Step:
    return Step(_HASH, 0, label)


def traffic(layout: Layout, names: Sequence[str]) -> tuple[Traffic, ...]:
    """What a site gets and sends at the start and in each kind of round."""
    messages = Messages(params_of(layout, KIT, nominal(len(names))), names)
    method = layout.plan.method
    rounds = []
    if not method.lagged:
        rounds.append(measured_round(layout, messages, number=_SECOND))
    if method.lagged or method.measured_every > 1:
        rounds.append(round_alone(layout, messages, number=_SECOND))
    return (start(layout, messages), *rounds)


def labels_of(layout: Layout, *, measured: bool) -> list[str]:
    """Vectors of a round that begins with an exchange of statistics, or of one that is a single trip."""
    tasks = (MEASURE, COMPARE, TRAIN) if measured else (TRAIN_ALONE,)
    return [label for task in tasks for label in _labels(layout, task)]


def _labels(layout: Layout, task: str) -> list[str]:
    """Vectors of a task with masks of their own: further parts of an update travel inside it."""
    return [label for label in layout.tasks.get(task, ()) if label not in layout.parts]


def inputs_bytes(layout: Layout, task: str, names: Sequence[str], number: int | None) -> int:
    """Bytes of the tensors that go down with a task of round ``number``; without what depends on it for ``None``."""
    inputs = layout.inputs(task)
    counted = 0 if number is None or COUNTED not in inputs else counted_bytes(names, number)
    return counted + sum(length * ITEM[dtype] for dtype, length in inputs.values())


def counted_bytes(names: Sequence[str], number: int) -> int:
    """Bytes of :data:`COUNTED` in round ``number``, if every site was counted in the one before."""
    counted = {} if number == 0 else dict.fromkeys(names, number - 1)
    return len(json.dumps(counted, sort_keys=True, separators=(",", ":")).encode("utf-8"))


def start(layout: Layout, messages: Messages) -> Traffic:
    """The trips before the first round."""
    return _start(layout, messages, labels_of(layout, measured=MEASURE in layout.tasks))


def _start(layout: Layout, messages: Messages, labels: Sequence[str]) -> Traffic:
    prepared = list(layout.tasks[PREPARE])
    asked = [*prepared, *labels]
    return Traffic.of(
        "start",
        Trip(JOIN, 0, _size([messages.join(messages.names[0])])),
        Trip(
            SESSION,
            _size([messages.roster(), *map(messages.offer, asked)]),
            _size([messages.keys(label) for label in asked]),
        ),
        Trip(
            PREPARE,
            _size([*map(messages.keyset, prepared), messages.keyset(UPDATE)]),
            _size([*map(messages.upload, prepared), messages.shares()]) + _vectors(messages.params, prepared),
        ),
        # These sums come with the first task of the first round.
        Trip("sums of prepare", _items(map(messages.opening, prepared)), 0),
    )


def measured_round(
    layout: Layout, messages: Messages, following: Sequence[str] | None = None, number: int | None = None
) -> Traffic:
    """A round with statistics of its own.

    ``following``: what comes next, by default such a round (``()``: nothing). ``number``: as in :func:`inputs_bytes`.
    """
    measured, compared, trained = (_labels(layout, task) for task in (MEASURE, COMPARE, TRAIN))
    down = {task: inputs_bytes(layout, task, messages.names, number) for task in (MEASURE, COMPARE, TRAIN)}
    opened = [messages.opening("risk_sums")] if "risk_sums" in measured else []
    trips = [
        Trip(MEASURE, down[MEASURE] + _size(map(messages.keyset, measured)), _uploaded(messages, measured)),
    ]
    if compared:
        asked = _size([*opened, *map(messages.keyset, compared)])
        trips.append(Trip(COMPARE, down[COMPARE] + asked, _uploaded(messages, compared)))
        opened = list(map(messages.opening, compared))
    closed = [label for label in trained if label != UPDATE]
    protocol = _size([*opened, messages.dealers(), *map(messages.keyset, closed)])
    trips.append(Trip(TRAIN, down[TRAIN] + protocol, _uploaded(messages, trained)))
    after = [*measured, *compared, *trained] if following is None else following
    return Traffic.of("round", *trips, *_end_of_round(messages, after, []))


def round_alone(
    layout: Layout, messages: Messages, following: Sequence[str] | None = None, number: int | None = None
) -> Traffic:
    """A round in one trip; ``following`` and ``number`` as in :func:`measured_round`."""
    labels = _labels(layout, TRAIN_ALONE)
    closed = [label for label in labels if label != UPDATE]
    risk = [messages.opening("risk_sums")] if "risk_sums" in labels else []
    protocol = _size([messages.dealers(), *map(messages.keyset, closed)])
    part = "round" if layout.plan.method.lagged else "round without group sums"
    down = inputs_bytes(layout, TRAIN_ALONE, messages.names, number) + protocol
    trip = Trip(TRAIN_ALONE, down, _uploaded(messages, labels))
    return Traffic.of(part, trip, *_end_of_round(messages, labels if following is None else following, risk))


def evaluation(layout: Layout, messages: Messages) -> Traffic:
    """The final evaluation, and the models that every site keeps; the run's record comes on top of the latter."""
    labels = list(layout.tasks[EVALUATE])
    down = {task: inputs_bytes(layout, task, messages.names, None) for task in (EVALUATE, FINISH)}
    return Traffic.of(
        "end",
        Trip(EVALUATE, down[EVALUATE] + _size(map(messages.keyset, labels)), _uploaded(messages, labels)),
        Trip(FINISH, down[FINISH], _size([])),
    )


def counting(layout: Layout, messages: Messages) -> Traffic:
    """A whole job that only counts."""
    prepared, counted = list(layout.tasks[PREPARE]), list(layout.tasks[MEASURE])
    asked = [*prepared, *counted]
    return Traffic.of(
        "job",
        Trip(JOIN, 0, _size([messages.join(messages.names[0])])),
        Trip(
            SESSION,
            _size([messages.roster(), *map(messages.offer, asked)]),
            _size([messages.keys(label) for label in asked]),
        ),
        Trip(PREPARE, _size(map(messages.keyset, prepared)), _uploaded(messages, prepared)),
        Trip(
            MEASURE,
            _size([*map(messages.opening, prepared), *map(messages.keyset, counted)]),
            _uploaded(messages, counted),
        ),
    )


def _end_of_round(messages: Messages, following: Sequence[str], opened: Sequence[Item]) -> tuple[Trip, Trip]:
    """Consent and unmasking; keys of what comes next ride along, and shares if that is a round."""
    trains = UPDATE in following
    return (
        Trip(
            CONFIRM,
            _size([*opened, messages.survivors(), *map(messages.offer, following)]),
            _size([messages.confirm(), *map(messages.keys, following)]),
        ),
        Trip(
            UNMASK,
            _size([messages.confirms(), *([messages.keyset(UPDATE)] if trains else [])]),
            _size([messages.unmask(), *([messages.shares()] if trains else [])]),
        ),
    )


def _uploaded(messages: Messages, labels: Sequence[str]) -> int:
    return _vectors(messages.params, labels) + _size(map(messages.upload, labels))


def _vectors(params: Params, labels: Iterable[str]) -> int:
    return sum(one.most_bytes for one in map(params.vector, labels))


def _size(items: Iterable[Item]) -> int:
    return len(pack(list(items)))


def _items(items: Iterable[Item]) -> int:
    """Bytes that these add to a message which carries others already."""
    return _size(items) - _size([])
