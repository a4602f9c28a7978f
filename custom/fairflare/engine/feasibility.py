# SPDX-License-Identifier: Apache-2.0
"""Both halves of a feasibility job: join, agree on which cells may be opened, count, end.

Its sites read the manifest and nothing else; ``load`` (see ``engine.loading``) gives them records without inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fairflare.engine.incoming import refused
from fairflare.engine.masked_coordinator import MaskedCoordinator
from fairflare.engine.messages import MEASURE, VOCABULARY, Message
from fairflare.engine.server import Coordinator, Phase
from fairflare.engine.site import Site
from fairflare.engine.vocabulary import Shown, Tally, Vocabulary
from fairflare.errors import RoundError
from fairflare.fairness.groups import Floats
from fairflare.record import changed
from fairflare.secagg.protection import Weighted


class CountingSite(Site):
    """A hospital that counts. Unlike training, it refuses no word that the plan does not have."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._vocabulary = Vocabulary(self.plan)
        self._tally: Tally = {}
        self._shown: Shown = {}

    def _join(self, message: Message) -> dict[str, Weighted]:
        data = self._loaded(message.task)
        self._data, self._session, self._measured = data, message.session, -1
        self._tally = self._vocabulary.tally(data)
        bits, self._shown = self._vocabulary.own(data, self._tally)
        if self._masked is not None:
            return {}
        counts = [len(data.training), len(data.validation), len(data.test), data.opted_out]
        return {"counts": Weighted(np.array(counts, dtype=np.float64)), "cells": Weighted(bits)}

    def _prepare(self, message: Message) -> dict[str, Weighted]:
        if self._masked is None or self._data is None:
            raise refused("TASK", f"task {message.task} of a plan without masks", "a task of this plan")
        bits, _ = self._vocabulary.own(self._data, self._tally)
        return {**self._masked.counts(self._data), "cells": Weighted(bits)}

    def _measure(self, message: Message) -> dict[str, Weighted]:
        """Records of the cells that this site, and all sites together, may show."""
        if message.round <= self._measured:
            raise refused("REPEAT", f"round {message.round} again", f"a round after {self._measured}")
        self._measured = message.round
        total = message.vectors["totals"] if self._masked is None else self._masked.cells
        if total is None:
            raise refused("CELLS", "a task before the cells were counted", "the opening of 'cells' first")
        counts = self._vocabulary.vector(self._tally, self._shown, self._vocabulary.shown(total))
        return {VOCABULARY: Weighted(counts)}


class CountingCoordinator(Coordinator):
    """The server's half without masks: it sees every site's counts, but records what masks would have shown."""

    def _work(self) -> Iterator[Phase]:
        number, joined = self.record.next_round, self._last.accepted
        bits = self._last.opened()["cells"].total
        self._begin(number)
        yield from self._phase(MEASURE, number, joined, vectors=self._bits(bits))
        if self._last.accepted != joined:
            raise RoundError(
                "FF-ROUND-QUORUM",
                got=f"counts of {len(self._last.accepted)} of {len(joined)} sites",
                expected="all sites that joined: which cells may be opened was decided over all of them",
                next_step="repair or leave out those sites, then 'fairflare run resume'",
            )
        counts = self._last.opened()[VOCABULARY].total
        self.record = changed(self.record, feasibility=Vocabulary(self.plan).record(bits, counts))
        self.store.save(self.record)
        self.store.progress("counted", sites=list(joined))

    def _bits(self, bits: Floats) -> Mapping[str, np.ndarray]:
        return {"totals": bits}


class MaskedCountingCoordinator(CountingCoordinator, MaskedCoordinator):
    """The server's half with masks: sites add the bits up themselves."""

    def _labels(self, number: int) -> list[str]:
        return [VOCABULARY]

    def _bits(self, bits: Floats) -> Mapping[str, np.ndarray]:
        self._masks.keyset_closed([VOCABULARY])
        return {}
