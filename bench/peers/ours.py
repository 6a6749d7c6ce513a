"""kvm-portfwd as a peer of the others."""

from collections.abc import Sequence
from typing import Final

from bench.forwards import GREETING, config, guest_address, guest_name
from bench.peers.peer import Peer, one_more, seconds
from bench.peers.steps import Method, Step
from bench.scene import Scene
from bench.wiped import saved
from tests.lab.daemon import CONFIG

_RELOAD: Final = Method("Reload", {"confirm_seconds": None})
_NOTHING: Final = '[daemon]\nlibvirt = ["lxc:///system"]\nresync = "1h"\n'


class Ours(Peer):
    """Our daemon, asked over its control socket."""

    label = "kvm-portfwd"
    about = "`reload` of a file; one by `open` and `close`"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.libvirts = saved(scene.host)
        self._daemon = scene.daemon(_NOTHING)

    def publish(self, size: int) -> Sequence[Step]:
        """Load a file with so many forwards."""
        return self._load(config(size, resync="1h"))

    def add(self, size: int) -> Sequence[Step]:
        """Open a port for a while."""
        wish = {"domain": guest_name(0), "ports": [_ports(size)], "sources": [], "seconds": None}
        return [Method("Open", wish)]

    def remove(self, size: int) -> Sequence[Step]:
        """Close it early."""
        return [Method("Close", {"domain": guest_name(0), "ports": [_ports(size)]})]

    def reload(self, size: int) -> Sequence[Step]:
        """Load the file with one more entry."""
        return self._load(with_one_more(size))

    def withdraw(self, size: int) -> None:  # noqa: ARG002  whatever there is
        """Load a file without forwards."""
        seconds(self.scene, self._load(_NOTHING))

    def pids(self) -> Sequence[int]:
        """Give the daemon's; its helpers are below it."""
        return [self._daemon.pid]

    def close(self) -> None:
        """Stop it."""
        self._daemon.close()

    def _load(self, text: str) -> Sequence[Step]:
        self.scene.host.write(CONFIG, text)
        return [_RELOAD]


def with_one_more(size: int) -> str:
    """Write a configuration of so many forwards, and one more."""
    entry = f'\n[[forward]]\ndomain = "{guest_name(0)}"\naddress = "{guest_address(0)}"\nports = ["{_ports(size)}"]\n'
    return config(size, resync="1h") + entry


def _ports(size: int) -> str:
    return f"{one_more(size)}:{GREETING}"
