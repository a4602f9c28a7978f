# SPDX-License-Identifier: Apache-2.0
"""The comparator: the same local work in plain PyTorch. Nothing of FairFlare, nothing of FLARE is imported here.

Reads what ``spec.py`` wrote (tensors, batches, settings) and runs rounds of FlexFair: at every hospital a forward pass
over training and validation records, sums per group, then the optimiser steps of one round; then the weighted mean.

* ``--workers 1``: the hospitals one after the other, on one thread.
* ``--workers N``: the hospitals shared out over N processes of one thread each, largest first; two barriers a round,
  as in FLARE.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torchvision.models.resnet import BasicBlock, ResNet

FORWARD_BATCH = 256

#: Per penalty: total utility and number of records of each group.
GroupSums = list[torch.Tensor]


def network(settings: dict[str, Any]) -> nn.Module:
    """The plan's network, written down once more."""
    channels: int = settings["inputs"]
    kind = settings["model"]["name"]
    if kind == "resnet18":
        resnet: nn.Module = ResNet(
            BasicBlock, [2, 2, 2, 2], num_classes=2, norm_layer=lambda width: nn.GroupNorm(32, width)
        )
        return resnet
    layers: list[nn.Module] = []
    if kind == "mlp":
        for width in settings["model"]["hidden"]:
            layers += [nn.Linear(channels, width), nn.ReLU()]
            channels = width
        return nn.Sequential(*layers, nn.Linear(channels, 2))
    for width in settings["model"]["widths"]:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))


def optimizer(settings: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """The plan's optimiser."""
    given = settings["optimizer"]
    if given["name"] == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=given["lr"], momentum=given["momentum"], nesterov=given["nesterov"],
            weight_decay=given["weight_decay"],
        )  # fmt: skip
    return torch.optim.AdamW(
        model.parameters(), lr=given["lr"], betas=(given["beta1"], given["beta2"]), eps=given["epsilon"],
        weight_decay=given["weight_decay"],
    )  # fmt: skip


