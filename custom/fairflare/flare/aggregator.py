# SPDX-License-Identifier: Apache-2.0
"""FLARE's aggregator for FlexFair: takes each site's result as it arrives and adds it to the phase's sums."""

from __future__ import annotations

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator

from fairflare.engine.server import Phase
from fairflare.errors import FairFlareError
from fairflare.flare import wire

#: Private property of the context of a result: the name of the site that FLARE authenticated.
SITE = "fairflare.site"


class FlexFairAggregator(Aggregator):  # type: ignore[misc]
    """Adds results of one phase after the other: group sums and model updates alike are vectors of a secure sum.

    The weights of sites, the penalty's coefficients and the next model follow from the opened sums only; they are
    computed by :class:`fairflare.engine.server.Coordinator`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._phase: Phase | None = None

    def begin(self, phase: Phase) -> None:
        """Start to collect the replies to ``phase``."""
        self._phase = phase

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Add the result of the site in ``fl_ctx``; False if it was refused (the phase's collector knows the code)."""
        site = _site(fl_ctx)
        if self._phase is None:
            return False
        collector, code = self._phase.collector, wire.failure_code(shareable)
        try:
            if code is None:
                collector.accept(site, wire.decode_reply(shareable))
                return True
        except FairFlareError as problem:
            code = problem.code
        except Exception as problem:  # or FLARE would end the phase for every other site too
            code = "FF-ROUND-INTERNAL"
            self.log_exception(fl_ctx, f"a result of {site} could not be looked at: {type(problem).__name__}")
        collector.refuse(site, code)
        self.log_error(fl_ctx, f"refused the result of {site}: {code}")
        return False

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """Close the phase; the Shareable names who is in its sums (never numbers)."""
        result = Shareable()
        if self._phase is not None:
            self._phase.collector.close()
            result["sites"] = list(self._phase.collector.accepted)
            self._phase = None
        return result


def _site(fl_ctx: FLContext) -> str:
    # The peer context is what the site says of itself. The controller knows whom FLARE authenticated, and says so.
    site = fl_ctx.get_prop(SITE)
    peer = fl_ctx.get_peer_context()
    return str(site if site is not None else peer.get_identity_name() if peer else "")
