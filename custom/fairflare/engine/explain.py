# SPDX-License-Identifier: Apache-2.0
"""What masks do, and do not do, for one plan and so many sites: what people want to know before they say yes.

Every number follows from the code that runs: thresholds from the session's parameters, bytes from the encoders of the
messages (filled with zeros, since no length depends on data), seconds from the kernel, measured here and now.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fairflare.engine.explain_traffic import Traffic, traffic
from fairflare.engine.masked import params_of, update_codec
from fairflare.engine.messages import COMPARE, MEASURE, TRAIN, TRAIN_ALONE, Layout, layout_of
from fairflare.errors import SecaggError
from fairflare.evaluation.exchanged import TRUST, server_words
from fairflare.evaluation.privacy_words import NOT_COVERED
from fairflare.he.parameters import nominal
from fairflare.methods import UPDATE
from fairflare.methods.base import OPEN_RISKS, PAIR_SUMS
from fairflare.models import build, parameter_count
from fairflare.plan import Masking, Plan, method_of
from fairflare.secagg.identity import KIT
from fairflare.secagg.masking import add_masks
from fairflare.secagg.params import Params, VectorParams, most_colluders, threshold
from fairflare.secagg.parts import Words
from fairflare.secagg.schedule import agree, pair_key

_HASH = bytes(32)
#: Work that took longer than this is not repeated for a median.
_PATIENCE = 1.0


@dataclass(frozen=True)
class Stage:
    """A moment of a round: fewest sites that must still be there, and so how many of all may be gone by then."""

    name: str
    least: int
    lost: int


@dataclass(frozen=True)
class Speed:
    """Seconds that masks add to one round, on the machine that was asked.

    ``site``: rounding and masking all vectors of a round, key agreement included. ``server``: adding everybody's
    updates and taking the self-masks out. ``server_lost``: the same with one site lost after it dealt its shares, or
    ``None`` where no loss is survived.
    """

    site: float
    server: float
    server_lost: float | None


@dataclass(frozen=True)
class Explained:
    """Everything that ``fairflare secagg explain`` says.

    Attributes
    ----------
    plan, plan_sha256, sites, parameters
        What was asked, and the length of the model's vector.
    threshold, least_sites
        t; and the fewest sites of a sum of updates, max(t, ``min_sites``).
    colluders, most_colluders
        c of the plan, and the most that so many sites allow.
    stages
        What a round survives.
    traffic
        The start, then each kind of round.
    speed
        ``None`` if nothing was measured.
    dropouts, server_learns, hospitals_learn, not_protected
        Plain sentences.
    """

    plan: str
    plan_sha256: str
    sites: int
    parameters: int
    threshold: int
    least_sites: int
    colluders: int
    most_colluders: int
    stages: tuple[Stage, ...]
    traffic: tuple[Traffic, ...]
    speed: Speed | None
    dropouts: tuple[str, ...]
    server_learns: tuple[str, ...]
    hospitals_learn: tuple[str, ...]
    not_protected: tuple[str, ...]


def explain(plan: Plan, sites: int, *, measure: bool = True) -> Explained:
    """What masks do for ``plan`` with a roster of ``sites``; ``measure=False`` leaves the seconds out.

    Raises
    ------
    SecaggError
        ``FF-SECAGG-PLAN`` for a plan without masks, or that only counts; ``FF-SECAGG-SITES`` or
        ``FF-SECAGG-COLLUDERS`` where a session of so many sites would not begin.
    """
    masking = plan.protection.masking
    if masking is None:
        raise SecaggError(
            "FF-SECAGG-PLAN",
            got=f"the plan '{plan.name}', which has no masks: the server sees every site's update, sums and counts",
            expected="a plan with protection 'masked'",
            next_step="ask for masks in the plan's 'protection', or explain another plan",
        )
    if plan.method.counts_only:
        raise SecaggError(
            "FF-SECAGG-PLAN",
            got=f"the plan '{plan.name}', which trains nothing: its run opens numbers of records and ends",
            expected="a plan that trains a model",
            next_step="explain the plan that is examined; masks are the same in both",
        )
    layout = layout_of(plan, parameter_count(build(plan)))
    params = params_of(layout, KIT, nominal(sites))
    params.verify_sites(sites)
    return Explained(
        plan=plan.name, plan_sha256=plan.sha256, sites=sites, parameters=layout.vectors[UPDATE].length,
        threshold=threshold(sites), least_sites=params.least(sites), colluders=masking.colluders,
        most_colluders=most_colluders(sites), stages=stages(params, sites),
        traffic=traffic(layout, [f"site-{number}" for number in range(1, sites + 1)]),
        speed=speed(layout, sites) if measure else None, dropouts=tuple(_dropouts(plan, masking, params, sites)),
        server_learns=tuple(_server_learns(plan, masking)),
        hospitals_learn=tuple(_hospitals_learn(plan, masking, sites)), not_protected=tuple(_not_protected(plan)),
    )  # fmt: skip


def stages(params: Params, sites: int) -> tuple[Stage, ...]:
    """Fewest sites at each moment of a round; losses of all moments together count.

    The protocol asks for t consents and sets of shares; the engine also for the plan's ``min_sites``, at every moment.
    """
    least = params.least(sites)
    moments = [
        ("exact statistics: keys and vectors", sites),
        ("update: keys", least),
        ("update: shares of the keys", least),
        ("update: masked vector", least),
        ("update: consent to the set of survivors", least),
        ("update: shares that take the masks out", least),
    ]
    return tuple(Stage(name, fewest, sites - fewest) for name, fewest in moments)


# ------------------------------------------------------------------------------------------------------------- seconds


def speed(layout: Layout, sites: int) -> Speed:
    """Time the kernel on vectors of the plan's length: median of three, or once if that takes long."""
    keys = _other_keys()
    params = params_of(layout, KIT, nominal(sites))
    words, total = (np.zeros(params.vector(UPDATE).length, dtype=np.uint32) for _ in range(2))

    def server(uploads: int, masks: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(uploads):
                np.add(total, words, out=total)
            add_masks(total, [], [os.urandom(32) for _ in range(uploads)] + keys(masks))

        return work

    lost = _seconds(server(sites - 1, sites - 1)) if sites > params.least(sites) else None
    return Speed(site_seconds(layout, sites), _seconds(server(sites, 0)), lost)


def site_seconds(layout: Layout, sites: int) -> float:
    """Seconds that rounding and masking all vectors of a round take at a site, key agreement included."""
    params = params_of(layout, KIT, nominal(sites))
    tasks = (MEASURE, COMPARE, TRAIN, TRAIN_ALONE)
    labels = [label for task in tasks for label in layout.tasks.get(task, ()) if label not in layout.parts]
    vectors, keys = list(map(params.vector, dict.fromkeys(labels))), _other_keys()
    lengths = {label: layout.vectors[label].length for label in (UPDATE, *layout.parts) if UPDATE in labels}
    update = {label: np.full(length, 2.0**-20, dtype=np.float32) for label, length in lengths.items()}

    def encoded() -> Words:
        return update_codec(layout).encode(update, 1 << 20, os.urandom(32))

    def site() -> None:
        for one in vectors:
            _masked(one, keys(sites - 1), encoded() if one.bits == 32 else None)

    return _seconds(site)


def _other_keys() -> Callable[[int], list[bytes]]:
    """What agrees on keys with so many other sites."""
    own, other = (X25519PrivateKey.generate() for _ in range(2))
    public = other.public_key().public_bytes_raw()
    return lambda number: [
        pair_key(agree(own, public), _HASH, (1, public), (peer, public)) for peer in range(2, number + 2)
    ]


def _masked(vector: VectorParams, pairs: Sequence[bytes], words: np.ndarray | None) -> None:
    if words is None:
        add_masks(np.zeros(vector.length, dtype=np.uint64), pairs, [])
    else:
        add_masks(words, [*pairs, os.urandom(32)], [])


def _seconds(work: Callable[[], None]) -> float:
    found: list[float] = []
    while len(found) < 3 and max(found, default=0.0) < _PATIENCE:
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


# ----------------------------------------------------------------------------------------------------------- sentences


def _dropouts(plan: Plan, masking: Masking, params: Params, sites: int) -> Iterable[str]:
    least = params.least(sites)
    spare = sites - least
    if spare:
        lost = "1 site may drop out" if spare == 1 else f"{spare} sites may drop out"
        yield f"An update is opened over {least} sites or more, so {lost} of a round; with fewer the round is lost."
    else:
        why = "with three sites t is three" if sites == 3 else "a sum must be of all of them"
        yield f"No dropout is survivable: {why}. A round in which a site is missing is lost."
    yield "A lost round opens nothing and is never repeated; the next one goes on if enough sites are left."
    action = "the sites train without a penalty" if masking.when_stale == "no_penalty" else "the run stops"
    stale = "1 round" if masking.max_stale == 1 else f"{masking.max_stale} rounds"
    text = (
        "Exact statistics (counts, losses, group sums) need everybody: all sites of the session, or nothing is opened."
    )
    if getattr(plan.method, "penalties", ()):
        text += f" While one is missing the last group sums act for up to {stale} more; then {action}."
    elif plan.method.compares_sites:
        text += " In a round in which one is missing no distances are opened, and no site's weight moves."
    elif plan.method.measured_every > plan.training.rounds:
        text += (
            " Groups are counted in a session's first round, or as soon as all are there: until then no record is "
            "weighed" + (", and the run stops." if masking.when_stale == "stop" else ".")
        )
    yield text


def _server_learns(plan: Plan, masking: Masking) -> Iterable[str]:
    if plan.protection.encrypted:
        yield "The sums: every round's mean update; of all sites together counts, losses, validation and test results."
    else:
        yield "The sums: every round's mean update, and the exact statistics of all sites together."
    yield "The numbers of records of all sites together (N), and who the sites are (the roster)."
    if plan.cells.minimum > 1:
        yield f"For each group of patients, how many sites have {plan.cells.minimum} records of it or more."
    if plan.protection.encrypted:
        yield TRUST.server
    yield "Who dropped out and when, who refused with which code, and how long each answer took."
    yield from server_words(plan)
    if method_of(plan).weighing == "own":
        yield (
            "The sum of weights of each set of survivors: where a site drops out, the difference is that site's own "
            "weight, which follows from its number of records and from how far it is from all."
        )
    elif plan.training.aggregation == "records":
        yield (
            "The sum of weights of each set of survivors: where a site drops out, the difference is that site's number "
            f"of records, rounded to {_units(masking.weight_unit)}."
        )


def _units(unit: int) -> str:
    return "units of 1, so exactly" if unit == 1 else f"units of {unit}"


def _hospitals_learn(plan: Plan, masking: Masking, sites: int) -> Iterable[str]:
    yield "All totals: every hospital gets the sums of statistics, and with them its own part gives the others' sum."
    yield f"{sites - 1} hospitals that put their numbers together know those of the last one: no sum can prevent that."
    if masking.colluders:
        who = "One hospital" if masking.colluders == 1 else f"Up to {masking.colluders} hospitals"
        yield f"{who} colluding with the server can learn the sum of the others, and no more."
    else:
        yield "The plan counts on no hospital colluding with the server (colluders 0)."
    if plan.protection.encrypted:
        yield TRUST.hospitals
    yield from _equal_accuracy(plan, sites)


def _equal_accuracy(plan: Plan, sites: int) -> Iterable[str]:
    """Rule 9: from few hospitals' sums of risks each can work out another's."""
    kind = plan.method.compares_hospitals
    if plan.method.compares_sites:
        yield from _distances(plan, sites)
        return
    if kind is None:
        yield (
            "This plan does not compare hospitals with each other. Equal accuracy between hospitals would open the sum "
            "of their risks: of two, each knows the other's (refused); of three, each knows the sum of the two others' "
            "(only with consent); four is the least without, five where risks are weighted by records."
        )
        return
    yield "Equal accuracy between hospitals opens the sum of their risks (mean losses); no squares, and no largest gap."
    if OPEN_RISKS in plan.consents:
        yield "By the plan's consent each hospital's risk may be known to all: do not count on it being hidden."
    elif sites == 3:
        yield f"Of three, each hospital knows the sum of the two others' risks; they agreed to that ('{PAIR_SUMS}')."
    elif kind == "records":
        yield f"Weighted by records, it needs five hospitals; here each of {sites} knows the others' sum only."
    else:
        yield f"Each of the {sites} hospitals knows the sum of the {sites - 1} others' risks, and no single one."


def _distances(plan: Plan, sites: int) -> Iterable[str]:
    """The same for the sums of sites' distances from all."""
    whose = "accuracy or Dice" if plan.method.compares_hospitals else "fairness"
    yield f"Every round opens the sum of how far each hospital's {whose} is from that of all."
    if OPEN_RISKS in plan.consents:
        yield "By the plan's consent each hospital's part of it may be known to all: do not count on it being hidden."
    elif sites == 3:
        yield f"Of three, each hospital knows the sum of the two others' distances; they agreed to it ('{PAIR_SUMS}')."
    else:
        yield f"Each of the {sites} hospitals knows the sum of the {sites - 1} others' distances, and no single one."


def _not_protected(plan: Plan) -> Iterable[str]:
    if plan.protection.encrypted:
        yield TRUST.not_protected
    yield _WITHOUT_NOISE if plan.differential_privacy is None else f"{NOT_COVERED}."
    yield from _NEVER_PROTECTED
    if plan.groups and plan.cells.sites < 2:
        yield "Groups of one site: the sums of a group that only one site has are that site's own (cells.sites is 1)."


_WITHOUT_NOISE = (
    "The sum itself: a model and exact totals can reveal facts about single patients. Only noise (differential "
    "privacy) limits that, and this plan adds none."
)
_NEVER_PROTECTED = (
    "Poisoned inputs: a site can send what it likes within the clip, and masks hide which one it was.",
    "Collusion of all other sites: they subtract their own numbers from the sum.",
    "Time: how long a site trains shows about how many records it has.",
    "The future: key agreement is X25519, not post-quantum; who records the traffic now may read it then.",
    "Memory: Python cannot reliably wipe keys; a dump of a site's process may hold them.",
)
