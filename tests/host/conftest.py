"""A scene most behaviour plays in: two libvirt networks, two guests on one and one on the other, all dual stack."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import libvirt
import pytest

from tests.conftest import StartDaemon
from tests.lab.daemon import Daemon
from tests.lab.domain import Link
from tests.lab.host import PUBLIC4, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.probe import Answer, Prober
from tests.lab.release import LibvirtFirewall

if TYPE_CHECKING:
    from tests.host.explained import Patient


class Conversation:
    """A TCP connection through a forward that stays open; the server echoes, within `patience` seconds."""

    def __init__(self, client: Prober, address: str, port: int, patience: float = 5.0) -> None:
        self._socket = client.connect(address, port, timeout=patience)
        self._stream = self._socket.makefile("rwb")
        self.greeting = self._stream.readline().decode().strip()

    def goes_on(self) -> bool:
        """Whether what is said now comes back."""
        said = f"{time.monotonic()}\n".encode()
        try:
            self._stream.write(said)
            self._stream.flush()
            return self._stream.readline() == said
        except OSError:
            return False

    @contextmanager
    def never_pausing(self) -> Iterator[None]:
        """Keep talking in the background; whatever was said in the meantime must have come back."""
        over, answered = threading.Event(), []

        def talk() -> None:
            # 200 times a second: as fast as it goes would take a processor from what else runs.
            while not over.wait(0.005):
                answered.append(self.goes_on())

        talking = threading.Thread(target=talk, daemon=True)
        talking.start()
        try:
            yield
        finally:
            over.set()
            talking.join(10)
        assert answered
        assert all(answered)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._stream.close()
        self._socket.close()


HEAD = '[daemon]\nlibvirt = ["lxc:///system"]\n'
# For what libvirt reports and what we believe, which does not depend on the firewall: a host of each version of
# libvirt.
each_libvirt = pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)
# For what our own rules and settings do: a host of each rule system. libvirt's own on iptables-nft, beside which our
# tables are the same, are shown with where rules lead to (reach, bans, lifecycle).
each_backend = pytest.mark.on(LibvirtFirewall.NFTABLES, LibvirtFirewall.LEGACY)
# Where no rule decides, one kind of host is enough.
rules_have_no_part = pytest.mark.on(LibvirtFirewall.NFTABLES)


@dataclass(frozen=True, slots=True)
class Scene:
    """`web` and `neighbour` are on network default, `far` is on another; their addresses are configured, not leased."""

    host: Host
    web: LxcGuest
    neighbour: LxcGuest
    far: LxcGuest
    start: StartDaemon
    conversations: list[Conversation] = field(default_factory=list)

    def daemon(self, entries: str, head: str = HEAD) -> Daemon:
        """Start the daemon on these entries, in which WEB4, NEIGHBOUR6 and so on stand for addresses."""
        return self.start(head + filled(entries))

    def wipe(self) -> None:
        """Take our rules of IPv4 away, as another program could."""
        if self.host.flavour.firewall is LibvirtFirewall.LEGACY:
            self.host.run("iptables-legacy", "-w", "-t", "nat", "-F")
        else:
            self.host.run("nft", "delete", "table", "ip", "kvm_portfwd")

    def converse(self, port: int, address: str = PUBLIC4) -> Conversation:
        """Open a connection from outside, once that can be done; it is closed at the end."""
        wait_until(lambda: self.host.outside.tcp(address, port).answered, f"port {port} answers")
        self.conversations.append(Conversation(self.host.outside, address, port))
        return self.conversations[-1]

    def refused(self, probe: Callable[[], Answer], what: str = "the port is closed") -> None:
        """Wait until a probe has no answer any more."""
        wait_until(lambda: not probe().answered, what)

    def answers(self, probe: Callable[[], Answer], text: str) -> None:
        """Wait until a probe has this answer."""
        wait_until(lambda: probe().text == text, lambda: f"the answer {text!r}, not {probe()}")


WEB4, NEIGHBOUR4, FAR4 = "192.168.122.10", "192.168.122.11", "192.168.123.10"
WEB6, NEIGHBOUR6, FAR6 = "2001:db8:122::10", "2001:db8:122::11", "2001:db8:123::10"
_ADDRESSES = {
    "WEB4": WEB4,
    "WEB6": WEB6,
    "NEIGHBOUR4": NEIGHBOUR4,
    "NEIGHBOUR6": NEIGHBOUR6,
    "FAR4": FAR4,
    "FAR6": FAR6,
}


def filled(text: str) -> str:
    """Write the guests' addresses into a configuration."""
    for name, address in _ADDRESSES.items():
        text = text.replace(name, address)
    return text


