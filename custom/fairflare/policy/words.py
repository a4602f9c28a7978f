# SPDX-License-Identifier: Apache-2.0
"""A policy in plain words, for whoever answers for the data: what each field allows, forbids, and cannot prevent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fairflare.policy.compare import to_template
from fairflare.policy.kinds import KINDS, MEANINGS, WITH_PRIVACY
from fairflare.policy.site import SitePolicy


@dataclass(frozen=True)
class Said:
    """A field in words: what it allows, what it forbids, and what it cannot prevent ("": nothing to add)."""

    field: str
    allows: str
    forbids: str
    limits: str = ""


@dataclass(frozen=True)
class Section:
    """Fields that belong together."""

    title: str
    fields: tuple[Said, ...]


#: How data sets may differ that are to look alike.
_RELATIONS: Final = {"add_remove": "one patient more or less", "replace": "one patient in another's place"}

#: What stays possible under every policy, also the strictest.
NOT_PREVENTED: Final = (
    "Training itself is not bounded: rates, batches, weights of labels, strengths of penalties and the edges of groups "
    "are the plan's. Read a plan before you approve it, beside those that were approved before: two that differ by one "
    "year of age count that year.",
    "A trained model can remember single patients. Masks hide from the server which hospital an update came from, not "
    "what the finished model tells. Only differential privacy bounds that: for patients of training, in plans that "
    "have it. Sums of validation and test records are exact in every plan.",
    "What was sent cannot be called back. A policy that is changed, expires or is deleted stops a running job at the "
    "next message, and nothing that left before.",
    "The policy binds FairFlare on this machine. Whoever can change this machine's files or programs can change what "
    "it does; a signed approval shows who agreed to a plan, not that the machine is sound.",
    "It knows what the data are called, not what they are: that the data set and its columns hold what their names "
    "say, and nobody who objected, is for the hospital to see to.",
)


def explain(policy: SitePolicy) -> tuple[Section, ...]:
    """Every field of a policy in plain words, grouped."""
    return tuple(
        Section(title, tuple(Said(field, *say(policy)) for field, say in fields.items()))
        for title, fields in _SECTIONS.items()
    )


def kinds_in_words(policy: SitePolicy) -> Iterator[str]:
    """A sentence for each kind of numbers: whether it may leave, and what it is, with differential privacy too."""
    for kind, meaning in MEANINGS.items():
        word = "may leave" if policy.metrics is None or kind in policy.metrics else "never leaves"
        private = WITH_PRIVACY.get(kind)
        yield f"{kind}: {word}: {meaning}" + (f"; with differential privacy: {private}" if private else "")


def against_template(policy: SitePolicy) -> tuple[str, ...]:
    """Sentences that compare a policy with the nearest template."""
    name, relations = to_template(policy)
    lines = [f"Nearest template: {name}."]
    for relation, words in (("stricter", "Stricter than"), ("weaker", "Weaker than"), ("different", "Other than")):
        fields = [field for field, found in relations.items() if found == relation]
        if fields:
            lines.append(f"{words} {name} in {', '.join(fields)}.")
    if len(lines) == 1:
        lines.append(f"It is as strict as {name} in every field.")
    return tuple(lines)


def _list(words: Sequence[str] | None, anything: str, nothing: str) -> tuple[str, str]:
    """What a list of names allows and forbids."""
    if words is None:
        return anything, "nothing"
    return ", ".join(words) or nothing, "everything else"


def _store(policy: SitePolicy) -> tuple[str, ...]:
    return (
        f"what must last lies in {policy.store}: what was revealed of each data set, and every decision",
        "a folder inside FLARE's workspace, or one that other users of the machine can write to",
        "a copy of an older state put back there makes the site forget; the other hospitals find that out",
    )


def _package(policy: SitePolicy) -> tuple[str, ...]:
    if policy.package is None:
        return "any version of the package, changed or not", "nothing", "a wheel that was swapped on its way"
    return (
        f"the package whose files have the digest {policy.package}",
        "every other version, and one of which a file was changed",
        "the package looks at itself: whoever may write its files can make it say anything",
    )


def _identities(policy: SitePolicy) -> tuple[str, ...]:
    if policy.identities == "kit":
        return "hospitals whose start-up kit the project's root certificate vouches for", "anybody without a kit"
    return "keys that nobody vouches for, as in a simulation", "nothing", "anybody can pose as a hospital"


def _peers(policy: SitePolicy) -> tuple[str, ...]:
    if policy.peers is None:
        limits = "whoever holds the project's root key can pose as any hospital"
        return "any hospital of the project", "nothing", limits
    names = ", ".join(policy.peers)
    return (
        f"only {names}, each with the key that is written here",
        "every other hospital, and another key",
        "a hash that was not compared by telephone proves nothing",
    )


def _least_sites(policy: SitePolicy) -> tuple[str, ...]:
    sites = policy.least_sites
    return (
        f"sums of {sites} hospitals or more",
        f"sums of fewer than {sites}" if sites > 1 else "nothing: a sum may be of this hospital alone",
        "hospitals that work together can take their own parts out of a sum",
    )


def _names(field: str, what: str, limits: str = "") -> Callable[[SitePolicy], tuple[str, ...]]:
    def say(policy: SitePolicy) -> tuple[str, ...]:
        return *_list(getattr(policy, field), f"any {what}", f"no {what}"), limits

    return say


def _protection(policy: SitePolicy) -> tuple[str, ...]:
    masked = [name for name in ("update", "statistics") if getattr(policy.protection, name) != "none"]
    if not masked:
        return "plans whose server sees this hospital's own numbers", "nothing", "the server may keep what it sees"
    sums = "sums only"
    if policy.protection.statistics == "ckks":
        sums += ", and of training records by group not even those (statistics 'ckks')"
    return (
        f"plans that mask {' and '.join(masked)}: the server sees {sums}",
        f"plans that send {' or '.join(masked)} in clear",
        "a sum still tells something about every hospital in it",
    )


def _colluders(policy: SitePolicy) -> tuple[str, ...]:
    return (
        f"masks that hold although {policy.colluders} of the hospitals work together with the server",
        "masks that hold against fewer",
        "more of them can open this hospital's part",
    )


def _weight_unit(policy: SitePolicy) -> tuple[str, ...]:
    if policy.weight_unit == 1:
        return "the exact number of training records as the weight of an update", "nothing"
    return (
        f"the number of training records, rounded to {policy.weight_unit} or more, as the weight of an update",
        "finer weights: they are seen when a hospital drops out",
    )


def _cells_minimum(policy: SitePolicy) -> tuple[str, ...]:
    least = policy.cells_minimum
    if least < 2:
        return "sums of groups of any size here", "nothing", "a group of one patient is that patient"
    return (
        f"sums of groups with {least} records or more here",
        f"sums of groups with 1 to {least - 1} records",
        "it counts records, not patients: one patient may have several",
    )


def _cells_sites(policy: SitePolicy) -> tuple[str, ...]:
    return (
        f"sums of groups that {policy.cells_sites} hospitals or more have",
        "sums of groups that fewer have" if policy.cells_sites > 1 else "nothing",
    )


def _cohort_changes(policy: SitePolicy) -> tuple[str, ...]:
    return (
        f"exact sums of a data set to the first set of hospitals, and to {policy.cohort_changes} other sets",
        "more sets: the difference of two sums is the sum of the hospitals in which they differ",
        "it knows sets of hospitals, not versions of data: two jobs on changed data show what changed",
    )


def _metrics(policy: SitePolicy) -> tuple[str, ...]:
    kinds = KINDS if policy.metrics is None else policy.metrics
    return ", ".join(kinds) or "no numbers", ", ".join(kind for kind in KINDS if kind not in kinds) or "nothing"


def _most(field: str, what: str, limits: str = "") -> Callable[[SitePolicy], tuple[str, ...]]:
    def say(policy: SitePolicy) -> tuple[str, ...]:
        most = getattr(policy, field)
        if most is None:
            return f"any number of {what}", "nothing", limits
        return f"at most {most} {what}", f"more {what}", limits

    return say


def _differential_privacy(policy: SitePolicy) -> tuple[str, ...]:
    most = policy.differential_privacy
    if most is None:
        return (
            "plans with and without differential privacy, at any cost; what is spent of a data set is counted all the "
            "same",
            "nothing",
            "what a model remembers of single patients",
        )
    return (
        f"plans with differential privacy, until together they have cost epsilon {most.epsilon:g}, delta "
        f"{most.delta:g} of a data set, for {_RELATIONS[most.relation]}",
        "plans without it, and every round that would cost more than is left, for ever: nothing is given back",
        "it is about patients of training: sums of validation and test records stay exact; of a patient in several "
        "data sets, the costs add up",
    )


def _plans(policy: SitePolicy) -> tuple[str, ...]:
    if policy.plans is None:
        return "any plan within this policy", "nothing", "whoever may choose plans may ask again"
    signed = "plans with a signed approval of this hospital"
    if policy.approvals == "signed":
        return signed, "every other plan"
    return f"{len(policy.plans)} plans that are listed by their hash, and {signed}", "every other plan"


def _approvals(policy: SitePolicy) -> tuple[str, ...]:
    if policy.approvals == "signed":
        return (
            "approvals that are signed with the key of this hospital's start-up kit",
            "approvals that are only written into the policy, or were signed under another policy",
            "it shows that somebody with the kit's key agreed; the name in it is what they typed",
        )
    return (
        "approvals written into the policy, and signed ones",
        "nothing",
        "whoever can edit the policy can approve a plan",
    )


def _expires(policy: SitePolicy) -> tuple[str, ...]:
    if policy.expires is None:
        return "jobs without an end in time", "nothing", "nobody is made to look at the policy again"
    return f"jobs until {policy.expires} (UTC)", "every job after that day", "a clock that is put back"


_SECTIONS: Final[dict[str, dict[str, Callable[[SitePolicy], tuple[str, ...]]]]] = {
    "Who takes part": {
        "identities": _identities, "peers": _peers, "least_sites": _least_sites, "cohort_changes": _cohort_changes,
    },
    "What may be learnt, and from what": {
        "tasks": _names("tasks", "kind of task"),
        "data_sets": _names("data_sets", "data set of the catalogue"),
        "attributes": _names("attributes", "attribute by which patients are grouped"),
        "features": _names("features", "column of a table", "pixels of images are not columns"),
        "models": _names("models", "network of this version"),
        "methods": _names("methods", "method of this version"),
        "most_rounds": _most("most_rounds", "rounds of one plan", "how much is learnt in one of them"),
    },
    "What may leave, and how it is protected": {
        "metrics": _metrics, "protection": _protection, "colluders": _colluders, "weight_unit": _weight_unit,
        "cells_minimum": _cells_minimum, "cells_sites": _cells_sites,
        "most_score_bins": _most(
            "most_score_bins", "bins of a histogram of scores", "a bin can hold one record of a group that is shown"
        ),
        "differential_privacy": _differential_privacy, "consents": _names("consents", "consent that a plan asks for"),
    },
    "Who approves, and until when": {"plans": _plans, "approvals": _approvals, "expires": _expires},
    "With what, and where": {"package": _package, "store": _store},
}  # fmt: skip
