# SPDX-License-Identifier: Apache-2.0
"""How well images are segmented, group by group, from sums and histograms of Dice alone.

Dice of a group is the mean over its images; of several labels, the mean of the labels' means. Gaps compare these means:
largest minus smallest, and the farthest group's distance to the mean over all images (the FlexFair paper's, algorithms
section 10). "Not estimable" is NaN, never 0.

Arrays may carry leading axes, such as bootstrap resamples. K groups, F labels without the background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairflare.fairness.groups import HEAD, Floats
from fairflare.fairness.metrics import Booleans, difference, gap_to_overall, ratio

#: An image whose Dice is below this is badly segmented: less than half of what is painted or there is both.
LOW = 0.5
METRICS = ("dice", "low_dice", "mean_loss")
GAPS = ("dice_difference", "dice_gap_to_overall")


@dataclass(frozen=True)
class ImageSums:
    """What metrics are computed from.

    Attributes
    ----------
    images
        float64 array (..., K): number of images.
    dice, low
        float64 arrays (..., K, F): sum of Dice, and images with a Dice below :data:`LOW`, for each label.
    """

    images: Floats
    dice: Floats
    low: Floats

    @classmethod
    def of(cls, table: Floats) -> ImageSums:
        """Sums of an ``EvaluationSums`` table (K, F, 4 + bins); every label has the same images."""
        bins = table.shape[-1] - HEAD
        low = table[..., HEAD : HEAD + round(LOW * bins)].sum(axis=-1)
        return cls(table[:, 0, 0], table[..., 3], low)

    @property
    def mean(self) -> Floats:
        """Dice of each group (..., K): the mean over images and labels."""
        return ratio(self.dice.mean(axis=-1), self.images)

    @property
    def low_share(self) -> Floats:
        """Share of (image, label) pairs with a low Dice (..., K)."""
        return ratio(self.low.mean(axis=-1), self.images)


def of_label(metric: str, label: str) -> str:
    """Name of a metric of one label, such as ``dice/lesion``."""
    return f"{metric}/{label}"


def image_metrics(sums: ImageSums, labels: Sequence[str]) -> dict[str, Floats]:
    """``dice`` and ``low_dice``, each (..., K); of several ``labels`` (without the background) also label by label."""
    found = {"dice": sums.mean, "low_dice": sums.low_share}
    for place, label in enumerate(labels if len(labels) > 1 else ()):
        found[of_label("dice", label)] = ratio(sums.dice[..., place], sums.images)
        found[of_label("low_dice", label)] = ratio(sums.low[..., place], sums.images)
    return found


def image_loss(table: Floats) -> Floats:
    """Mean loss of each group (K,): an image's loss is the same for all labels, so the first has it."""
    return ratio(table[:, 0, 2], table[:, 0, 0])


def image_gaps(sums: ImageSums, compared: Booleans) -> dict[str, Floats]:
    """Every gap of :data:`GAPS`, each (...,), between the groups ``compared`` (K,): those that the data have.

    Fewer than two, or one that a resample lost, give NaN.
    """
    total, images = sums.dice.mean(axis=-1)[..., compared], sums.images[..., compared]
    return {
        "dice_difference": difference(ratio(total, images)),
        "dice_gap_to_overall": gap_to_overall(total, images),
    }


def dice_gaps(table: Floats) -> Mapping[str, float]:
    """Every gap of a table (K, F, 4 + bins) as a number; NaN for fewer than two groups with images."""
    sums = ImageSums.of(table)
    return {name: float(gap) for name, gap in image_gaps(sums, sums.images > 0).items()}
