# SPDX-License-Identifier: Apache-2.0
"""O: what private training costs: seconds of an epoch over the same without, and plain Opacus; memory; noise.

One epoch of each kind in turn, in this process and with one thread, whose own seconds are counted: others on the
machine make a clock run longer for each of them by chance. Kinds: without privacy, ours and ``PrivacyEngine`` of
Opacus, each with ``hooks`` and ``ghost``. All see the same batches of the same made-up records, of the same size: no
records are drawn, as steps of different sizes say little about each other. Networks start alike; clip, noise and
optimiser are the same.

``python -m tests.benchmarks.private --model M --part P --kind K`` finds the peak memory of one in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fairflare.models.adapters import Part, features, head_of, train_part
from fairflare.models.networks import Cnn, Mlp, resnet18
from fairflare.privacy import noise
from fairflare.privacy.dpsgd import DpSgd, Drawn, Mechanism, UnitSampler
from tests.benchmarks.accumulator import rss
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.processes import say, script

SECTION = "O. What private training costs"
NONE, OURS, OPACUS = "none", ("hooks", "ghost"), ("Opacus hooks", "Opacus ghost")
CACHED = ("cached hooks", "cached ghost")
KINDS = (NONE, *OURS, *OPACUS)
BATCH, PIXELS, RANK, CLIP, SIGMA = 32, 64, 4, 1.0, 1.0
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: Mlp(26, (32, 16), 2),
    "cnn": lambda: Cnn(3, (16, 32, 64, 128), 2),
    "resnet18": lambda: resnet18(3, 2),
}
PARTS: tuple[Part, ...] = ("all", "head", "adapters")
#: Aims, of networks for images: of the trained parts that are small, of cached features, of noise.
MOST_OF_PART, MOST_CACHED, MOST_NOISE = 1.6, 0.2, 4.0

Step = Callable[[int], None]


@dataclass(frozen=True)
class Case:
    """A network and the part of it that is trained; an epoch has ``steps`` steps."""

    model: str
    part: Part
    steps: int
    turns: int
    memory: bool = False

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.model}, {self.part}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """What takes turns."""
        return (*KINDS, *CACHED) if self.part == "head" and self.model != "mlp" else KINDS


@dataclass(frozen=True)
class Size:
    """How much is run; ``numbers``: of noise."""

    cases: tuple[Case, ...]
    numbers: int
    repeats: int


FULL = Size(
    (
        *(Case("mlp", part, 60, 15) for part in PARTS),
        *(Case("cnn", part, 5, 11, memory=part == "all") for part in PARTS),
        *(Case("resnet18", part, 2, 7, memory=True) for part in PARTS),
    ),
    11_177_538,
    9,
)
QUICK = Size(
    (Case("mlp", "adapters", 2, 2), Case("cnn", "head", 1, 2), Case("resnet18", "all", 1, 1, memory=True)), 10_000, 3
)


class _InTurn(UnitSampler):
    """Batches of the same size, one after the other: for the clock alone, privacy has none of it."""

    def __init__(self, records: int, size: int) -> None:
        super().__init__(np.arange(records), size / records, 1)
        self._size, self._start = size, 0

    def draw(self) -> Drawn:
        """The next ``size`` records."""
        index = (self._start + np.arange(self._size)) % self.records
        self._start += self._size
        return Drawn(index, np.ones(self._size))


def made(case: Case) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The network, and made-up records of one epoch with their labels."""
    torch.manual_seed(7)
    model, records = MODELS[case.model](), BATCH * case.steps
    train_part(model, case.part, rank=RANK, seed=7)
    shape = (records, 26) if case.model == "mlp" else (records, 3, PIXELS, PIXELS)
    return model.train(), torch.randn(shape), torch.arange(records) % 2


def step_of(kind: str, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Step:
    """What does the step of this number, on a network of its own."""
    model = copy.deepcopy(model)
    if kind in CACHED:
        inputs, model = features(model, inputs), head_of(model).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9)
    if kind in OPACUS:
        return _opacus(kind.removeprefix("Opacus "), model, optimizer, inputs, labels)
    if kind == NONE:
        return partial(_plain, model, optimizer, functional.cross_entropy, inputs, labels)
    sampler = _InTurn(len(inputs), BATCH)
    mode: Any = kind.removeprefix("cached ")
    private = DpSgd(
        model, optimizer, Mechanism(CLIP, 1.0, SIGMA, BATCH), sampler, mode=mode, at_once=BATCH, charge=lambda: None
    )
    weights = np.ones(len(inputs))

    def losses(index: np.ndarray) -> torch.Tensor:
        return functional.cross_entropy(model(inputs[index]), labels[index], reduction="none")

    return lambda _: private.step(weights, losses)


def _plain(model: Any, optimizer: Any, criterion: Any, inputs: torch.Tensor, labels: torch.Tensor, step: int) -> None:
    index = np.arange(step * BATCH, (step + 1) * BATCH) % len(inputs)
    optimizer.zero_grad(set_to_none=True)
    criterion(model(inputs[index]), labels[index]).backward()
    optimizer.step()


