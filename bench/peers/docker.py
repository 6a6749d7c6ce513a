"""Docker as a peer: containers that start with published ports."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any, Final

from bench.forwards import FIRST_PORT, GREETING, STREAM
from bench.peers.acting import DOCKER, ask_docker
from bench.peers.peer import Peer, one_more
from bench.peers.steps import Request, Step
from bench.scene import Scene
from bench.traffic import ON_HOST
from tests.lab import image

_MANY, _ONE, _IMAGE = "many", "one", "traffic"
_OPTIONS: Final = (
    "--data-root=/tmp/docker",
    "--exec-root=/run/docker",
    "--pidfile=/run/docker.pid",
    "--storage-driver=vfs",
    f"--host=unix://{DOCKER}",
)
_EVERY: Final = "0.0.0.0"  # noqa: S104  Docker listens there, as by default, but for IPv6
_READY_WITHIN_S: Final = 120.0


class Docker(Peer):
    """Docker's daemon, for one container with all the ports, and one more with one."""

    label = "Docker"
    about = (
        "the start of a container that is there already, with N ports on IPv4, and the start and stop of a second one"
        " with one port, asked for over its socket: Docker publishes a port in no other way; its proxy, a process for"
        " each port, is on by default"
    )
    slow = True

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        host = scene.host
        programs = image.docker()
        path = f"PATH={programs}:/usr/sbin:/usr/bin:/sbin:/bin"
        self._daemon = host.popen("env", path, f"{programs}/dockerd", *_OPTIONS)
        self._daemon.wait_line("API listen on", _READY_WITHIN_S)
        self._ask("POST", f"/images/create?fromSrc=-&repo={_IMAGE}", self._files(), "application/x-tar")

    def publish(self, size: int) -> Sequence[Step]:
        """Start a container with so many ports."""
        return self._starting(_MANY, range(FIRST_PORT, FIRST_PORT + size))

    def add(self, size: int) -> Sequence[Step]:
        """Start a second one."""
        return self._starting(_ONE, [one_more(size)])

    def remove(self, size: int) -> Sequence[Step]:  # noqa: ARG002  whatever it has
        """Stop it."""
        return [Request("POST", f"/containers/{_ONE}/stop?t=0")]

    def withdraw(self, size: int) -> None:  # noqa: ARG002  whatever there is
        """Remove both."""
        for name in (_MANY, _ONE):
            self._ask("DELETE", f"/containers/{name}?force=1", b"")

    def pids(self) -> Sequence[int]:
        """Give the daemon's: containerd and the proxies are below it, what runs the containers is not."""
        return [self._daemon.pid]

    def close(self) -> None:
        """Stop it, and with it every container."""
        self._daemon.stop()

    def _starting(self, name: str, ports: Iterable[int]) -> Sequence[Step]:
        self._ask("POST", f"/containers/create?name={name}", json.dumps(container(ports)).encode())
        return [Request("POST", f"/containers/{name}/start")]

    def _files(self) -> bytes:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as files:
            files.add(f"/proc/{self.scene.host.init}/root{ON_HOST}", "traffic")
        return archive.getvalue()

    def _ask(self, verb: str, path: str, body: bytes, kind: str = "application/json") -> None:
        ask_docker(verb, path, body, kind, f"/proc/{self.scene.host.init}/root{DOCKER}")


def container(ports: Iterable[int]) -> dict[str, Any]:
    """Describe a container that serves, as Docker's API has it."""
    inside = f"{GREETING}/tcp"
    return {
        "Image": _IMAGE,
        "Cmd": ["/traffic", "serve", str(GREETING), str(STREAM), "2"],
        "ExposedPorts": {inside: {}},
        "HostConfig": {"PortBindings": {inside: [{"HostIp": _EVERY, "HostPort": str(port)} for port in ports]}},
    }
