# SPDX-License-Identifier: Apache-2.0
"""The chart that is made for a kit: what it asks of a cluster, and what it does not.

Helm renders it, validators read it in ``test_validators.py`` (``make deploy``). Committed are the hashes of its files
and what Helm made of them: so here, without Helm, a change of the chart is seen, and what was rendered of it is looked
at. ``FAIRFLARE_UPDATE_GOLDEN=1 make deploy`` writes both anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from provision.deploy import chart
from provision.deploy.chart import ChartError, make

HOSPITAL, SERVER = "203.0.113.7/32", "198.51.100.0/24"
PARTIES = {"hospital-1": HOSPITAL, "fl-server": SERVER}
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "charts"


def files(folder: Path) -> dict[str, bytes]:
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def values(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "values.yaml").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("party", PARTIES)
def test_the_committed_charts_are_what_is_made(kits: Path, tmp_path: Path, party: str) -> None:
    made = make(kits / party, tmp_path / "chart", [PARTIES[party]])
    listed = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files(made).items())
    )
    golden = GOLDEN / f"{party}.sha256"
    if os.environ.get("FAIRFLARE_UPDATE_GOLDEN"):
        golden.write_text(listed, encoding="utf-8")
    assert listed == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize(("party", "network"), PARTIES.items())
def test_a_kit_is_only_read_and_its_key_is_in_no_file_of_the_chart(
    kits: Path, tmp_path: Path, party: str, network: str
) -> None:
    kit = tmp_path / party
    shutil.copytree(kits / party, kit)
    role = "server" if party == "fl-server" else "client"
    key = kit / "startup" / f"{role}.key"
    before, secret = files(kit), key.read_bytes()
    key.unlink()  # not even read
    made = make(kit, tmp_path / "chart", [network])
    key.write_bytes(secret)
    assert files(kit) == before
    kept = {"Chart.yaml", "values.yaml", "templates/_helpers.tpl", "templates/networkpolicy.yaml"}
    service = {"templates/server-service.yaml"} if role == "server" else set()
    assert set(files(made)) == kept | service | {f"templates/{role}-deployment.yaml"}
    assert not any(b"PRIVATE KEY" in content for content in files(made).values())


def test_a_hospitals_pod_has_no_rights_and_no_port(kits: Path, tmp_path: Path) -> None:
    made = make(kits / "hospital-1", tmp_path / "chart", [HOSPITAL])
    text = b"".join(files(made / "templates").values()).decode()
    for word in ("kind: Role", "kind: Service", "containerPort", "hostPort", "hostNetwork"):
        assert word not in text
    found = values(made)
    assert (found["serviceAccount"], found["rbac"]) == ({"create": False}, {"create": False})
    assert found["command"] + found["args"] == ["/bin/bash", "/opt/fairflare/kit/startup/sub_start.sh", "--once"]
    assert found["fairflare"]["network"] == {"cidrs": [HOSPITAL], "port": 8002, "dns": True}
    assert "fsGroup" not in found["securityContext"]
    assert found["fairflare"]["claims"]["data"]["readOnly"] is True


def test_the_servers_pod_opens_one_port(kits: Path, tmp_path: Path) -> None:
    made = make(kits / "fl-server", tmp_path / "chart", [SERVER])
    text = b"".join(files(made / "templates").values()).decode()
    assert "parentPort" not in text
    assert "kind: Role" not in text
    assert values(made)["fairflare"]["claims"] == {}


def test_what_makes_no_sense_is_refused_and_nothing_is_left(kits: Path, tmp_path: Path) -> None:
    site, to = kits / "hospital-1", tmp_path / "chart"
    for kit, networks, words in (
        (site, [], "no network"),
        (site, ["fl-server.example.org"], "--network"),
        (site, ["203.0.113.7/24"], "has host bits set"),
        (site, ["0.0.0.0/0"], "the whole world"),
        (site, ["::/0"], "the whole world"),
        (tmp_path, [HOSPITAL], "no start-up kit"),
        (kits / "admin@example.org", [HOSPITAL], "no start-up kit"),
    ):
        with pytest.raises(ChartError, match=words):
            make(kit, to, networks)
    assert list(tmp_path.iterdir()) == []
    to.mkdir()
    with pytest.raises(ChartError, match="there already"):
        make(site, to, [HOSPITAL])
    tagged = tmp_path / "tagged.yaml"
    tagged.write_text("runtime: k8s\nparent: {docker_image: 'r.example.org/x:1'}\n", encoding="utf-8")
    with pytest.raises(ChartError, match="an image by its tag"):
        make(site, tmp_path / "other", [HOSPITAL], config=tagged)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ChartError, match="nvflare deploy prepare"):
        make(site, tmp_path / "other", [HOSPITAL], config=tmp_path / "none.yaml")


def test_an_incomplete_kit_is_refused(kits: Path, tmp_path: Path) -> None:
    kit = tmp_path / "hospital-1"
    shutil.copytree(kits / "hospital-1", kit)
    (kit / "startup" / "rootCA.pem").unlink()
    with pytest.raises(ChartError, match=r"without startup/rootCA\.pem"):
        make(kit, tmp_path / "chart", [HOSPITAL])


@pytest.mark.parametrize("line", sorted(chart.DEPLOYMENT["client"]))
def test_a_template_of_another_flare_is_refused(tmp_path: Path, line: str) -> None:
    """A line that is not there, or there twice, would leave something open and say nothing."""
    lines = chart.DEPLOYMENT["client"]
    file = tmp_path / "deployment.yaml"
    file.write_text("".join(lines), encoding="utf-8")
    chart._edit(file, lines)
    for text in ("".join(one for one in lines if one != line), "".join([*lines, line])):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ChartError, match="not that of NVIDIA FLARE"):
            chart._edit(file, lines)
        assert file.read_text(encoding="utf-8") == text


# ------------------------------------------------------------------------------------------------- what Helm made of it


def documents(party: str) -> dict[str, Any]:
    text = (GOLDEN / f"{party}.yaml").read_text(encoding="utf-8")
    return {one["kind"]: one for one in yaml.safe_load_all(text) if one}


@pytest.mark.parametrize("party", PARTIES)
def test_a_pod_is_within_the_restricted_profile_of_kubernetes(party: str) -> None:
    """Field by field, as the Pod Security Standards say it: a namespace may enforce ``restricted``."""
    spec = documents(party)["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["securityContext"]["runAsNonRoot"] is container["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
    assert {one.keys() - {"name"} == {"persistentVolumeClaim"} or "emptyDir" in one for one in spec["volumes"]} == {
        True
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["shareProcessNamespace"] is True  # else FLARE is process 1, and no signal stops it
    assert {one["name"] for one in spec["volumes"]} == {one["name"] for one in container["volumeMounts"]}
    written = {one["mountPath"] for one in container["volumeMounts"] if not one.get("readOnly")}
    assert written == {"/opt/fairflare/kit", "/tmp", *(["/var/lib/fairflare"] if party == "hospital-1" else [])}  # noqa: S108
    assert {f"/opt/fairflare/kit/{one}" for one in ("startup", "local")} <= {
        one["mountPath"] for one in container["volumeMounts"]
    }


@pytest.mark.parametrize("party", PARTIES)
def test_the_network_policy_allows_one_port(party: str) -> None:
    found = documents(party)
    policy, pod = found["NetworkPolicy"]["spec"], found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= pod.items()
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    peer = [{"ipBlock": {"cidr": PARTIES[party]}}]
    ports = [{"protocol": "TCP", "port": 8002}]
    if party == "fl-server":
        assert (policy["egress"], policy["ingress"]) == ([], [{"from": peer, "ports": ports}])
        assert [one["port"] for one in found["Service"]["spec"]["ports"]] == [8002]
        return
    assert policy["ingress"] == []
    server, names = policy["egress"]
    assert server == {"to": peer, "ports": ports}
    assert {one["port"] for one in names["ports"]} == {53}
    assert "Service" not in found
