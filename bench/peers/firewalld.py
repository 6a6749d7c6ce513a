"""firewalld as a peer: forward ports of a zone, asked for over D-Bus."""

from collections.abc import Iterable, Sequence
from typing import Final

from bench.forwards import hook_forwards
from bench.hook_scripts import HookForward
from bench.peers.peer import Peer, added, seconds
from bench.peers.steps import Program, Step
from bench.scene import Scene
from tests.lab import image
from tests.lab.place import wait_until

_ZONE: Final = "/etc/firewalld/zones/public.xml"
_NAME: Final = "org.fedoraproject.FirewallD1"
_OBJECT: Final = "/org/fedoraproject/FirewallD1"
_DEADLINE_MS: Final = 600_000
# polkit cannot run here. Without it, firewalld does what root asks for at once, which is faster.
_POLKIT: Final = "/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service"
_PLACE: Final = 'cp --archive "$1/usr" "$1/etc" / && rm -f "$2" && mkdir -p /run/dbus'


class Firewalld(Peer):
    """firewalld and its message bus."""

    label = "firewalld"
    about = "`reload` of a zone's file; one at runtime by `addForwardPort` and `removeForwardPort`"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        host = scene.host
        root = image.peers()
        host.run("sh", "-ec", _PLACE, "sh", str(root), _POLKIT)
        self._bus = host.popen("dbus-daemon", "--system", "--nofork", "--nopidfile")
        self._daemon = host.popen("/usr/bin/python3", "-Es", "/usr/sbin/firewalld", "--nofork", "--nopid")
        wait_until(self._answers, "firewalld answers")
        self.withdraw(0)

    def publish(self, size: int) -> Sequence[Step]:
        """Load a zone with so many forward ports."""
        return self._load(hook_forwards(size))

    def add(self, size: int) -> Sequence[Step]:
        """Add one at runtime."""
        return [_zone("addForwardPort", added(size), "int32:0")]

    def remove(self, size: int) -> Sequence[Step]:
        """Remove it at runtime."""
        return [_zone("removeForwardPort", added(size))]

    def reload(self, size: int) -> Sequence[Step]:
        """Load the zone with one more."""
        return self._load([*hook_forwards(size), added(size)])

    def withdraw(self, size: int) -> None:  # noqa: ARG002  whatever there is
        """Load the zone without any."""
        seconds(self.scene, self._load([]))

    def pids(self) -> Sequence[int]:
        """Give firewalld's; the bus is there for others, too."""
        return [self._daemon.pid]

    def close(self) -> None:
        """Stop both."""
        self._daemon.stop()
        self._bus.stop()

    def _load(self, forwards: Iterable[HookForward]) -> Sequence[Step]:
        self.scene.host.write(_ZONE, zone(forwards))
        return [asked(f"{_NAME}.reload")]

    def _answers(self) -> bool:
        return self.scene.host.run(*asked(f"{_NAME}.getDefaultZone").argv, check=False).returncode == 0


def zone(forwards: Iterable[HookForward]) -> str:
    """Write the zone that interfaces are in by default, with forward ports."""
    ports = "".join(
        f'<forward-port port="{each.port}" protocol="tcp" to-port="{each.guest_port}" to-addr="{each.guest}"/>\n'
        for each in forwards
    )
    return f'<?xml version="1.0" encoding="utf-8"?>\n<zone>\n<short>Public</short>\n{ports}<forward/>\n</zone>\n'


def asked(method: str, *arguments: str) -> Program:
    """Ask firewalld over D-Bus, and wait for its answer."""
    options = "--system", "--print-reply=literal", f"--reply-timeout={_DEADLINE_MS}", f"--dest={_NAME}"
    return Program(("dbus-send", *options, _OBJECT, method, *arguments))


def _zone(method: str, forward: HookForward, *more: str) -> Program:
    where = f"string:{forward.port}", "string:tcp", f"string:{forward.guest_port}", f"string:{forward.guest}"
    return asked(f"{_NAME}.zone.{method}", "string:public", *where, *more)
