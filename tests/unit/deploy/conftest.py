# SPDX-License-Identifier: Apache-2.0
"""The shipped project's kits, and what the shipped configurations make of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
NVFLARE = Path(sys.executable).with_name("nvflare")


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of the shipped project; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("kits")
    command = [NVFLARE, "provision", "-p", ROOT / "provision" / "project.yml", "-w", folder]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    return folder / "fairflare" / "prod_00"


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Path]:
    """``nvflare deploy prepare`` with a shipped configuration."""

    def run(kit: Path, runtime: str, config: Path | None = None) -> Path:
        output = tmp_path / f"{runtime}-{kit.name}"
        config = config or ROOT / "provision" / "deploy" / f"{runtime}.yaml"
        command = [NVFLARE, "deploy", "prepare", kit, "--config", config, "--output", output]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return output

    return run
