# SPDX-License-Identifier: Apache-2.0
"""Names and explanations that a doctor can read: every metric spelled out, none abbreviated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fairflare.evaluation.summary import Kind

NAMES: Mapping[str, str] = {
    "roc_auc": "Area under ROC curve",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "true_positive_rate": "Sensitivity (true positive rate)",
    "false_positive_rate": "False positive rate",
    "selection_rate": "Called positive (selection rate)",
    "precision": "Precision (positive predictive value)",
    "mean_score": "Mean score",
    "mean_score_of_positives": "Mean score of the truly positive",
    "mean_loss": "Mean loss (cross-entropy)",
    "demographic_parity_difference": "Demographic parity difference",
    "equal_opportunity_difference": "Equal opportunity difference",
    "equalized_odds_difference": "Equalized odds difference",
    "roc_auc_difference": "Area under ROC curve difference",
    "balanced_accuracy_difference": "Balanced accuracy difference",
    "accuracy_difference": "Accuracy difference",
    "demographic_parity_gap_to_overall": "Demographic parity gap to overall",
    "equal_opportunity_gap_to_overall": "Equal opportunity gap to overall",
    "macro_roc_auc": "Mean area under ROC curve over labels",
    "macro_balanced_accuracy": "Mean balanced accuracy over labels",
    "macro_roc_auc_difference": "Mean area under ROC curve difference",
    "macro_balanced_accuracy_difference": "Mean balanced accuracy difference",
    "dice": "Mean Dice",
    "low_dice": "Images with Dice below 0.5",
    "dice_difference": "Dice difference",
    "dice_gap_to_overall": "Dice gap to overall",
}

#: Columns of the table of groups: the metrics shown there, with names short enough for a column.
COLUMNS: Mapping[str, str] = {
    "roc_auc": "Area under\nROC curve",
    "balanced_accuracy": "Balanced\naccuracy",
    "true_positive_rate": "Sensitivity",
    "false_positive_rate": "False\npositive\nrate",
    "selection_rate": "Called\npositive",
    "accuracy": "Accuracy",
}

#: What a gap compares, in half a line.
MEANINGS: Mapping[str, str] = {
    "demographic_parity_difference": "share called positive",
    "equal_opportunity_difference": "sensitivity",
    "equalized_odds_difference": "sensitivity or false positive rate, the larger",
    "roc_auc_difference": "area under ROC curve",
    "balanced_accuracy_difference": "balanced accuracy",
    "accuracy_difference": "accuracy",
    "demographic_parity_gap_to_overall": "mean score, group against everybody",
    "equal_opportunity_gap_to_overall": "the same among the truly positive",
    "macro_roc_auc_difference": "area under ROC curve, mean over labels",
    "macro_balanced_accuracy_difference": "balanced accuracy, mean over labels",
    "dice_difference": "mean Dice",
    "dice_gap_to_overall": "mean Dice, group against everybody",
}

#: Metrics of which more is better; of gaps, losses and false positives less is. The others are neither.
HIGHER_IS_BETTER = frozenset(
    {"roc_auc", "balanced_accuracy", "accuracy", "true_positive_rate", "precision", "dice"}
    | {"macro_roc_auc", "macro_balanced_accuracy", "worst_group_macro_roc_auc", "worst_group_macro_balanced_accuracy"}
    | {"worst_group_roc_auc", "worst_group_balanced_accuracy", "worst_group_dice"}
)
LOWER_IS_BETTER = frozenset({"false_positive_rate", "mean_loss", "low_dice", *MEANINGS})

#: Criterion of a penalty -> metrics of the groups and gaps that it is meant to change.
CRITERIA: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "equal_accuracy": (("accuracy",), ("accuracy_difference",)),
    "demographic_parity": (
        ("selection_rate",),
        ("demographic_parity_difference", "demographic_parity_gap_to_overall"),
    ),
    "equal_opportunity": (
        ("true_positive_rate",),
        ("equal_opportunity_difference", "equal_opportunity_gap_to_overall"),
    ),
    "equalized_odds": (("true_positive_rate", "false_positive_rate"), ("equalized_odds_difference",)),
}
#: Shown for an attribute that no run penalises.
NO_CRITERION: tuple[tuple[str, ...], tuple[str, ...]] = (
    ("balanced_accuracy",),
    ("balanced_accuracy_difference",),
)


def _legend_gap(judge: str) -> str:
    return (
        "A difference is the largest minus the smallest value among the groups of an attribute; a gap to overall is "
        "how far the farthest group is from everybody. 0 means that the groups are treated alike, not that the model "
        f"is good: judge by {judge} and the worst group, never by a gap alone."
    )


_LEGEND_INTERVAL = "Below each value: its 95 % interval. Several images of one patient make it somewhat too narrow."
LEGEND_CHANGE = (
    "Changes are against the first column; within 0.005 they are called 'about equal'. A change between two single "
    "runs may be chance: repeat with other seeds."
)


def name_of(metric: str) -> str:
    """A metric or gap in words; of one of several labels (``METRIC/LABEL``), with the label."""
    name, _, label = metric.partition("/")
    return f"{NAMES[name]} of {label}" if label else NAMES[name]


def small(name: str) -> str:
    """A name inside a sentence."""
    return name if name.startswith("Dice") else name[:1].lower() + name[1:]


def worst_group_by(metric: str) -> str:
    """Name of the value of the worst group by ``metric``, such as "Worst group by balanced accuracy"."""
    return f"Worst group by {small(NAMES[metric])}"


@dataclass(frozen=True)
class Vocabulary:
    """How results of one kind are shown.

    Attributes
    ----------
    noun
        What is counted: records, or images.
    main
        The metric that a model is summed up by.
    columns
        Metrics in the table of groups, with names short enough for a column.
    worst_by
        Metrics by which a worst group is named.
    wide
        Metrics of which wide intervals are pointed out, in words.
    benefit
        Gap -> the metric whose worst group tells whether closing the gap helped anybody.
    criteria, no_criterion
        Criterion of a penalty -> metrics of the groups and gaps that it is meant to change; and what is shown for an
        attribute that no run penalises.
    legend_gap, legend_interval
        What a reader has to know about gaps and intervals.
    """

    noun: str
    main: str
    columns: Mapping[str, str]
    worst_by: tuple[str, ...]
    wide: Mapping[str, str]
    benefit: Mapping[str, str]
    criteria: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    no_criterion: tuple[tuple[str, ...], tuple[str, ...]]
    legend_gap: str
    legend_interval: str


_SEVERAL = (("macro_balanced_accuracy",), ("macro_balanced_accuracy_difference",))
_IMAGES = (("dice",), ("dice_difference", "dice_gap_to_overall"))

VOCABULARIES: Mapping[Kind, Vocabulary] = {
    "two_labels": Vocabulary(
        noun="records",
        main="roc_auc",
        columns=COLUMNS,
        worst_by=("roc_auc", "balanced_accuracy"),
        wide={"roc_auc": "area under the ROC curve", "balanced_accuracy": "balanced accuracy"},
        benefit={
            "roc_auc_difference": "roc_auc",
            "balanced_accuracy_difference": "balanced_accuracy",
            "accuracy_difference": "accuracy",
            "equal_opportunity_difference": "true_positive_rate",
            "equalized_odds_difference": "balanced_accuracy",
            "demographic_parity_difference": "balanced_accuracy",
        },
        criteria=CRITERIA,
        no_criterion=NO_CRITERION,
        legend_gap=_legend_gap("area under ROC curve, balanced accuracy"),
        legend_interval=_LEGEND_INTERVAL,
    ),
    "several_labels": Vocabulary(
        noun="records",
        main="macro_roc_auc",
        columns={
            "macro_roc_auc": "Mean area\nunder ROC curve\nover labels",
            "macro_balanced_accuracy": "Mean balanced\naccuracy\nover labels",
            "mean_loss": "Mean loss",
        },
        worst_by=("macro_roc_auc", "macro_balanced_accuracy"),
        wide={
            "macro_roc_auc": "mean area under the ROC curve over labels",
            "macro_balanced_accuracy": "mean balanced accuracy over labels",
        },
        benefit={
            "macro_roc_auc_difference": "macro_roc_auc",
            "macro_balanced_accuracy_difference": "macro_balanced_accuracy",
        },
        # What a criterion means for a label stands in the tables of that label.
        criteria=dict.fromkeys(CRITERIA, _SEVERAL),
        no_criterion=_SEVERAL,
        legend_gap=_legend_gap("area under ROC curve, balanced accuracy (each the mean over labels)"),
        legend_interval=f"{_LEGEND_INTERVAL} That of a mean over labels takes all labels to vary together, which makes "
        "it somewhat too wide.",
    ),
    "images": Vocabulary(
        noun="images",
        main="dice",
        columns={"dice": "Mean Dice", "low_dice": "Images with\nDice below 0.5", "mean_loss": "Mean loss"},
        worst_by=("dice",),
        wide={"dice": "mean Dice"},
        benefit={"dice_difference": "dice", "dice_gap_to_overall": "dice"},
        criteria=dict.fromkeys(CRITERIA, _IMAGES),
        no_criterion=_IMAGES,
        legend_gap=_legend_gap("mean Dice"),
        legend_interval=_LEGEND_INTERVAL,
    ),
}
#: How a model fails that has learnt nothing.
COLLAPSES: Mapping[str, str] = {
    "constant": "gives every record the same score",
    "all_background": "calls every pixel of every image background",
    "all_foreground": "paints one label over the whole of every image",
}
#: The same, short enough for a picture.
COLLAPSES_SHORT: Mapping[str, str] = {
    "constant": "same score for all",
    "all_background": "paints nothing",
    "all_foreground": "paints everything",
}


#: What a doctor meets on the report page, in plain words.
GLOSSARY: tuple[tuple[str, str], ...] = (
    ("Site", "A hospital. Its records stay with it; it sends sums and changes of the model."),
    ("Round", "Every site trains the common model on its own records; the changes are averaged into the next model."),
    ("Plan", "The reviewed file with everything a researcher chose. Its hash (SHA-256) changes with every letter."),
    ("Record", "One row of data, such as an image or a visit. A patient may have several."),
    ("Training, validation, test", "Records that the model learns from; that are watched meanwhile and that the "
     "threshold may be chosen on; and that nothing was chosen on. Judge by test records."),
    ("Group", "Everybody with the same value of a sensitive attribute, such as age over 60."),
    ("Positive", "The second of the task's two labels, such as 'malignant'. A record is called positive when the "
     "model's score reaches the threshold; whether it truly is positive, its label says."),
    ("Area under ROC curve", "How often a positive record has a higher score than a negative one. 0.5 is chance, 1 is "
     "perfect; it does not depend on the threshold."),
    ("Balanced accuracy", "Mean of sensitivity and of the share of negatives called negative. 0.5 for a model that "
     "says the same of everybody."),
    ("Sensitivity", "Of those who are positive, the share called positive."),
    ("False positive rate", "Of those who are negative, the share called positive."),
    ("Called positive (selection rate)", "Of all, the share called positive."),
    ("Precision", "Of those called positive, the share who are."),
    ("Accuracy", "Of all, the share called what they are."),
    ("Dice", "How well what the model paints covers what is there: twice the common area divided by the sum of both "
     "areas. 1 is perfect, 0 no overlap; where a label is neither there nor painted, it is 1."),
    ("Label against all others", "With more than two labels, each is judged as if it alone were positive; a mean over "
     "labels counts each of them alike, however rare."),
    ("Collapse", "A model that has learnt nothing: it says the same of every record, or paints every image with "
     "background or with one label. Its gaps are small and mean nothing."),
    ("Best on validation", "Of the models after each round, the one with the best value on validation data. A site "
     "keeps it beside the final one; this page judges the final one."),
    ("Loss, risk", "How wrong the scores are on average (cross-entropy; of images, plus one minus a soft Dice); 0 is "
     "perfect. A group's risk: its mean loss."),
    ("95 % interval", "Where the true value plausibly lies, given how few records there are."),
    ("Not estimable", "There is no number, for the reason given. It is not 0."),
    ("Worst group", "The group with the lowest value (of losses: the highest). A gap can close because others got "
     "worse, so look here first."),
    ("Demographic parity", "Groups are called positive equally often."),
    ("Equal opportunity", "Groups have the same sensitivity."),
    ("Equalized odds", "Groups have the same sensitivity and the same false positive rate."),
    ("Equal accuracy", "Groups have the same mean loss."),
    ("Penalised gap F", "In training, how far the farthest group's risk is from the mean risk. FlexFair aims at 0."),
    ("Penalty P, strength", "What training pays for differences between risks (the sum of their squares in the paper's "
     "form), times the plan's strength."),
    ("Baseline", "The run that the others are compared with: the first one."),
    ("Differential privacy", "Noise that bounds what anybody can learn about a single patient."),
)  # fmt: skip
