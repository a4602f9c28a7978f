# SPDX-License-Identifier: Apache-2.0
"""Makes a Helm chart for a start-up kit: the one of ``nvflare deploy prepare``, with what it leaves open closed.

``python -m provision.deploy.chart KIT --network 203.0.113.7/32 --to charts/hospital-1``

FLARE's chart starts each job in a pod of its own. For this it changes the kit, needs the right to make pods and to read
and write secrets, and fetches the job's workspace by a message that a hospital's shutters close. Here a job runs as it
does without containers, beside its parent in one pod: the kit stays as it is, byte for byte, on the claim that the pod
mounts; the pod has no rights in the cluster, no capabilities and a root that is read-only; and a network policy allows
one port. FLARE never sees the kit's private key.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "k8s.yaml"
#: Start-up file -> whose kit it is, how FLARE's templates are called, and certificate and key.
ROLES = {"fed_client.json": "client", "fed_server.json": "server"}
#: What FLARE reads of a kit; the private key is not among it.
READ = ("startup/{start}", "startup/rootCA.pem", "startup/{role}.crt", "local/resources.json.default")
#: Templates that give rights in the cluster, or open a port that nobody needs; without them the chart has none.
DROPPED = {
    "client": ("role.yaml", "serviceaccount.yaml", "service.yaml"),
    "server": ("role.yaml", "serviceaccount.yaml", "server-tcp-services.yaml"),
}
PARENT_PORT = {
    "client": "          ports:\n            - containerPort: {{ .Values.port }}\n",
    "server": "            - containerPort: {{ .Values.parentPort }}\n              protocol: TCP\n",
}
#: Lines of FLARE's deployments -> what they become; each stands there once.
EVERY_DEPLOYMENT = {
    "    spec:\n      {{- if .Values.serviceAccount.create }}\n": "    spec:\n"
    "      automountServiceAccountToken: false\n"
    "      enableServiceLinks: false\n"
    # FLARE as a container's first process hears no signal: it would run on until it is killed.
    "      shareProcessNamespace: true\n"
    "      {{- if .Values.serviceAccount.create }}\n",
    "            claimName: {{ .Values.persistence.workspace.claimName }}\n": "            claimName: "
    "{{ .Values.persistence.workspace.claimName }}\n"
    "        - name: tmp\n"
    "          emptyDir:\n"
    "            sizeLimit: {{ .Values.fairflare.tmp.sizeLimit }}\n"
    "        {{- range $name, $one := .Values.fairflare.claims }}\n"
    "        - name: {{ $name }}\n"
    "          persistentVolumeClaim:\n"
    "            claimName: {{ $one.claimName }}\n"
    "            readOnly: {{ $one.readOnly }}\n"
    "        {{- end }}\n",
    "              mountPath: {{ .Values.persistence.workspace.mountPath }}\n": "              mountPath: "
    "{{ .Values.persistence.workspace.mountPath }}\n"
    # The hospital writes its will and its key; a process that somebody broke into does not.
    '            {{- range list "startup" "local" }}\n'
    "            - name: {{ $.Values.persistence.workspace.volumeName }}\n"
    "              mountPath: {{ $.Values.persistence.workspace.mountPath }}/{{ . }}\n"
    "              subPath: {{ . }}\n"
    "              readOnly: true\n"
    "            {{- end }}\n"
    "            - name: tmp\n"
    "              mountPath: /tmp\n"
    "            {{- range $name, $one := .Values.fairflare.claims }}\n"
    "            - name: {{ $name }}\n"
    "              mountPath: {{ $one.mountPath }}\n"
    "              readOnly: {{ $one.readOnly }}\n"
    "            {{- end }}\n",
    "          {{- with .Values.resources }}\n": "          securityContext:\n"
    "            {{- toYaml .Values.fairflare.securityContext | nindent 12 }}\n"
    "          {{- with .Values.resources }}\n",
}
DEPLOYMENT = {
    "client": {
        **EVERY_DEPLOYMENT,
        PARENT_PORT["client"]: "",
        "            - uid={{ default .Values.name .Values.siteName }}\n": "",
    },
    "server": {**EVERY_DEPLOYMENT, PARENT_PORT["server"]: ""},
}
SERVICE = {
    "    - name: nvflare-server\n      protocol: TCP\n      port: {{ .Values.parentPort }}\n"
    "      targetPort: {{ .Values.parentPort }}\n": ""
}
POLICY = """apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "nvflare-@ROLE@.name" . }}
  labels:
    {{- include "nvflare-@ROLE@.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "nvflare-@ROLE@.selectorLabels" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
"""
#: A hospital: nothing in; out to the server's port, and to the cluster's names.
POLICIES = {
    "client": POLICY
    + """  ingress: []
  egress:
    - to:
        {{- range .Values.fairflare.network.cidrs }}
        - ipBlock:
            cidr: {{ . }}
        {{- end }}
      ports:
        - protocol: TCP
          port: {{ .Values.fairflare.network.port }}
    {{- if .Values.fairflare.network.dns }}
    - to:
        - namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: kube-system
          podSelector:
            matchLabels:
              k8s-app: kube-dns
      ports:
        - protocol: UDP
          port: 53
        - protocol: TCP
          port: 53
    {{- end }}
""",
    "server": POLICY
    + """  egress: []
  ingress:
    - from:
        {{- range .Values.fairflare.network.cidrs }}
        - ipBlock:
            cidr: {{ . }}
        {{- end }}
      ports:
        - protocol: TCP
          port: {{ .Values.fairflare.network.port }}
""",
}
CLAIMS = {
    "client": {
        "store": {"claimName": "fairflare-store", "mountPath": "/var/lib/fairflare", "readOnly": False},
        "data": {"claimName": "fairflare-data", "mountPath": "/data", "readOnly": True},
    },
    "server": {},
}


class ChartError(ValueError):
    """A chart that cannot be made; nothing is left behind."""


def make(kit: Path, to: Path, networks: Sequence[str], config: Path = CONFIG) -> Path:
    """Write the chart for ``kit`` into the new folder ``to``.

    Parameters
    ----------
    kit
        A start-up kit of a hospital or of the server; only read.
    to
        The chart's folder, which must not be there yet.
    networks
        Addresses (CIDR): for a hospital the server's, for the server those that may reach it.
    config
        Configuration for ``nvflare deploy prepare``.

    Raises
    ------
    ChartError
        No such kit, no network, an image without a digest, or FLARE's chart has another form than that of 2.9.
    """
    if to.exists():
        raise ChartError(f"got a folder that is there already: {to.name}. Next step: remove it, or name another")
    start, role = _role(kit)
    cidrs = [_cidr(one, role) for one in networks]
    if not cidrs:
        raise ChartError("got no network. Next step: --network with the server's address, such as 203.0.113.7/32")
    with tempfile.TemporaryDirectory(prefix="fairflare-chart-") as folder:
        copy, prepared = Path(folder) / kit.resolve().name, Path(folder) / "prepared"
        _copy_without_key(kit, copy, start, role)
        _prepare(copy, prepared, config)
        chart = prepared / "helm_chart"
        _harden_templates(chart / "templates", role)
        _harden_values(chart / "values.yaml", role, cidrs, _port(kit / "startup" / start))
        shutil.copytree(chart, to)
    return to


def _role(kit: Path) -> tuple[str, str]:
    found = [(start, role) for start, role in ROLES.items() if (kit / "startup" / start).is_file()]
    if len(found) != 1 or not (kit / "local").is_dir():
        raise ChartError("got no start-up kit of a hospital or the server. Next step: name prod_00/hospital-1, or such")
    return found[0]


def _cidr(text: str, role: str) -> str:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as problem:
        raise ChartError(f"--network: {problem}. Next step: an address such as 203.0.113.7/32") from None
    if role == "client" and network.prefixlen == 0:
        raise ChartError(
            "--network: got the whole world, expected the server's address: a hospital talks to nobody else"
        )
    return str(network)


def _copy_without_key(kit: Path, to: Path, start: str, role: str) -> None:
    for name in READ:
        file = name.format(start=start, role=role)
        if not (kit / file).is_file():
            raise ChartError(f"got a kit without {file}. Next step: unpack it anew")
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kit / file, to / file)
    (to / "startup" / f"{role}.key").touch()  # FLARE asks that it is there


def _prepare(kit: Path, to: Path, config: Path) -> None:
    command = [str(Path(sys.executable).with_name("nvflare")), "deploy", "prepare", str(kit)]
    done = subprocess.run(
        [*command, "--config", str(config), "--output", str(to)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise ChartError(f"nvflare deploy prepare: {(done.stderr or done.stdout).strip()}")


def _harden_templates(templates: Path, role: str) -> None:
    for name in DROPPED[role]:
        (templates / name).unlink()
    _edit(templates / f"{role}-deployment.yaml", DEPLOYMENT[role])
    if role == "server":
        _edit(templates / "server-service.yaml", SERVICE)
    (templates / "networkpolicy.yaml").write_text(POLICIES[role].replace("@ROLE@", role), encoding="utf-8")


def _edit(file: Path, changes: Mapping[str, str]) -> None:
    text = file.read_text(encoding="utf-8")
    for found, wanted in changes.items():
        if text.count(found) != 1:
            raise ChartError(f"{file.name} is not that of NVIDIA FLARE 2.9: no line {found.strip().splitlines()[0]!r}")
        text = text.replace(found, wanted)
    file.write_text(text, encoding="utf-8")


def _port(start: Path) -> int:
    (server,) = json.loads(start.read_text(encoding="utf-8"))["servers"]
    return int(server["service"]["target"].rsplit(":", 1)[1])


def _harden_values(file: Path, role: str, cidrs: Sequence[str], port: int) -> None:
    values: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not values["image"]["repository"].endswith("@sha256"):
        raise ChartError(
            "got an image by its tag, expected name@sha256:digest: what a tag means can be changed by others"
        )
    values["image"]["pullPolicy"] = "IfNotPresent"  # under a digest there is never anything newer
    workspace = values["persistence"]["workspace"]["mountPath"]
    values["serviceAccount"] = {"create": False}
    values["rbac"] = {"create": False}
    # The kit's own start script, as without a container: it closes the umask and Python's search path.
    values["command"] = ["/bin/bash", f"{workspace}/startup/sub_start.sh"]
    values["args"] = ["--once"]
    for name in ("workspaceConfig", "parentPort", "tcpConfigMapEnabled", "hostPortEnabled", "siteName"):
        values.pop(name, None)
    values["fairflare"] = {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "tmp": {"sizeLimit": "1Gi"},
        "claims": CLAIMS[role],
        "network": {"cidrs": list(cidrs), "port": port, **({"dns": True} if role == "client" else {})},
    }
    if role == "client":
        del values["port"]  # the parent's, for pods of jobs
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kit", type=Path, help="start-up kit of a hospital, or of the server; only read")
    parser.add_argument("--to", type=Path, required=True, help="new folder for the chart")
    parser.add_argument("--config", type=Path, default=CONFIG, help="as for nvflare deploy prepare")
    parser.add_argument(
        "--network", action="append", default=[], metavar="CIDR",
        help="a hospital: the server's address; the server: who may reach it. Again for more",
    )  # fmt: skip
    arguments = parser.parse_args()
    try:
        made = make(arguments.kit, arguments.to, arguments.network, arguments.config)
    except ChartError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"wrote {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
