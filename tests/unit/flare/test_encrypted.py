# SPDX-License-Identifier: Apache-2.0
"""Where FLARE's processes find contexts of CKKS: in kits, in a simulator's folder, and where they may not."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fairflare import presets
from fairflare.errors import HeError
from fairflare.flare.identities import server_cipher, site_masks
from fairflare.flare.simulate import Simulation
from fairflare.he.ckks import SiteCipher
from fairflare.he.context import read_client, write_contexts
from fairflare.he.parameters import CLIENT_CONTEXT, RECORD_NAME, SERVER_CONTEXT, SMALL
from fairflare.jobs import write_job
from fairflare.policy import open_policy, standard_policy
from tests.unit.flare.test_provision import changed, nvflare
from tests.unit.flare.test_simulate import CATALOG, SITES
from tests.unit.he.contexts import contexts
from tests.unit.policy.support import plan

MASKED = presets.shipped("heart_flexfair")
ENCRYPTED = plan(MASKED, protection__statistics="ckks")
HE = "nvflare.lighter.impl.he.HEBuilder"


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(HeError) as caught:
        yield
    assert caught.value.code == f"FF-HE-{code}", caught.value


def with_he(**args: Any) -> Any:
    def change(project: dict[str, Any]) -> None:
        builders = project["builders"]
        at = next(place for place, one in enumerate(builders) if one["path"].endswith("HardeningBuilder"))
        builders.insert(at, {"path": HE, "args": args})

    return change


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of the project's file with its lines about HEBuilder switched on."""
    folder = tmp_path_factory.mktemp("he")
    switched = with_he(poly_modulus_degree=4096, coeff_mod_bit_sizes=[54, 54], scale_bits=30)
    done = nvflare(folder, changed(folder, switched))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "kits" / "fairflare" / "prod_00"


@pytest.fixture
def kit(kits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kits, tmp_path / "kits"))


# ---------------------------------------------------------------------------------------------------- provisioned kits


def test_every_kit_has_its_context_and_the_same_record(kits: Path) -> None:
    records = set()
    for name in ("fl-server", "hospital-1", "hospital-2"):
        startup = kits / name / "startup"
        own, other = CLIENT_CONTEXT, SERVER_CONTEXT
        if name == "fl-server":
            own, other = other, own
        assert (startup / own).is_file()
        assert not (startup / other).exists()
        assert stat.S_IMODE((startup / own).stat().st_mode) == 0o600
        records.add((startup / RECORD_NAME).read_text(encoding="utf-8"))
        assert RECORD_NAME in (startup / "signature.json").read_text(encoding="utf-8")
    assert len(records) == 1


def test_a_provisioned_federation_uses_them(kits: Path, tmp_path: Path) -> None:
    server = kits / "fl-server"
    record = server_cipher(ENCRYPTED, server / "startup", server / "local")
    assert record is not None
    assert record.parameters == SMALL
    for name in ("hospital-1", "hospital-2"):
        site = kits / name
        policy = standard_policy(tmp_path / name)
        masks = site_masks(ENCRYPTED, policy, name, site / "startup", site / "local", site)
        assert masks is not None
        assert masks.opener is not None
        assert masks.opener.fingerprint == record.fingerprint


def test_a_plan_without_encryption_needs_no_context(kits: Path, tmp_path: Path) -> None:
    bare = kits / "hospital-1"
    assert server_cipher(MASKED, tmp_path, tmp_path) is None
    masks = site_masks(MASKED, standard_policy(tmp_path / "s"), "hospital-1", bare / "startup", tmp_path, bare)
    assert masks is not None
    assert masks.opener is None


def test_a_server_kit_with_the_hospitals_key_is_refused(kit: Path) -> None:
    server = kit / "fl-server"
    shutil.copy(kit / "hospital-1" / "startup" / CLIENT_CONTEXT, server / "local" / CLIENT_CONTEXT)
    with refused("SECRET"):
        server_cipher(ENCRYPTED, server / "startup", server / "local")
    (server / "local" / CLIENT_CONTEXT).rename(server / "startup" / SERVER_CONTEXT)
    with refused("SECRET"):
        server_cipher(ENCRYPTED, server / "startup", server / "local")


def test_a_hospitals_key_that_others_can_read_is_refused(kit: Path, tmp_path: Path) -> None:
    site = kit / "hospital-1"
    (site / "startup" / CLIENT_CONTEXT).chmod(0o644)
    with refused("MODE"):
        site_masks(
            ENCRYPTED, standard_policy(tmp_path / "s"), "hospital-1", site / "startup", site / "local", site
        )  # fmt: skip


def test_kits_without_contexts_are_told_what_to_do(tmp_path: Path) -> None:
    with refused("NONE"):
        server_cipher(ENCRYPTED, tmp_path, tmp_path)
    with refused("NONE"):
        site_masks(ENCRYPTED, open_policy(tmp_path / "store"), "north", tmp_path, tmp_path, tmp_path)


def test_flares_own_parameters_are_taken_and_unsafe_ones_make_no_kits(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    done = nvflare(tmp_path / "a", changed(tmp_path / "a", with_he()))
    assert done.returncode == 0, done.stdout + done.stderr
    server = tmp_path / "a" / "kits" / "fairflare" / "prod_00" / "fl-server"
    record = server_cipher(ENCRYPTED, server / "startup", server / "local")
    assert record is not None
    assert record.parameters.poly_modulus_degree == 8192
    (tmp_path / "b").mkdir()
    narrow = with_he(poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 29, 60], scale_bits=29)
    done = nvflare(tmp_path / "b", changed(tmp_path / "b", narrow))
    assert "FF-HE-" in done.stdout + done.stderr
    assert not list((tmp_path / "b").rglob(RECORD_NAME))


# ----------------------------------------------------------------------------------------------------------- simulator


def test_a_simulation_of_encrypted_statistics_gets_a_key_of_its_own(tmp_path: Path) -> None:
    for name, of in (("encrypted", ENCRYPTED), ("masked", MASKED)):
        job = write_job(of, tmp_path / name / "job")
        local = Simulation(job, tmp_path / name / "run", CATALOG, SITES).workspace / "local"
        found = {file.name for file in local.iterdir()} & {CLIENT_CONTEXT, SERVER_CONTEXT, RECORD_NAME}
        assert len(found) == (3 if of is ENCRYPTED else 0)
    local = tmp_path / "encrypted" / "run" / "session-1" / "local"
    job = write_job(ENCRYPTED, tmp_path / "again")
    again = Simulation(job, tmp_path / "encrypted" / "run", CATALOG, SITES).workspace
    first, second = (SiteCipher(read_client(folder)) for folder in (local, again / "local"))
    assert first.fingerprint != second.fingerprint
    assert server_cipher(ENCRYPTED, tmp_path, local) == first.record


def test_contexts_are_written_for_their_owner_and_never_over_another(tmp_path: Path) -> None:
    made = contexts(SMALL)
    write_contexts(tmp_path, made.record, client=made.client)
    assert stat.S_IMODE((tmp_path / CLIENT_CONTEXT).stat().st_mode) == 0o600
    assert not (tmp_path / SERVER_CONTEXT).exists()
    with pytest.raises(FileExistsError):
        write_contexts(tmp_path, made.record, client=made.client)
