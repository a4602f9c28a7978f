# SPDX-License-Identifier: Apache-2.0
"""The component by which no process of FLARE's starts from a kit that cannot work (``fairflare.flare.kit_state``)."""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.fl_component import FLComponent

from fairflare.flare.kit_state import verify_start
from fairflare.flare.revocation import refuse_revoked


class KitCheck(FLComponent):  # type: ignore[misc]
    """Component of ``local/resources.json``: no process starts from a kit that cannot work, or believes who is revoked.

    FLARE builds it before it connects, and works in the kit's own folder by then. The start script asks as well
    (``fairflare kit check``): FLARE would not build this component if another configuration were found first.
    """

    def __init__(self) -> None:
        super().__init__()
        verify_start(Path.cwd())
        refuse_revoked(Path.cwd())
