# SPDX-License-Identifier: Apache-2.0
"""The exception tree: every error has a stable code, what was got, what was expected, and the next step.

::

    FairFlareError
    |-- PlanError         FF-PLAN-*    a plan.json that cannot be run as written
    |-- CatalogError      FF-CAT-*     a site's data catalogue
    |-- DataError         FF-DATA-*    a manifest, an image or a table
    |-- GateError         FF-GATE-*    something tried to leave a site that the release gate does not recognise
    |-- WireError         FF-WIRE-*    a message that does not have the form of this version
    |-- RoundError        FF-ROUND-*   a reply that is refused, a site that is missing, a quorum that is not met
    |-- PolicyError       FF-POLICY-*  a site's policy that cannot be used, or that does not allow what a plan asks for
    |-- DecisionError     FF-DECISION-* a site's list of decisions that cannot be written, or was changed
    |-- PrivacyError      FF-PRIVACY-* noise, clipping or a release that would not keep the privacy that is accounted
    |-- JobError          FF-JOB-*     a job that is not one of ours: its files, its meta data, or how it is asked for
    |-- RunError          FF-RUN-*     a run, a record or a workspace that is incomplete or inconsistent
    |-- HeError           FF-HE-*      encrypted statistics: a context, a key or a ciphertext that cannot be used
    |-- LedgerError       FF-LEDGER-*  a data set's privacy budget: spent, or its ledger cannot be used
    |-- SecaggError       FF-SECAGG-*  secure aggregation: a message, a key or a state that the protocol does not allow
    |-- ShutterError      FF-SHUTTER-*  a site's shutters that cannot be closed, or are not
    |-- KitError          FF-KIT-*     a start-up kit that cannot work: expired, incomplete, or put together from two
    |-- ServerError       FF-SERVER-*  what a server's operator asks for and cannot have, or what it has no room for
    |-- AuditError        FF-AUDIT-*   an audit that cannot begin: no such folder, no kit, no such rule
    |-- StudyError        FF-STUDY-*   a study that would not be a fair comparison, or cannot go on in its folder
    `-- WeightsError      FF-WEIGHTS-* a file of weights that is absent, is another one, or does not fit the network

A message may leave a site only as its code (see ``fairflare.flare.executor``): the text of ``got`` can hold local
facts, although by rule never a patient's id, path or value.
"""

from __future__ import annotations


class FairFlareError(Exception):
    """Root of all errors that FairFlare raises on purpose.

    Parameters
    ----------
    code
        Stable identifier such as ``FF-PLAN-UNKNOWN-KEY``; safe to send to another organisation.
    got
        What was found. Never a patient's id, path or value.
    expected
        What would have been accepted.
    next_step
        What the reader should do now.
    """

    prefix = "FF-"

    def __init__(self, code: str, *, got: str, expected: str, next_step: str) -> None:
        if not code.startswith(self.prefix):
            raise ValueError(f"{type(self).__name__} needs a code that starts with {self.prefix}, got {code}")
        self.code = code
        self.got = got
        self.expected = expected
        self.next_step = next_step
        super().__init__(f"{code}: got {got}; expected {expected}. Next step: {next_step}")

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild through keyword arguments, so that errors survive pickling between processes."""
        return _rebuild, (type(self), self.code, self.got, self.expected, self.next_step)


def _rebuild(kind: type[FairFlareError], code: str, got: str, expected: str, next_step: str) -> FairFlareError:
    return kind(code, got=got, expected=expected, next_step=next_step)


class PlanError(FairFlareError):
    """A training plan that cannot be run as written."""

    prefix = "FF-PLAN-"


class CatalogError(FairFlareError):
    """A site's data catalogue that cannot be used."""

    prefix = "FF-CAT-"


class DataError(FairFlareError):
    """A manifest, an image or a table that breaks the data contract."""

    prefix = "FF-DATA-"


class GateError(FairFlareError):
    """Something tried to leave a site that the release gate does not recognise."""

    prefix = "FF-GATE-"


class WireError(FairFlareError):
    """A message that does not have the form of this version."""

    prefix = "FF-WIRE-"


class RoundError(FairFlareError):
    """A reply that is refused, a site that is missing or a quorum that is not met."""

    prefix = "FF-ROUND-"


class JobError(FairFlareError):
    """A job that is not one of ours: its files, its meta data, or how a server asks for it."""

    prefix = "FF-JOB-"


class RunError(FairFlareError):
    """A run, a record or a workspace that is incomplete or inconsistent."""

    prefix = "FF-RUN-"


class PolicyError(FairFlareError):
    """A site's policy that cannot be used, or that does not allow what a plan asks for."""

    prefix = "FF-POLICY-"


class DecisionError(FairFlareError):
    """A site's list of decisions that cannot be written, or was changed: then the site decides nothing."""

    prefix = "FF-DECISION-"


class LedgerError(FairFlareError):
    """A data set's privacy budget is spent, or its ledger is damaged, lost, or cannot count."""

    prefix = "FF-LEDGER-"


class PrivacyError(FairFlareError):
    """Noise, clipping, sampling or a release that would not keep the privacy that is accounted for."""

    prefix = "FF-PRIVACY-"


class SecaggError(FairFlareError):
    """Secure aggregation: a message, a key or a state that the protocol does not allow."""

    prefix = "FF-SECAGG-"


class HeError(FairFlareError):
    """Encrypted statistics: a context, a key file or a ciphertext that cannot be used."""

    prefix = "FF-HE-"


class WeightsError(FairFlareError):
    """A file of weights that is absent, is another one, is no such file, or does not fit the network."""

    prefix = "FF-WEIGHTS-"


class ShutterError(FairFlareError):
    """A site's shutters that cannot be closed, or that are not."""

    prefix = "FF-SHUTTER-"


class KitError(FairFlareError):
    """A start-up kit that cannot work: expired, not valid yet, incomplete, or put together from two."""

    prefix = "FF-KIT-"


class ServerError(FairFlareError):
    """What the server's operator asks for and cannot have, or what the server has no room for."""

    prefix = "FF-SERVER-"


class AuditError(FairFlareError):
    """An audit that cannot begin as asked; what an audit finds is no error but a report."""

    prefix = "FF-AUDIT-"


class StudyError(FairFlareError):
    """A study that cannot be run as written, would not be a fair comparison, or cannot go on in its folder."""

    prefix = "FF-STUDY-"
