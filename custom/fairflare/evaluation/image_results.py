# SPDX-License-Identifier: Apache-2.0
"""Results of a segmentation: Dice of each group's images, how many are badly segmented, and gaps between groups.

Sums do not say how the Dice of an image's labels vary together. The interval of the mean over several labels takes them
to vary as one (the image that is worst by one label is worst by all), which is the widest that the sums allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fairflare.evaluation.statistics import Resamples, bin_values, draw_cells, percentile_interval, wilson
from fairflare.evaluation.summary import AttributeSummary, GroupSummary, Value
from fairflare.evaluation.values import ONLY_THE_SUM, absent, gap_of, value_of, worst_of
from fairflare.fairness.groups import HEAD, Floats
from fairflare.fairness.images import GAPS, LOW, ImageSums, image_gaps, image_loss, image_metrics

WORST_BY = ("dice",)


@dataclass(frozen=True)
class ImageCells:
    """Images that are alike: ``count`` (K, J), and Dice and "it is low" of each label, (K, J, F)."""

    count: Floats
    dice: Floats
    low: Floats

    @classmethod
    def of(cls, table: Floats) -> ImageCells:
        """From a table (K, F, 4 + bins): images in the order of their Dice, which every label shares."""
        parts = [_alike(group) for group in table]
        longest = max(len(count) for count, _, _ in parts)
        return cls(*(np.stack([_padded(one, longest) for one in same]) for same in zip(*parts, strict=True)))

    def sums(self, count: Floats) -> ImageSums:
        """Sums of so many images of each kind, ``count`` (..., K, J)."""
        dice, low = (np.einsum("...kj,kjf->...kf", count, one) for one in (self.dice, self.low))
        return ImageSums(count.sum(axis=-1), dice, low)


def _padded(rows: Floats, length: int) -> Floats:
    """With rows of zeros below."""
    return np.concatenate([rows, np.zeros((length - len(rows), *rows.shape[1:]))])


def _alike(group: Floats) -> tuple[Floats, Floats, Floats]:
    """Count (J,), Dice and low (J, F) of one group (F, 4 + bins), whose labels all have the same images."""
    used = np.arange(group.shape[-1] - HEAD)
    value = bin_values(group, used)
    below = np.cumsum(group[:, HEAD:], axis=-1)
    ends = np.unique(below[below > 0])
    place = np.stack([np.searchsorted(label, ends) for label in below], axis=-1)
    dice = np.take_along_axis(value, place.T, axis=-1).T
    return np.diff(ends, prepend=0.0), dice, (place < round(LOW * used.size)).astype(np.float64)


def bootstrap_images(table: Floats, labels: Sequence[str], *, seed: Sequence[int], resamples: int) -> Resamples:
    """Metrics and gaps of data sets drawn with replacement from the images of one attribute (K, F, 4 + bins)."""
    cells, compared = ImageCells.of(table), table[:, 0, 0] > 0
    metrics: dict[str, list[Floats]] = {}
    gaps: dict[str, list[Floats]] = {}
    for drawn in draw_cells(cells.count, np.random.default_rng(seed), resamples):
        sums = cells.sums(drawn)
        for name, values in image_metrics(sums, labels).items():
            metrics.setdefault(name, []).append(values)
        for name, values in image_gaps(sums, compared).items():
            gaps.setdefault(name, []).append(values)
    return Resamples(
        {name: np.concatenate(parts) for name, parts in metrics.items()},
        {name: np.concatenate(parts) for name, parts in gaps.items()},
    )


@dataclass(frozen=True)
class ImageTable:
    """One attribute's sums (K, F, 4 + bins), with all that is derived from them."""

    attribute: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    withheld: str
    table: Floats
    sums: ImageSums
    metrics: Mapping[str, Floats]
    resamples: Resamples

    @classmethod
    def of(
        cls,
        attribute: str,
        names: tuple[str, ...],
        labels: tuple[str, ...],
        withheld: str,
        table: Floats,
        *,
        seed: tuple[int, ...],
        resamples: int,
    ) -> ImageTable:
        """Derive everything; ``labels`` are those without the background."""
        sums = ImageSums.of(table)
        drawn = bootstrap_images(table, labels, seed=seed, resamples=resamples)
        return cls(attribute, names, labels, withheld, table, sums, image_metrics(sums, labels), drawn)

    def summary(self, everybody: float) -> AttributeSummary:
        """All results by this attribute; ``everybody`` is the number of all images."""
        groups = tuple(GroupSummary(name, self._images(k), None, dict(self._group(k))) for k, name in
                       enumerate(self.names))  # fmt: skip
        known = self.sums.images > 0
        gaps = image_gaps(self.sums, known)
        images = float(self.sums.images.sum())
        return AttributeSummary(
            attribute=self.attribute,
            groups=groups,
            gaps={name: gap_of(float(gaps[name]), self.resamples.gaps[name], images, [known], self.names)
                  for name in GAPS},
            worst={metric: found for name in WORST_BY
                   for metric, found in worst_of(name, self.metrics[name], self.resamples.metrics[name], groups)},
            missing=round(max(everybody - images, 0.0)),
            missing_positives=None,
        )  # fmt: skip

    def _images(self, k: int) -> int:
        return round(float(self.sums.images[k]))

    def _group(self, k: int) -> Iterator[tuple[str, Value]]:
        images = float(self.sums.images[k])
        for name, values in self.metrics.items():
            value = float(values[k])
            if np.isnan(value):
                yield name, absent(images, self._why_not())
            elif name.startswith("low_dice"):
                # Of several labels it is the mean share: their results of one image are not counted as several trials.
                yield name, value_of(value, wilson(value * images, images), images)
            else:
                yield name, value_of(value, percentile_interval(self.resamples.metrics[name][:, k]), images)
        loss = float(image_loss(self.table)[k])
        known = not np.isnan(loss)
        yield "mean_loss", Value(loss, None, None, round(images), ONLY_THE_SUM) if known else absent(0, self._why_not())

    def _why_not(self) -> str:
        return f"no image: {self.withheld}" if self.withheld else "no image"
