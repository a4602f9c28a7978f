# SPDX-License-Identifier: Apache-2.0
"""Did joining help this site's own patients, and whom did it hurt? Two models on the same records, group by group.

Scores of single records are compared, which only the site itself has: what comes out of here stays there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fairflare.evaluation.statistics import (
    RESAMPLES,
    Metric,
    PairedBootstrap,
    auc_metric,
    balanced_accuracy_metric,
    mean_metric,
    paired_bootstrap,
)
from fairflare.evaluation.words import NAMES, small
from fairflare.fairness.groups import EVERYBODY, Floats, Integers
from fairflare.fairness.metrics import Booleans

#: With fewer patients in a group nothing is said about it: an interval of so few is too narrow to be trusted.
LEAST_PATIENTS = 20
#: The same for records of a label, where the metric needs some of each.
LEAST_OF_LABEL = 5
#: Differences that rounding alone can make.
_ROUNDING = 1e-9

CAUTION = (
    "These numbers are this site's own, from its own patients, and were not protected by any sum over sites. Single "
    "patients may shine through small groups. Do not send this on."
)

Verdict = Literal["helped", "hurt", "no clear difference", "cannot be judged"]
VERDICTS: tuple[Verdict, ...] = ("helped", "hurt", "no clear difference", "cannot be judged")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one model says of each record; what a task does not have is ``None``.

    Attributes
    ----------
    probability
        Of each label, float64 (n, C).
    called
        Place of the label that it decides for, int64 (n,).
    dice
        Of each image, the mean over labels, float64 (n,).
    """

    probability: Floats | None = None
    called: Integers | None = None
    dice: Floats | None = None


@dataclass(frozen=True)
class Judged:
    """One group by one metric: ``second - first`` and what may be said of it; ``why`` it cannot be judged, or ""."""

    attribute: str
    group: str
    metric: str
    result: PairedBootstrap
    verdict: Verdict
    why: str

    @property
    def who(self) -> str:
        """The group inside a sentence."""
        return "everybody" if self.attribute == EVERYBODY else f"{self.attribute} {self.group}"


@dataclass(frozen=True)
class Worth:
    """Two models compared: their names, what is measured by (the first metric is the main one), and each group."""

    first: str
    second: str
    metrics: tuple[str, ...]
    rows: tuple[Judged, ...]

    def by_metric(self, metric: str) -> tuple[Judged, ...]:
        """Everybody, then every group in the order of the plan."""
        return tuple(row for row in self.rows if row.metric == metric)


#: Which records are in a group: (attribute, group) -> bool (n,).
Groups = Mapping[tuple[str, str], Booleans]


def group_masks(
    names: Mapping[str, Sequence[str]], places: Mapping[str, Integers], records: int
) -> dict[tuple[str, str], Booleans]:
    """Everybody, then each group of ``names`` (attribute -> groups), whose place is in ``places`` (n,)."""
    masks = {(EVERYBODY, EVERYBODY): np.ones(records, dtype=np.bool_)}
    for attribute, groups in names.items():
        masks |= {(attribute, group): places[attribute] == k for k, group in enumerate(groups)}
    return masks


def metrics_of(predictions: Predictions, labels: Integers) -> dict[str, Metric]:
    """Metrics of one model, the main one first: areas and accuracies from records, not from histograms."""
    if predictions.dice is not None:
        return {"dice": mean_metric(predictions.dice)}
    if predictions.probability is None or predictions.called is None:
        raise TypeError("got neither Dice nor probabilities and calls, expected one of them")
    probability, called = predictions.probability, predictions.called
    if probability.shape[1] == 2:
        return {
            "roc_auc": auc_metric(probability[:, 1], labels == 1),
            "balanced_accuracy": balanced_accuracy_metric(called == 1, labels == 1),
        }
    areas = [auc_metric(probability[:, label], labels == label) for label in range(probability.shape[1])]
    return {
        "macro_roc_auc": lambda places: float(np.mean([area(places) for area in areas])),
        "accuracy": mean_metric((called == labels).astype(np.float64)),
    }