def _opacus(mode: str, model: nn.Module, optimizer: Any, inputs: torch.Tensor, labels: torch.Tensor) -> Step:
    """Opacus as it is, but for its loader, which is slower than an index and draws batches of different sizes."""
    from opacus import PrivacyEngine

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its generator is not meant for secrets
        found: Any = PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=loader, criterion=nn.CrossEntropyLoss(),
            noise_multiplier=SIGMA, max_grad_norm=CLIP, poisson_sampling=False, grad_sample_mode=mode,
        )  # fmt: skip
    criterion = nn.CrossEntropyLoss() if mode == "hooks" else found[2]
    return partial(_plain, found[0], found[1], criterion, inputs, labels)


def all_figures(size: Size, folder: Path) -> list[Figure]:
    """Every case, then noise; one thread."""
    del folder
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [figure for case in size.cases for figure in _figures(case)] + list(_noise(size))
    finally:
        torch.set_num_threads(threads)


def seconds_of(case: Case) -> dict[str, list[float]]:
    """Seconds of an epoch of each kind, in every turn; every second turn goes backwards."""
    given = made(case)
    steps = {kind: step_of(kind, *given) for kind in case.kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook")  # Opacus, where inputs need no gradients
        for step in steps.values():
            step(0)
        for turn in range(case.turns):
            for kind in list(steps)[:: 1 if turn % 2 == 0 else -1]:
                started = time.process_time()
                for number in range(case.steps):
                    steps[kind](number)
                seconds[kind].append(time.process_time() - started)
    return seconds


def _figures(case: Case) -> Iterator[Figure]:
    seconds, make = seconds_of(case), partial(Figure, SECTION, case.name)
    records = BATCH * case.steps
    yield make("none", "without privacy, one epoch", unit="s", **spread(seconds[NONE]),
               remark=f"{records} records, {BATCH} a batch, {case.turns} turns; seconds of the processor")  # fmt: skip
    for kind in case.kinds[1:]:
        aim = MOST_CACHED if kind in CACHED else MOST_OF_PART if kind in OURS and case.part != "all" else None
        how = "of the whole network; features were computed before, outside of the epoch" if kind in CACHED else ""
        yield make(f"{kind}_over", f"{kind} over an epoch without privacy", unit="",
                   **spread(_over(seconds[kind], seconds[NONE])),
                   most=None if case.model == "mlp" else aim, remark=how)  # fmt: skip
    for ours, theirs in zip(OURS, OPACUS, strict=True):
        yield make(f"{ours}_opacus", f"{ours} over {theirs}", unit="", **spread(_over(seconds[ours], seconds[theirs])),
                   most=1.0 if case.name == "resnet18, all" else None)  # fmt: skip
    words = ", ".join(f"{kind} {statistics.median(_over(seconds[kind], seconds[NONE])):.2f}" for kind in case.kinds[1:])
    say(f"{case.name}: {statistics.median(seconds[NONE]):.3f} s an epoch; over it: {words}")
    if case.memory:
        for kind in KINDS:
            found = script("private", "--model", case.model, "--part", case.part, "--kind", kind)
            yield make(f"{kind}_peak", f"{kind}, peak memory above the start", found["peak_mb"], "MB",
                       remark="two steps in a process of their own; network and records are there before")  # fmt: skip


def _over(own: Sequence[float], other: Sequence[float]) -> list[float]:
    return [one / two for one, two in zip(own, other, strict=True)]


def _noise(size: Size) -> Iterator[Figure]:
    """Noise as a step adds it, and as Opacus does; each has a sum to add it to."""
    values, sums = np.zeros(size.numbers), torch.zeros(size.numbers)
    ways: dict[str, Callable[[], object]] = {
        "torch": lambda: sums + torch.normal(0.0, 1.0, (size.numbers,)),
        "drawn": lambda: noise.gaussian(size.numbers, 1.0),
        "added": lambda: noise.add_gaussian(values, 1.0),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(size.repeats):
        for way, draw in ways.items():
            started = time.process_time()
            draw()
            seconds[way].append(time.process_time() - started)
    make = partial(Figure, SECTION, f"{size.numbers:,} numbers of noise")
    yield make("torch", "torch's own generator, float32, added", unit="s", **spread(seconds["torch"]))
    yield make("drawn", "ours over that, drawn alone", unit="", **spread(_over(seconds["drawn"], seconds["torch"])))
    ratios = spread(_over(seconds["added"], seconds["torch"]))
    yield make("added", "ours over that, added and rounded to its grid", unit="", **ratios, most=MOST_NOISE,
               remark="float64, AES-256-CTR with a key of the operating system")  # fmt: skip
    say(f"noise: {statistics.median(seconds['torch']):.3f} s with torch's generator, {ratios['value']:.2f} times that")


def main() -> None:
    """Print one JSON object: the peak of two steps above the memory before them, MB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), required=True)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--kind", choices=KINDS, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    step = step_of(given.kind, *made(Case(given.model, given.part, 2, 1)))
    before = rss("VmRSS")
    for number in range(2):
        step(number)
    print(json.dumps({"peak_mb": max(0.0, rss("VmHWM") - before)}))


if __name__ == "__main__":
    main()