def entry(domain: str, ports: str, address: str, more: str = "") -> str:
    """One `[[forward]]`; `ports` are separated by spaces."""
    listed = ", ".join(f'"{port}"' for port in ports.split())
    return f'[[forward]]\ndomain = "{domain}"\naddress = "{address}"\nports = [{listed}]\n{more}\n'


@contextmanager
def scene_on(host: Host) -> Iterator[tuple[LxcGuest, LxcGuest, LxcGuest]]:
    with ExitStack() as at_end:
        for name, third in (("default", 122), ("other", 123)):
            host.libvirt.define_network(name, f"192.168.{third}.0/24", f"2001:db8:{third}::/64")
            at_end.callback(host.libvirt.remove_network, name)
        web = LxcGuest(host, "web", Link("default", (f"{WEB4}/24", f"{WEB6}/64")))
        neighbour = LxcGuest(host, "neighbour", Link("default", (f"{NEIGHBOUR4}/24", f"{NEIGHBOUR6}/64")))
        far = LxcGuest(host, "far", Link("other", (f"{FAR4}/24", f"{FAR6}/64")))
        for guest in (web, neighbour, far):
            at_end.callback(guest.remove)
            guest.start()
        yield web, neighbour, far


@pytest.fixture(scope="module")
def module_guests(module_host: Host) -> Iterator[tuple[LxcGuest, LxcGuest, LxcGuest]]:
    """Guests for a whole module; tests take `shared_scene`."""
    with scene_on(module_host) as guests:
        yield guests


@pytest.fixture
def shared_scene(
    module_guests: tuple[LxcGuest, LxcGuest, LxcGuest], host: Host, daemon: StartDaemon
) -> Iterator[Scene]:
    """The scene for tests that leave networks and guests as they are."""
    yield from _playing(Scene(host, *module_guests, daemon))


def _playing(scene: Scene) -> Iterator[Scene]:
    yield scene
    for conversation in scene.conversations:
        conversation.close()


@pytest.fixture
def mended_scene(shared_scene: Scene) -> Iterator[Scene]:
    """The same for tests that stop guests or change what libvirt has of them: who differs afterwards is replaced.

    A test that changes networks, or something within a guest, takes `scene`.
    """
    guests = (shared_scene.web, shared_scene.neighbour, shared_scene.far)
    before = [(guest, _as_libvirt_has(guest), len(guest.servers)) for guest in guests]
    yield shared_scene
    for guest, state, servers in before:
        for server in guest.servers[servers:]:
            server.stop()
        del guest.servers[servers:]
        if _as_libvirt_has(guest) != state:
            guest.remove()
            guest.start()


def _as_libvirt_has(guest: LxcGuest) -> tuple[object, ...] | None:
    """All that changes with a start, a pause or another definition; `None` where it is gone or too much to tell."""
    try:
        with guest.domain() as domain:
            texts = (domain.XMLDesc(flags) for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE))
            return domain.ID(), domain.state(), domain.isPersistent(), *texts
    except libvirt.libvirtError:
        return None


@pytest.fixture
def scene(host: Host, daemon: StartDaemon) -> Iterator[Scene]:
    """The scene for tests that change networks or guests."""
    with scene_on(host) as guests:
        yield from _playing(Scene(host, *guests, daemon))


@contextmanager
def libvirts_rules_kept(host: Host) -> Iterator[None]:
    """Have libvirt write its rules again at the end, as it does at its start only, where any of others have changed."""
    before = host.snapshot_foreign()
    try:
        yield
    finally:
        if host.snapshot_foreign() != before:
            host.libvirt.restart()


@pytest.fixture(scope="module")
def module_patient(module_host: Host, module_guests: tuple[LxcGuest, LxcGuest, LxcGuest]) -> Iterator["Patient"]:
    """One host for all tests of what `explain` says; each takes `patient`."""
    from tests.host.explained import admitted  # noqa: PLC0415  it takes from here itself

    with admitted(module_host, module_guests) as patient:
        yield patient


@pytest.fixture
def patient(module_patient: "Patient") -> Iterator["Patient"]:
    """A host in good health, with a daemon that forwards port 8000 to web; what a test breaks is repaired after it."""
    module_patient.load()
    module_patient.host.run("conntrack", "--flush", check=False)
    wait_until(lambda: module_patient.fetch().answered, "the forward works before the test")
    yield module_patient
    module_patient.mend.close()