class Hospital:
    """One hospital's tensors, network and optimiser."""

    def __init__(self, settings: dict[str, Any], file: Path) -> None:
        arrays = {name: torch.from_numpy(values) for name, values in np.load(file).items()}
        self.settings = settings
        self.train_x, self.train_y = arrays["train_x"], arrays["train_y"]
        self.val_x, self.val_y = arrays["val_x"], arrays["val_y"]
        self.groups = {name: arrays[f"group_{name}"] for name, _ in settings["attributes"]}
        sizes = arrays["batch_sizes"].tolist()
        self.batches = torch.split(arrays["order"], sizes)
        self.flips = torch.split(arrays["flips"], sizes, dim=1) if "flips" in arrays else None
        self.model = network(settings)
        self.optimizer = optimizer(settings, self.model)
        self.class_weights = torch.tensor(settings["class_weights"])
        if settings["image"]:
            shape = (1, settings["inputs"], 1, 1)
            self.mean = torch.tensor(settings["image"]["mean"]).view(shape)
            self.std = torch.tensor(settings["image"]["std"]).view(shape)
        self.seconds: list[dict[str, float]] = []

    def prepare(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs as the network takes them."""
        return (inputs.float() / 255 - self.mean) / self.std if self.settings["image"] else inputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits of all records."""
        with torch.no_grad():
            return torch.cat([self.model(self.prepare(part)) for part in torch.split(inputs, FORWARD_BATCH)])

    def measure(self, vector: torch.Tensor) -> tuple[GroupSums, tuple[float, float]]:
        """Group sums of the training records; validation loss and sum of scores."""
        started = time.perf_counter()
        vector_to_parameters(vector.clone(), self.model.parameters())
        logits = self.forward(self.train_x)
        entropy = functional.cross_entropy(logits, self.train_y, reduction="none").clamp(max=self.settings["clip"])
        sums = []
        for penalty in self.settings["penalties"]:
            group, chosen = self.groups[penalty["attribute"]], self.chosen(penalty)
            size = dict(self.settings["attributes"])[penalty["attribute"]]
            total = torch.zeros(size).index_add_(0, group[chosen], entropy[chosen])
            sums.append(torch.stack([total, torch.bincount(group[chosen], minlength=size).float()]))
        logits = self.forward(self.val_x)
        loss = functional.cross_entropy(logits, self.val_y, reduction="sum").item()
        score = logits.softmax(dim=1)[:, 1].sum().item()
        self.seconds.append({"measure": time.perf_counter() - started})
        return sums, (loss, score)

    def chosen(self, penalty: dict[str, Any]) -> torch.Tensor:
        """Which training records a penalty looks at."""
        known = self.groups[penalty["attribute"]] >= 0
        return known if penalty["label"] < 0 else known & (self.train_y == penalty["label"])

    def coefficients(self, totals: GroupSums) -> torch.Tensor:
        """What FlexFair adds to the weight of each training record."""
        extra = torch.zeros(len(self.train_y))
        for penalty, (total, count) in zip(self.settings["penalties"], totals, strict=True):
            present = count > 0
            if present.sum() < 2:
                continue
            weight, risk = count / count.sum(), torch.where(present, total / count.clamp(min=1), 0.0)
            gap = torch.where(present, risk - weight @ risk, 0.0)
            per_record = 2 * (gap - weight * gap.sum()) / count.clamp(min=1)
            group = self.groups[penalty["attribute"]].clamp(min=0)
            scale = penalty["strength"] * self.settings["records"]
            extra += torch.where(self.chosen(penalty), scale * per_record[group], 0.0)
        low, high = self.settings["bounds"]
        return extra.clamp(min=low, max=high)

    def train(self, number: int, totals: GroupSums) -> tuple[torch.Tensor, float]:
        """One round's optimiser steps; the local model and the summed task loss."""
        started = time.perf_counter()
        extra, clip, loss_sum = self.coefficients(totals), self.settings["clip"], 0.0
        first, last = self.settings["steps"][number]
        for step in range(first, last):
            index = self.batches[step]
            inputs, labels = self.train_x[index], self.train_y[index]
            if self.flips is not None:
                across, down = self.flips[step].view(2, -1, 1, 1, 1)
                inputs = torch.where(across, inputs.flip(-1), inputs)
                inputs = torch.where(down, inputs.flip(-2), inputs)
            entropy = functional.cross_entropy(self.model(self.prepare(inputs)), labels, reduction="none")
            task = (self.class_weights[labels] * entropy).mean()
            loss = task + (extra[index] * entropy.clamp(max=clip)).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            loss_sum += task.item() * len(index)
        vector = parameters_to_vector(self.model.parameters()).detach()
        self.seconds[-1]["train"] = time.perf_counter() - started
        return vector * len(self.train_y), loss_sum


class Team:
    """Hospitals that work one after the other, on one thread."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        torch.set_num_threads(1)
        everything = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.hospitals = {name: Hospital({**everything, "steps": everything["steps"][name]}, folder / f"{name}.npz")
                          for name in names}  # fmt: skip

    def measure(self, vector: torch.Tensor) -> GroupSums:
        """Sums over this team's hospitals."""
        parts = [hospital.measure(vector)[0] for hospital in self.hospitals.values()]
        return [torch.stack(column).sum(dim=0) for column in zip(*parts, strict=True)]

    def train(self, number: int, totals: GroupSums) -> tuple[torch.Tensor, float]:
        """Sum of weighted local models, and of losses."""
        parts = [hospital.train(number, totals) for hospital in self.hospitals.values()]
        return torch.stack([vector for vector, _ in parts]).sum(dim=0), sum(loss for _, loss in parts)

    def seconds(self) -> dict[str, list[dict[str, float]]]:
        """Each hospital's own seconds, round by round."""
        return {name: hospital.seconds for name, hospital in self.hospitals.items()}


def _worker(pipe: Connection, folder: Path, names: Sequence[str]) -> None:
    team = Team(folder, names)
    pipe.send(True)
    while (task := pipe.recv()) is not None:
        pipe.send(getattr(team, task[0])(*task[1:]))


class Workers:
    """The same over several processes."""

    def __init__(self, folder: Path, shares: Sequence[Sequence[str]]) -> None:
        context = get_context("spawn")
        self.pipes, self.processes = [], []
        for names in shares:
            mine, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(theirs, folder, names), daemon=True)
            process.start()
            self.pipes.append(mine)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def ask(self, *task: Any) -> list[Any]:
        """One barrier: everybody gets the task, everybody answers."""
        for pipe in self.pipes:
            pipe.send(task)
        return [pipe.recv() for pipe in self.pipes]

    def measure(self, vector: torch.Tensor) -> GroupSums:
        """Sums over all hospitals."""
        return [torch.stack(column).sum(dim=0) for column in zip(*self.ask("measure", vector), strict=True)]

    def train(self, number: int, totals: GroupSums) -> tuple[torch.Tensor, float]:
        """Sum of weighted local models, and of losses."""
        parts = self.ask("train", number, totals)
        return torch.stack([vector for vector, _ in parts]).sum(dim=0), sum(loss for _, loss in parts)

    def seconds(self) -> dict[str, list[dict[str, float]]]:
        """Each hospital's own seconds, round by round."""
        return {name: seconds for part in self.ask("seconds") for name, seconds in part.items()}

    def end(self) -> None:
        """Let the processes go."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join(timeout=20)


def shared_out(records: dict[str, int], workers: int) -> list[list[str]]:
    """Hospitals for each worker: the largest first, to whoever has least."""
    shares: list[list[str]] = [[] for _ in range(workers)]
    for name in sorted(records, key=lambda name: -records[name]):
        min(shares, key=lambda share: sum(records[one] for one in share)).append(name)
    return [share for share in shares if share]


def run(
    vector: torch.Tensor,
    rounds: int,
    records: float,
    measure: Callable[[torch.Tensor], GroupSums],
    train: Callable[[int, GroupSums], tuple[torch.Tensor, float]],
) -> tuple[list[float], list[float]]:
    """Wall-clock seconds and mean task loss of every round."""
    seconds, losses = [], []
    for number in range(rounds):
        started = time.perf_counter()
        total, loss = train(number, measure(vector))
        vector = total / records
        seconds.append(time.perf_counter() - started)
        losses.append(loss / records)
    return seconds, losses


def main() -> None:
    """Print one JSON object: seconds and losses per round, seconds per hospital, parameters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = json.loads((given.folder / "settings.json").read_text(encoding="utf-8"))
    vector = torch.from_numpy(np.load(given.folder / "model.npy"))
    shares = shared_out(settings["hospitals"], given.workers)
    team: Team | Workers = (
        Team(given.folder, list(settings["hospitals"])) if given.workers == 1 else Workers(given.folder, shares)
    )
    seconds, losses = run(vector, given.rounds, settings["records"], team.measure, team.train)
    result = {
        "seconds": seconds, "losses": losses, "hospitals": team.seconds(), "shares": shares,
        "parameters": parameters_to_vector(network(settings).parameters()).numel(),
    }  # fmt: skip
    if isinstance(team, Workers):
        team.end()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
