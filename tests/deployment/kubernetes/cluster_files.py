"""Writes what a cluster of one machine needs: ports, keys, a token, kubeconfig; with --node also the node's and images.

python cluster_files.py DIRECTORY [--node]
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.support.server_files import free_ports, write_secret

PAUSE = "docker.io/trio-runner-test/pause:1"

CONTAINERD = """\
version = 2
root = "{directory}/containerd"
state = "{directory}/containerd-state"
[grpc]
address = "{directory}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# This machine may not let a process lower its oom_score_adj.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{directory}/cni"
"""

KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "address": "127.0.0.1",
    "healthzPort": 0,
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "failCgroupV1": False,
    "cgroupDriver": "cgroupfs",
    "cgroupsPerQOS": False,
    "enforceNodeAllocatable": [],
    "failSwapOn": False,
    "localStorageCapacityIsolation": False,
    # The machine's disk may be as full as it likes.
    "evictionHard": {"memory.available": "50Mi"},
    "imageGCHighThresholdPercent": 100,
}


def main(directory: Path, *more: str) -> None:
    """Write everything into `directory`, which exists."""
    api, etcd, etcd_peer, kubelet = free_ports(4)
    token = secrets.token_urlsafe(24)
    write_secret(directory / "tokens", f'{token},admin,admin,"system:masters"\n')
    write_secret(directory / "header", f"Authorization: Bearer {token}\n")
    write_secret(directory / "kubeconfig", json.dumps(kubeconfig(directory, api, token)))
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    write_secret(
        directory / "accounts.key",
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode(),
    )
    (directory / "accounts.pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    (directory / "ports.env").write_text(f"API={api}\nETCD={etcd}\nETCD_PEER={etcd_peer}\n")
    variables = f"TRIO_RUNNER_TEST_KUBERNETES={directory}/kubeconfig\n"
    if "--node" in more:
        write_node(directory, kubelet)
        variables += "TRIO_RUNNER_TEST_KUBERNETES_NODE=1\n"
    (directory / "kubernetes.env").write_text(variables)


def kubeconfig(directory: Path, port: int, token: str) -> dict[str, object]:
    """The administrator's; the API server writes the certificate that it names."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "test",
                "cluster": {
                    "server": f"https://127.0.0.1:{port}",
                    "certificate-authority": f"{directory}/apiserver.crt",
                },
            }
        ],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin", "namespace": "default"}}],
        "current-context": "test",
    }


def write_node(directory: Path, port: int) -> None:
    """The configs of containerd and kubelet; only the loopback is set up, so pods need the host's network."""
    (directory / "containerd.toml").write_text(CONTAINERD.format(directory=directory, pause=PAUSE))
    (directory / "cni").mkdir()
    (directory / "cni/loopback.conflist").write_text(
        json.dumps({"cniVersion": "0.4.0", "name": "loopback", "plugins": [{"type": "loopback"}]})
    )
    ours = {
        "containerRuntimeEndpoint": f"unix://{directory}/containerd.sock",
        "podLogsDir": f"{directory}/logs",
        "port": port,
    }
    (directory / "kubelet.yaml").write_text(json.dumps(KUBELET | ours))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
