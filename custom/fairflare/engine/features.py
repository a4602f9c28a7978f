# SPDX-License-Identifier: Apache-2.0
"""Features of records, kept where a network's head alone is trained: what leads to them does not change in a job."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from fairflare.data.manifest import Records
from fairflare.errors import PrivacyError
from fairflare.models.adapters import features

#: Most bytes of features that a site keeps in memory; records beyond go through the whole network each time.
MOST_BYTES = 1024**3


class Features:
    """What the head is given for records: float32 (n, ...), by the very object that holds the records.

    Parameters
    ----------
    model
        A network of which the head alone is trained.
    inputs
        The network's input for some of the records.
    at_once
        Records of one forward pass. In passes of that size from the first record on, the head makes of features the
        same outputs, bit for bit, as the network of inputs.
    """

    def __init__(self, model: nn.Module, inputs: Callable[[Records, slice], torch.Tensor], at_once: int) -> None:
        self._model, self._inputs, self._at_once = model, inputs, at_once
        self._kept: list[tuple[Records, torch.Tensor]] = []
        self._left = MOST_BYTES
        self._state = self._frozen()

    def keep(self, records: Records) -> None:
        """Compute these records' features, unless they are too large, or the network does more behind its head."""
        try:
            kept = self._computed(records)
        except PrivacyError:  # its outputs are not what the head makes of features, or no numbers at all
            return
        if kept is not None:
            self._kept.append((records, kept))
            self._left -= kept.nbytes

    def _computed(self, records: Records) -> torch.Tensor | None:
        one = features(self._model, self._inputs(records, slice(0, 1)))
        shape = (len(records), *one.shape[1:])
        if math.prod(shape) * torch.float32.itemsize > self._left:
            return None
        # In the order of memory that the network left them in: a convolution's last bits depend on it.
        last = one.ndim == 4 and not one.is_contiguous() and one.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format
        result = torch.empty(shape, dtype=torch.float32, memory_format=order)
        for start in range(0, len(records), self._at_once):
            part = slice(start, start + self._at_once)
            result[part] = features(self._model, self._inputs(records, part))
        return result

    def of(self, records: Records) -> torch.Tensor | None:
        """Features of all of ``records``; ``None`` if they are not kept, or are of other frozen weights than now."""
        found = next((kept for own, kept in self._kept if own is records), None)
        return None if found is None or self._state != self._frozen() else found

    def _frozen(self) -> list[tuple[int, int]]:
        """Which tensors are frozen, and how often each was written to."""
        return [(id(one), one._version) for one in self._model.parameters() if not one.requires_grad]
