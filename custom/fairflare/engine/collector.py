# SPDX-License-Identifier: Apache-2.0
"""One phase at the server: checks each site's reply, adds it, and remembers who answered and who was refused."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from fairflare.engine.messages import Layout, Message, Reply
from fairflare.errors import RoundError, SecaggError
from fairflare.record import Refusal
from fairflare.secagg.plain import PlainStatisticsSum, PlainUpdateSum
from fairflare.secagg.protection import Opened, Payload, SecureSum


class Sums(Protocol):
    """The sums of one phase: what a protection does with replies."""

    def check(self, site: str, reply: Reply) -> None:
        """Raise :class:`RoundError` or :class:`SecaggError` unless the reply can be added; add nothing."""
        ...

    def add(self, site: str, reply: Reply) -> None:
        """Add a reply that was checked."""
        ...

    def opened(self) -> Mapping[str, Opened]:
        """What the server may know by now, by label."""
        ...


class PlainSums:
    """Protection ``none``: every vector is a number of its own to the server.

    Parameters
    ----------
    layout, task
        What the task may return.
    weight_unit
        Largest weight a site may claim for its update (total of records, or 1).
    """

    def __init__(self, layout: Layout, task: str, weight_unit: float) -> None:
        self._sums: dict[str, SecureSum] = {
            label: PlainUpdateSum(spec, weight_unit) if spec.dtype == "float32" else PlainStatisticsSum(spec)
            for label, spec in layout.tasks[task].items()
        }

    def check(self, site: str, reply: Reply) -> None:
        """Refuse other vectors than the task's, and numbers that cannot be added."""
        if set(reply.payloads) != set(self._sums) or reply.protocol:
            raise _refusal("KEYS", "other vectors than the task returns", ", ".join(self._sums) or "none")
        for label, payload in reply.payloads.items():
            if not isinstance(payload, Payload):
                raise _refusal("KEYS", "something that is no vector", "protected vectors only")
            self._sums[label].check(payload)

    def add(self, site: str, reply: Reply) -> None:
        """Add each vector to its sum."""
        for label, payload in reply.payloads.items():
            self._sums[label].add(site, payload)

    def opened(self) -> Mapping[str, Opened]:
        """All sums."""
        return {label: secure_sum.open() for label, secure_sum in self._sums.items()}


class Collector:
    """Replies to one message.

    Replies are added as they arrive (from any thread), so memory does not grow with the number of sites; a reply is
    added whole or not at all.

    Parameters
    ----------
    sums
        What the plan's protection makes of replies.
    message
        What was asked.
    targets
        Sites that were asked.
    """

    def __init__(self, sums: Sums, message: Message, targets: Sequence[str]) -> None:
        self.message = message
        self.targets = tuple(targets)
        self._sums = sums
        self._accepted: set[str] = set()
        self._refused: dict[str, str] = {}
        self._closed = False
        self._adding = False
        self._lock = threading.Lock()

    def accept(self, site: str, reply: Reply) -> None:
        """Add a site's reply; raises and remembers the error's code otherwise."""
        with self._lock:
            if self._closed or site not in self.targets or site in self._accepted:
                raise _refusal("LATE", "a reply that nobody waits for", "one reply per site asked, before the deadline")
            try:
                self._check(site, reply)
            except (RoundError, SecaggError) as problem:
                self._refused[site] = problem.code
                raise
            self._adding = True
            self._sums.add(site, reply)
            self._adding = False
            self._refused.pop(site, None)
            self._accepted.add(site)

    def refuse(self, site: str, code: str) -> None:
        """Remember why a site gave no usable reply."""
        with self._lock:
            if not self._closed and site in self.targets and site not in self._accepted:
                self._refused[site] = code

    def _check(self, site: str, reply: Reply) -> None:
        asked = (self.message.task, self.message.round, self.message.step, self.message.session)
        if (reply.task, reply.round, reply.step, reply.session) != asked:
            raise _refusal("OTHER", "a reply to another task, round, step or session", "a reply to what was asked")
        self._sums.check(site, reply)

    def close(self, missing: str = "FF-ROUND-TIMEOUT") -> None:
        """End the phase: sites that gave nothing are refused with ``missing``, later replies with ``LATE``."""
        with self._lock:
            self._closed = True
            for site in self.targets:
                if site not in self._accepted:
                    self._refused.setdefault(site, missing)

    def verify_enough(self, least: int, refusals: Sequence[Refusal]) -> None:
        """Raise ``FF-ROUND-QUORUM`` unless ``least`` sites gave a usable answer; ``refusals``: of the round so far."""
        usable, asked = len(self.accepted), len(self.targets)
        if usable >= least:
            return
        who = f"sites asked: {asked}" if asked else "nobody was asked"
        reasons = ", ".join(f"{refusal.site}: {refusal.code}" for refusal in refusals)
        raise RoundError(
            "FF-ROUND-QUORUM",
            got=f"{usable} usable answers to {self.message.task} ({who}{'; ' if reasons else ''}{reasons})",
            expected=f"at least {least}, the plan's min_sites",
            next_step="start the sites that are missing, read the own logs of those named; then go on with "
            "'fairflare run resume'",
        )

    @property
    def accepted(self) -> tuple[str, ...]:
        """Sites whose replies are in the sums, sorted."""
        return tuple(sorted(self._accepted))

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Sites without a usable reply, sorted."""
        return tuple(
            Refusal(site=site, task=self.message.task, code=code) for site, code in sorted(self._refused.items())
        )

    def opened(self) -> Mapping[str, Opened]:
        """The sums over the sites accepted; raises :class:`RoundError` if adding one of them broke off half-way."""
        if self._adding:
            raise _refusal("INTERNAL", "a reply of which a part only was added", "whole replies or nothing")
        return self._sums.opened()


def _refusal(code: str, got: str, expected: str) -> RoundError:
    return RoundError(
        f"FF-ROUND-{code}",
        got=got,
        expected=expected,
        next_step="look at the site's own log; check its version and plan",
    )
