# SPDX-License-Identifier: Apache-2.0
"""What a run's record is made of: sessions, rounds, results, each a frozen object."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fairflare.schema import StrictModel

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


#: Stands for a task where a site did not take a job that FLARE handed out, before anything ran.
DEPLOY = "deploy"
#: Code of a site that the job was not even handed to: not connected to the server, or not free.
ABSENT = "FF-RUN-ABSENT"


class Refusal(StrictModel):
    """A site whose answer to a task was refused, or that gave none: who, to what, and a stable code."""

    site: str
    task: str
    code: str


class PenaltyRecord(StrictModel):
    """One penalty under one condition at the start of a round; arrays follow the attribute's values.

    ``risk`` is ``null`` for an absent group. All arrays and ``value`` and ``gap`` are ``null`` where the groups are
    hospitals: there only sums of risks are opened.
    """

    attribute: str
    criterion: str
    measure: str
    strength: float
    risk: tuple[float | None, ...] | None
    weight: tuple[float, ...] | None
    coefficient: tuple[float, ...] | None
    count: tuple[float, ...] | None
    value: float | None
    gap: float | None


class GroupLine(StrictModel):
    """Validation results of one group at the start of a round; ``null`` is "not estimable", or not of this task.

    Two labels: ``positives``, ``mean_score`` (mean probability of the positive one) and ``auc``. More labels: ``auc``
    is the mean over labels of each against all others. Segmentation: ``dice``, the mean over images and labels.
    """

    attribute: str
    group: str
    records: float
    positives: float | None
    loss: float | None
    mean_score: float | None
    auc: float | None
    dice: float | None


#: How a model fails that has learnt nothing: it says the same of every record (``constant``), or paints every image of
#: validation or test data with background, or with one label.
Collapse = Literal["constant", "all_background", "all_foreground"]


class Seconds(StrictModel):
    """Wall-clock seconds of a round's phases at the server, waiting for sites included; never a single site's.

    ``protect``: phases that only masks need (keys, shares, consents, unmasking).
    """

    measure: float
    train: float
    protect: float
    aggregate: float


class RoundRecord(StrictModel):
    """One round: statistics and validation at its first model, then training; ``model_sha256`` is its last model.

    ``weighed`` counts the weights that the method gave (per record and utility; once a round and again each time that a
    site measures its own part anew, or in lock step for every step that a record was in), ``at_minimum`` and
    ``at_maximum`` those of them held at the plan's bound.
    ``penalties`` is empty in a round that exchanged no statistics. ``collapse`` is about its first model. With masks,
    statistics are of all sites of the session or of nobody: where one was missing, ``validation`` is empty and the
    numbers are ``null``. ``totals``: with masks, the round whose group sums acted (``null``: none did).
    """

    round: int
    participants: dict[str, tuple[str, ...]]
    refusals: tuple[Refusal, ...]
    records: float | None
    train_loss: float | None
    weighed: float | None
    at_minimum: float | None
    at_maximum: float | None
    totals: int | None
    penalties: tuple[PenaltyRecord, ...]
    validation: tuple[GroupLine, ...]
    collapse: Collapse | None
    seconds: Seconds
    model_sha256: Sha256


class LostRound(StrictModel):
    """A round that was begun and gave no model, with the code of the reason; its number is never used again."""

    round: int
    code: str
    participants: dict[str, tuple[str, ...]]
    refusals: tuple[Refusal, ...]


class Cell(StrictModel):
    """Evaluation sums of one (attribute, group, stratum) over sites; zeros if absent or suppressed.

    With two labels the stratum is the true label; see ``fairness.groups.Stratum`` for other tasks.
    """

    attribute: str
    group: str
    stratum: int
    count: float
    sites: float
    loss: float
    value: float
    histogram: tuple[float, ...]


class Final(StrictModel):
    """The last model's hash, who took part in its evaluation, and evaluation sums per split.

    With masks there are no sums (no cells) where a site of the session was missing. ``best_rounds``: rounds trained
    before the model that is best on validation data (see :func:`best_model`).
    """

    model_sha256: Sha256
    best_model_sha256: Sha256
    best_rounds: int
    participants: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    validation: tuple[Cell, ...]
    test: tuple[Cell, ...]
    validation_collapse: Collapse | None
    test_collapse: Collapse | None
    confirmed: tuple[str, ...]


class Session(StrictModel):
    """One start of the job; a resumed job is a new session that goes on from an earlier one's last complete round.

    ``roster`` are the sites that were asked to join; ``records``, empty before anybody has joined, are sums over those
    that did. A later session may have other sites. With masks, ``identities`` says who vouched for the sites (``kit``,
    or nobody: ``development``), and ``transcript`` is T: the hash of everything that the sites signed when they joined.

    ``without``: sites of the project that never were asked to join (task :data:`DEPLOY`): those that refused the job
    when FLARE handed it out, each with the code it gave, and those that were not there (:data:`ABSENT`). Empty where
    the server does not note them.
    """

    number: int
    transport: Literal["flare", "local"]
    started: str
    first_round: int
    previous_record_sha256: Sha256 | None
    roster: tuple[str, ...]
    join_refusals: tuple[Refusal, ...]
    records: dict[str, float]
    identities: Literal["kit", "development"] | None
    transcript: Sha256 | None
    without: tuple[Refusal, ...] = ()

    @property
    def joined(self) -> tuple[str, ...]:
        """Sites of the roster that joined."""
        refused = {refusal.site for refusal in self.join_refusals}
        return tuple(site for site in self.roster if site not in refused)


class Reason(StrictModel):
    """Why a run stopped."""

    code: str
    text: str
