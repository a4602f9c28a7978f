# SPDX-License-Identifier: Apache-2.0
"""What the page of a rehearsal says, the same for terminal and HTML: a verdict, then parts of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fairflare.evaluation.rehearsal import HeldCell, Leaving, Rehearsal, TaskTime, Work
from fairflare.evaluation.units import duration, size
from fairflare.fairness.groups import EVERYBODY, HOSPITAL

CAUTION = (
    "This page holds numbers of this site's own patients, small ones too, which no sum protects. It is for whoever "
    "decides here. Do not send it on."
)
QUICK = (
    "Quick: only a few steps and records were tried, and times are scaled from them. Leave --quick out before the plan "
    "is approved."
)
#: What each vector means.
MEANINGS: Mapping[str, str] = {
    "counts": "How many records this site has for training, validation and test, and how many opted out; with masks "
    "also the rounded number that weighs its update.",
    "cells": "For each group of patients a yes or no: are there enough records of it here?",
    "vocabulary": "How many records there are of each split, group and label.",
    "present_records": "How many training records are behind the sums of the same message.",
    "risk_sums": "For each group that the plan compares or weighs, on training records: sum of its losses, "
    "probabilities or decisions (or none), number of its records, and that this site has it.",
    "distances": "How far this site's fairness, or accuracy, is from that of all sites together; and the number 1.",
    "batch_sums": "The same as risk_sums, for the records of one batch.",
    "validation_sums": "For everybody and for each group, on validation records: numbers of records, sums of losses "
    "and scores, and a histogram of scores.",
    "test_sums": "The same as validation_sums, on test records.",
    "validation_predictions": "For each structure, on validation images: how many images, and how many in which it is "
    "found nowhere, or everywhere.",
    "test_predictions": "The same as validation_predictions, on test images.",
    "update": "By how much one round of training here changed each parameter of the model (FedNova: divided by how far "
    "this site's steps lead; FairFed: weighed by a number that only this site knows).",
    "controls": "By how much this site's control variate changes: the mean gradient of its last round. It travels in "
    "the update's own sum.",
    "normalizer": "How far this site's training steps lead, beside those of a site of mean size. It travels in the "
    "update's own sum.",
    "training_sums": "Number of training records, sum of their losses in training, and how many were weighed by the "
    "fairness method.",
}
#: What some mean instead in a plan with differential privacy.
PRIVATE_MEANINGS: Mapping[str, str] = {
    "counts": "How many patients this site has for training, with noise; how many records for validation and test, "
    "exactly; a 0 instead of how many opted out; and the rounded noised number that weighs its update.",
    "cells": "For each group of patients a yes or no: are there enough here? Of training by numbers with noise.",
    "risk_sums": "For each group that the plan compares, on training patients: sum of their cut-off losses and their "
    "number, both with noise, and that this site has it.",
    "update": "By how much one round of private training here changed each parameter of the model: each patient is "
    "hidden by noise.",
}
#: What a site does in each task.
TASKS: Mapping[str, str] = {
    "join": "load the records, say that this site takes part",
    "session": "agree on keys with the other sites",
    "prepare": "count records and groups",
    "measure": "measure groups and validation records",
    "compare": "work out how far this site is from all",
    "step": "one batch, in lock step with all sites",
    "train": "train one round",
    "train_alone": "measure and train one round in one trip",
    "confirm": "agree on whose updates are summed",
    "unmask": "help to take the masks out of the sum",
    "evaluate": "the final evaluation",
    "finish": "keep the models and the run's record",
}
#: The first two columns are words.
_READ = frozenset({0, 1})
_TYPES = {"float32": "32-bit decimals", "float64": "64-bit decimals"}


@dataclass(frozen=True)
class Grid:
    """A table of texts; ``text``: places of the columns that are read, and not compared."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Part:
    """A heading, sentences, points of a list, and tables."""

    heading: str
    sentences: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One line of the verdict: what was asked, whether it is as it should be (``None``: not known), and words."""

    what: str
    good: bool | None
    words: str

    @property
    def tag(self) -> str:
        """Such as "yes"."""
        return "open" if self.good is None else "yes" if self.good else "no"


def title(found: Rehearsal) -> str:
    """The name of the page."""
    return f"Rehearsal of {found.plan.name} at {found.site}"


def verdict(found: Rehearsal) -> str:
    """The one sentence that matters."""
    if not found.refusals:
        return "This plan would run here" + ("." if found.policy else ", as far as can be said without a policy.")
    codes = ", ".join(dict.fromkeys(one.code for one in found.refusals))
    only = [one for one in found.refusals if one.code.startswith("FF-POLICY")] == list(found.refusals)
    if only and found.policy is not None and not found.policy.violations:
        return f"This plan would run here once this site approves it. Until then it is refused: {codes}."
    return f"This plan would NOT run here: {codes}."


def answers(found: Rehearsal) -> list[Answer]:
    """The verdict line by line."""
    return [
        _policy_answer(found),
        *_approval_answer(found),
        _data_answer(found),
        _work_answer(found),
        _clear_answer(found),
    ]


def _policy_answer(found: Rehearsal) -> Answer:
    if found.policy is None:
        return Answer("Policy", None, "No policy was given, so nothing was compared with it: add --policy.")
    count = len(found.policy.violations)
    if count:
        return Answer(
            "Policy", False, f"The policy forbids the plan for {count} reason{'s' * (count > 1)}, listed below."
        )
    return Answer("Policy", True, "Whatever the plan asks for is within this site's policy.")


def _approval_answer(found: Rehearsal) -> Iterator[Answer]:
    if found.policy is None:
        return
    words = {
        "given": (True, "This site has approved the plan."),
        "missing": (False, "This site has not approved the plan. This page is to help it decide."),
        "not asked for": (None, "The policy lets any plan run that is within it: nobody has to approve one."),
    }
    yield Answer("Approval", *words[found.policy.approval])


def _data_answer(found: Rehearsal) -> Answer:
    errors, warnings = (sum(one.severity == kind for one in found.data) for kind in ("error", "warning"))
    if errors:
        return Answer("Data", False, f"{errors} error{'s' * (errors > 1)} would stop the job here, listed below.")
    also = f" {warnings} warning{'s' * (warnings > 1)} below." if warnings else ""
    return Answer("Data", True, f"The records can be read, and nothing in them would stop the job.{also}")


def _work_answer(found: Rehearsal) -> Answer:
    if found.work is None:
        why = f": {found.failure.code}" if found.failure else ", because of the data"
        return Answer("Work", False if found.failure else None, f"No round could be tried{why}.")
    late = [one.task for one in found.work.times if one.seconds > found.plan.deadline]
    if late:
        return Answer("Work", False, f"Too slow for the plan's deadline: {', '.join(late)}.")
    whole = duration(found.work.seconds(found.plan.rounds))
    return Answer(
        "Work",
        True,
        f"About {whole} of work for the whole job, and about {size(found.work.peak_bytes)} of memory at its peak.",
    )


def _clear_answer(found: Rehearsal) -> Answer:
    if found.plan.masked:
        return Answer("Masks", True, f"The server sees sums over the sites only. Tried for {found.sites} sites.")
    return Answer("Masks", False, "NONE. Every number of this site leaves in clear: the server sees them one by one.")


def parts(found: Rehearsal) -> list[Part]:
    """The page below its verdict."""
    result = [_findings(found), _leaving(found), *_told(found)]
    if found.work is not None:
        result += [_cells(found, found.work), _time(found, found.work), _memory(found, found.work)]
    return [part for part in result if part.sentences or part.points or part.grids] + [_about(found)]


# ------------------------------------------------------------------------------------------------------------ findings


def _findings(found: Rehearsal) -> Part:
    told = [one for one in found.data if one.severity == "info"]
    texts: dict[tuple[str, str, str], list[str]] = {}
    for one in (*found.refusals, *found.warnings, *told):
        texts.setdefault((one.code, one.severity, one.next_step), []).append(one.text)
    rows = tuple((code, bad, "; ".join(said), step) for (code, bad, step), said in texts.items())
    heads = ("Code", "How bad", "What was found", "Next step")
    grids = (Grid("What policy, data and clock have to say", heads, rows, frozenset(range(4))),) if rows else ()
    return Part("What was found", grids=grids)


# --------------------------------------------------------------------------------------------------------- what leaves


def _leaving(found: Rehearsal) -> Part:
    up, down = (sum(getattr(one, way) for one in found.messages) for way in ("up", "down"))
    sentences = [
        f"In the whole job this site sends {size(up)} and gets {size(down)}, in vectors and protocol messages. Heads "
        "of a few hundred bytes each and transport come on top; so does the run's record, which comes down in the end.",
    ]
    if not found.plan.masked:
        sentences.insert(0, "IN CLEAR: no vector of this plan is protected on its way to the server.")
    labels = dict.fromkeys(one.label for one in found.leaving)
    known = {**MEANINGS, **PRIVATE_MEANINGS} if found.plan.private else MEANINGS
    meanings = Grid("What each vector says", ("Vector", "Meaning"), tuple((one, known[one]) for one in labels), _READ)
    heads = ("Vector", "Task", "Numbers", "Protection", "One message", "Times", "Whole job")
    rows = tuple(map(_leaving_row, found.leaving))
    vectors = Grid("Every vector that leaves", heads, rows, frozenset({0, 1, 3}))
    return Part("What would leave", tuple(sentences), tuple(_also(found)), (meanings, vectors, _messages(found)))


def _leaving_row(one: Leaving) -> tuple[str, ...]:
    numbers = f"{one.numbers:,} ({_TYPES[one.type]})"
    whole = size(one.bytes * one.times)
    return one.label, one.task, numbers, _protection(one), size(one.bytes), f"{one.times:,}", whole


def _protection(one: Leaving) -> str:
    if one.mode == "clear":
        return "none: IN CLEAR"
    if one.mode == "closed":
        return f"masked, {one.bits}-bit words; the sum is opened over all sites together or not at all"
    if one.mode == "encrypted":
        return (
            f"masked, {one.bits}-bit words, then encrypted; hospitals open the sum over all sites together or not at "
            "all, the server never"
        )
    return (
        f"masked, {one.bits}-bit words, changes cut off at {one.clip:g}; the sum is opened over the sites that are left"
    )


def _messages(found: Rehearsal) -> Grid:
    rows = [
        (one.task, TASKS[one.task], f"{one.times:,}", size(one.down), size(one.up), size(one.protocol))
        for one in found.messages
    ]
    heads = ("Task", "What this site does", "Times", "Comes down", "Goes up", "Of that keys and the like")
    return Grid("Messages of the whole job", heads, tuple(rows), _READ)


def _also(found: Rehearsal) -> Iterator[str]:
    if found.plan.trains:
        yield (
            "Down come the model of each round and what the method needs with it, what to do, and in the end the final "
            "and the best model."
        )
    else:
        yield "Down comes what to do, and which groups may be counted. There is no model."
    if found.plan.masked:
        yield "Up go as well this site's name and certificate, fresh public keys, shares of keys, and signatures."
    else:
        yield "Up goes as well this site's name."
    yield "Where this site refuses a task, a code goes up, such as FF-DATA-REFUSED."
    yield "The server sees when each answer comes, and so how long this site works."


def _told(found: Rehearsal) -> Iterator[Part]:
    told = found.told
    yield Part("What does NOT leave", points=told.stays)
    yield Part("What the server learns", points=told.server)
    yield Part("What another hospital can learn", points=told.hospitals)
    yield Part("What is not protected", points=told.not_protected)
    yield Part("What this means for this site's own numbers (stays here)", points=told.own)


# --------------------------------------------------------------------------------------------------------------- cells


def _cells(found: Rehearsal, work: Work) -> Part:
    sizes = ", ".join(f"{count:,} {split}" for split, count in work.records.items())
    sentences = [f"Records here: {sizes}; {work.opted_out:,} left out by the opt-out file.", *_held_words(found, work)]
    sites = found.plan.cell_sites
    if found.plan.masked and sites > 1:
        sentences.append(f"More may be withheld in the job: a group is opened only if {sites} sites have enough of it.")
    grids = []
    if work.held:
        heads = ("Split", "Attribute", "Group", "Label", "Records here", "Why")
        rows = tuple(_held_row(one, found.plan.minimum) for one in work.held)
        grids.append(Grid("Groups that are held back", heads, rows, frozenset({0, 1, 2, 3, 5})))
    if work.missing:
        unknown = tuple((one.split, one.attribute, f"{one.records:,}") for one in work.missing)
        caption = "Records in no group, as the attribute is not known"
        grids.append(Grid(caption, ("Split", "Attribute", "Records here"), unknown, _READ))
    return Part("Groups that are held back (stays here)", tuple(sentences), grids=tuple(grids))


def _held_words(found: Rehearsal, work: Work) -> Iterator[str]:
    minimum, count = found.plan.minimum, sum(one.by == "plan" for one in work.held)
    if count:
        least = f"the plan's smallest cell is {minimum} record{'s' * (minimum != 1)}"
        yield f"Of {count} group{'s' * (count > 1)} this site sends zeros, whatever is in them: {least}."
    elif minimum <= 1:
        yield f"No group is held back, however small it is: the plan's cells.minimum is {minimum}."
    else:
        yield f"No group is held back: none has 1 to {minimum - 1} records here."
    if more := len(work.held) - count:
        yield f"By this site's policy {more} more would have to be held back, so it refuses the plan."


def _held_row(one: HeldCell, minimum: int) -> tuple[str, ...]:
    if one.by == "policy":
        why = "not by the plan, only by this site's policy"
    elif one.small:
        why = f"fewer than {minimum} records"
    else:
        why = "so that a smaller one cannot be worked out from the rest"
    names = {EVERYBODY: "everybody", HOSPITAL: "this hospital"}
    attribute = "all patients" if one.attribute in names else one.attribute
    return one.split, attribute, names.get(one.group, one.group), one.label or "all", f"{one.records:,}", why


# ----------------------------------------------------------------------------------------------------- time and memory


def _time(found: Rehearsal, work: Work) -> Part:
    sentences = [
        f"A task may take at most {duration(found.plan.deadline)}; a site that is later is left out of the round."
    ]
    if found.quick:
        sentences.append(QUICK)
    rows = [_time_row(one, found) for one in work.times]
    rounds = found.plan.rounds
    if work.masks is not None:
        whole = duration(work.masks * rounds)
        rows.append(
            (
                f"masks, {found.sites} sites",
                "round, agree on keys, mask",
                duration(work.masks),
                "",
                f"{rounds:,}",
                whole,
            )
        )
    together = duration(work.seconds(rounds))
    rows.append(("together", "waiting for other sites comes on top", "", "", "", together))
    heads = ("Task", "What this site does", "Once", "Of the deadline", "Times", "Whole job")
    grid = Grid("Seconds of work", heads, tuple(rows), _READ)
    return Part("Time, measured on this machine with these records", tuple(sentences), grids=(grid,))


def _time_row(one: TaskTime, found: Rehearsal) -> tuple[str, ...]:
    share = f"{one.seconds / found.plan.deadline:.1%}"
    once = ("about " if one.scaled else "") + duration(one.seconds)
    return one.task, TASKS[one.task], once, share, f"{one.times:,}", duration(one.seconds * one.times)


def _memory(found: Rehearsal, work: Work) -> Part:
    text = (
        f"About {size(work.peak_bytes)} of memory at the peak, of which {size(work.start_bytes)} before any record was "
        "read. FLARE starts one process like this for the job, which holds its messages as well, beside its own."
    )
    disk = f"The job leaves about {size(work.disk_bytes)} on this disk"
    disk += ": two models, and the list of releases. The run's record comes on top." if found.plan.trains else "."
    return Part("Memory and disk", (text, disk))


def _about(found: Rehearsal) -> Part:
    facts = [("Plan", found.plan.name), ("Plan's hash", found.plan.sha256), ("Data set", found.plan.data_set)]
    facts += [("Site", found.site), ("Sites tried for", str(found.sites))]
    facts += [("Measured with", ", ".join(f"{name} {version}" for name, version in found.software.items()))]
    return Part(
        "The plan", points=found.plan.summary, grids=(Grid("What was rehearsed", ("", ""), tuple(facts), _READ),)
    )


__all__ = ["CAUTION", "MEANINGS", "TASKS", "Answer", "Grid", "Part", "answers", "parts", "title", "verdict"]
