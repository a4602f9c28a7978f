# SPDX-License-Identifier: Apache-2.0
"""Names that FLARE's configuration and ours must agree on; imports nothing of FLARE."""

from __future__ import annotations

from fairflare.jobs import AGGREGATOR, CONTROLLER, EXECUTOR

#: In the server's local folder: {"folder": absolute path of an unfinished run's record}.
RESUME = "fairflare_resume.json"

#: The classes that a site's FLARE may build for our jobs, one by one: no prefix, no wildcard.
ALLOWED = (CONTROLLER, AGGREGATOR, EXECUTOR)

#: Folder of weight files inside a local folder: that of ``fairflare.models.weights``, which would bring torch along.
WEIGHTS = "weights"
