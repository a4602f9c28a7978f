# SPDX-License-Identifier: Apache-2.0
"""Kits are made once for all tests of the audit; who breaks one takes a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.audit import kits


@pytest.fixture(scope="session")
def hardened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's folder of hardened kits; the first hospital has written its own files, the others have not."""
    made = kits.provision(tmp_path_factory.mktemp("hardened"), stock=False)
    kits.finish(made / "prod_00" / kits.SITE)
    return made


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's folder of FLARE's own kits."""
    return kits.provision(tmp_path_factory.mktemp("stock"), stock=True)