def compare_models(
    names: tuple[str, str],
    first: Predictions,
    second: Predictions,
    labels: Integers,
    patients: Sequence[str],
    groups: Groups,
    *,
    resamples: int = RESAMPLES,
    progress: Callable[[], None] = lambda: None,
) -> Worth:
    """How the second model differs from the first, for everybody and for each group.

    Parameters
    ----------
    names
        What to call the two.
    first, second
        On the same n records.
    labels
        True labels, int64 (n,).
    patients
        Whose record each is: patients are what is drawn anew for the intervals.
    groups
        :func:`group_masks`.
    resamples
        Of the bootstrap.
    progress
        Called after each group and metric.
    """
    ones, twos = metrics_of(first, labels), metrics_of(second, labels)
    whose = np.array(patients, dtype=np.str_)
    counted = None if first.probability is None else first.probability.shape[1]
    rows = []
    for (attribute, group), chosen in groups.items():
        for metric, one in ones.items():
            needs = counted if metric != "accuracy" else None
            few = "" if needs is None else _few_of_label(labels[chosen], needs)
            result = paired_bootstrap(one, twos[metric], whose, chosen=chosen, resamples=resamples)
            rows.append(Judged(attribute, group, metric, result, *_verdict(result, few)))
            progress()
    return Worth(*names, tuple(ones), tuple(rows))


def _few_of_label(labels: Integers, count: int) -> str:
    fewest = int(np.bincount(labels, minlength=count).min())
    return f"fewer than {LEAST_OF_LABEL} records of a label" if fewest < LEAST_OF_LABEL else ""


def _verdict(result: PairedBootstrap, few: str) -> tuple[Verdict, str]:
    if result.records == 0:
        return "cannot be judged", "no records"
    if result.patients < LEAST_PATIENTS:
        return "cannot be judged", f"fewer than {LEAST_PATIENTS} patients"
    if few:
        return "cannot be judged", few
    if result.difference is None:
        return "cannot be judged", "not estimable"
    if result.low is None or result.high is None:
        if abs(result.difference) < _ROUNDING:
            return "no clear difference", ""
        return "cannot be judged", "no interval: too few records that differ"
    if result.low > 0:
        return "helped", ""
    return ("hurt", "") if result.high < 0 else ("no clear difference", "")


def sentences(worth: Worth) -> Iterator[str]:
    """The answer, one sentence for each metric: whom it helped, whom it hurt, and who cannot be judged."""
    for metric in worth.metrics:
        found: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
        reasons: dict[str, list[str]] = {}
        for row in worth.by_metric(metric):
            if row.verdict == "cannot be judged":
                reasons.setdefault(row.why, []).append(f"{row.who} ({row.result.patients})")
            else:
                found[row.verdict].append(_said(row))
        parts = [
            f"helped {', '.join(found['helped']) or 'nobody clearly'}",
            f"hurt {', '.join(found['hurt']) or 'nobody clearly'}",
        ]
        if found["no clear difference"]:
            parts.append(f"made no clear difference for {', '.join(found['no clear difference'])}")
        unknown = "".join(
            f" Cannot be judged, {why} (number of patients in brackets): {', '.join(who)}."
            for why, who in reasons.items()
        )
        name = small(NAMES[metric])
        yield f"By {name}, {worth.second} instead of {worth.first} {'; '.join(parts)}.{unknown}"


def _said(row: Judged) -> str:
    result = row.result
    if row.verdict in ("helped", "hurt") and None not in (result.difference, result.low, result.high):
        return f"{row.who} ({result.difference:+.3f}, {result.low:+.3f} to {result.high:+.3f})"
    return row.who


def chance(worths: Sequence[Worth]) -> str:
    """What chance alone would make of so many comparisons."""
    judged = sum(row.verdict != "cannot be judged" for worth in worths for row in worth.rows)
    if judged == 0:
        return "No difference could be judged: this site has too few test patients for it."
    return (
        f"{judged} differences are judged here, each by a 95 % interval: were there no difference at all, about "
        f"{judged / 20:.1f} of them would still look helped or hurt by chance."
    )
