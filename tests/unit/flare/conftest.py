# SPDX-License-Identifier: Apache-2.0
"""Real start-up kits for the tests of what happens in FLARE's parent processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.flare.hospital import provision


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hardened kits of three hospitals, a server and two people; to be copied, not changed."""
    return provision(tmp_path_factory.mktemp("kits"))
