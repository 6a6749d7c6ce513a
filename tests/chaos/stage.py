"""The host as it is set up before anything goes wrong: networks, guests, a bystander's rules, the daemon."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from itertools import combinations
from xml.etree import ElementTree as ET

import libvirt

from tests.chaos.admission import ANYBODY, BANNED4, FILE, change_ban, list_text
from tests.chaos.foreign import install_bystander, lines_of
from tests.chaos.guests import ChaosGuest
from tests.chaos.listing import Listing, copy_nft
from tests.chaos.model import AUTOMATIC, ENTRIES, HOSTILE, NETWORKS, STEADY, STILL, World
from tests.chaos.server import TCP_PORT, UDP_PORT
from tests.chaos.steady import Steady, transfers
from tests.lab.command import LabError
from tests.lab.daemon import Daemon
from tests.lab.domain import Link, mac_of
from tests.lab.host import CLIENT4, PUBLIC4, PUBLIC6, SOURCE, Host
from tests.lab.libvirt_client import Reservation
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.probe import Prober
from tests.lab.release import Flavour, LibvirtFirewall

_CHANGED = libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE | libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG

_LINES = 80
HOSTILE4, HOSTILE6 = "192.168.121.66", "2001:db8:121::66"
STATE = "/var/lib/kvm-portfwd"
# The daemon writes to a journal as under systemd; libvirtd writes to a file, which cannot be stuck with it.
_JOURNALED = str(SOURCE / "tests/lab/journaled.py")
_PREPARE = f"""
mkdir -p {STATE} /run/systemd/journal /run/systemd/journald.conf.d
mount -t tmpfs -o mode=0755,size=64m tmpfs {STATE}
printf '[Journal]\\nReadKMsg=no\\nStorage=volatile\\nRateLimitIntervalSec=0\\n' >/run/systemd/journald.conf.d/lab.conf
echo 'log_outputs = "3:file:/var/log/libvirt/libvirtd.log"' >>/etc/libvirt/libvirtd.conf
"""
# What the host serves on its own 127.0.0.1.
SECRET_PORT = 7777
# A guest has to be made to send to 127.0.0.1 at all.
_ASK_FOR_LOOPBACK = """
ip route del local 127.0.0.1 dev lo table local
ip route del local 127.0.0.0/8 dev lo table local
ip route add 127.0.0.1 via 192.168.121.1
echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
"""
# What the kernel knows of the connections that must not notice.
_TOLD_AT_THE_END = (
    "conntrack -L -f ipv4 2>/dev/null | grep -E 'port=900[01] '; conntrack -L -f ipv6 2>/dev/null | grep 'port=9000 '",
    "ip neigh",
    "conntrack -S",
)
_READY_WITHIN_S = 60.0


class Stage:
    """A host, its guests, the model of all of it, and the connections that must not notice."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.world = World(legacy=host.flavour.firewall is LibvirtFirewall.LEGACY)
        self.guests = {key: ChaosGuest(host, domain) for key, domain in self.world.domains.items()}
        self.hostile = LxcGuest(host, HOSTILE, Link(STILL, (f"{HOSTILE4}/24", f"{HOSTILE6}/64")))
        self.references: dict[frozenset[str], list[str]] = {}
        # Where probes start.
        self.origins: dict[str, Prober] = {"outside": host.outside, "host": host.place}
        self._daemon: Daemon | None = None
        host.run("sh", "-ec", _PREPARE)
        self.journal = host.popen("/usr/lib/systemd/systemd-journald")
        host.run("sh", "-c", "until test -S /run/systemd/journal/stdout; do sleep 0.05; done")
        self.steady: Steady

    @classmethod
    @contextmanager
    def set_up(cls, flavour: Flavour) -> Iterator["Stage"]:
        """Boot a host and bring everything up; it is gone after the block."""
        with Host.boot(flavour) as host, ExitStack() as at_end:
            stage = cls(host)
            at_end.callback(stage.journal.stop, signal.SIGKILL)
            host.libvirt.start()
            copy_nft(host)
            stage._define()
            stage.references = dict(stage._seen_foreign())
            for guest in stage.guests.values():
                guest.start()
            stage.origins[STEADY] = stage.guests[STEADY].place
            stage.hostile.start().run("sh", "-ec", _ASK_FOR_LOOPBACK)
            host.place.serve("secret", "tcp", SECRET_PORT)
            host.outside.popen([host.python, f"{SOURCE}/tests/chaos/server.py", "outside"]).wait_line("^ready$")
            stage._prepare_clients()
            stage.write_list(list_text(stage.world.listed))
            stage.start_daemon()
            stage.world.automatic = stage._assigned()
            stage.ban("add", BANNED4)
            stage.steady = at_end.enter_context(stage._transfers())
            yield stage

    def _define(self) -> None:
        for name, third in NETWORKS.items():
            kept = [Reservation(mac_of("a"), self.world.domains["a"].address4)] if name == "default" else []
            subnets = f"192.168.{third}.0/24", f"2001:db8:{third}::/64"
            self.host.libvirt.define_network(name, *subnets, dhcp=True, reservations=kept)
        install_bystander(self.host)
        # A guest's own address must not answer outside, also for a client that knows the way.
        for third in NETWORKS.values():
            self.host.outside.run(["ip", "route", "add", f"192.168.{third}.0/24", "via", PUBLIC4])
            self.host.outside.run(["ip", "route", "add", f"2001:db8:{third}::/64", "via", PUBLIC6])

    def _prepare_clients(self) -> None:
        """Give the client outside the addresses that are banned, and any of those of whom limits know nothing yet."""
        self.host.outside.run(["ip", "address", "add", f"{BANNED4}/24", "dev", "eth0"])
        self.host.outside.run(["ip", "route", "add", "local", ANYBODY, "dev", "lo"])

    def ban(self, verb: str, address: str) -> None:
        """Have another program add someone to the set that is its own, or `delete` them from it."""
        self.host.run(*change_ban(verb, address, legacy=self.world.legacy))
        banned = self.world.banned
        self.world.banned = banned | {address} if verb == "add" else banned - {address} if verb == "delete" else set()
        # What is written down outlives the daemon and a wipe.
        wait_until(self._knows_bans, "the daemon has written down who is banned")

    def _knows_bans(self) -> bool:
        kept = self.host.run("cat", f"{STATE}/external-sets.json", check=False).stdout
        found = {first for record in json.loads(kept or "[]") for first, _, _ in record["elements"]}
        return found == {int(IPv4Address(address)) for address in self.world.banned}

    def write_list(self, text: str) -> None:
        """Replace the file of a set as an editor does."""
        script = f"mkdir -p /etc/portfwd.d && cat >{FILE}.new && mv {FILE}.new {FILE}"
        self.host.run("sh", "-ec", script, stdin=text)

    def _assigned(self) -> dict[str, int]:
        """Ask which ports domains were given; they must have the same from now on."""
        found = ((entry.domain, port) for entry in ENTRIES.values() for port in entry.ports if port.first == AUTOMATIC)
        command = (self.host.python, "-m", "fwdaemon", "port", "--port-only")
        return {domain: int(self.host.run(*command, domain, str(port.guest)).stdout) for domain, port in found}

    def _seen_foreign(self) -> Iterator[tuple[frozenset[str], list[str]]]:
        """What libvirt and the bystander have for each choice of active networks, while there is no daemon."""
        touched = sorted(NETWORKS.keys() - {STILL})
        for count in range(len(touched) + 1):
            for down in combinations(touched, count):
                for name in down:
                    self.host.libvirt.destroy_network(name)
                yield frozenset(NETWORKS.keys() - set(down)), lines_of(Listing.of(self.host).foreign)
                for name in down:
                    self.host.libvirt.start_network(name)

    @contextmanager
    def _transfers(self) -> Iterator[Steady]:
        outside, streams = self.host.outside, [(PUBLIC4, TCP_PORT), (PUBLIC6, TCP_PORT), ("198.51.100.9", TCP_PORT)]
        # What a 1:1 guest opens itself has no label of ours.
        leaving = self.guests[STEADY].place, (CLIENT4, TCP_PORT)
        ways = [*((outside, there) for there in streams), leaving]
        with transfers(ways, (outside, (PUBLIC4, UDP_PORT)), "steady") as steady:
            yield steady

    @property
    def daemon(self) -> Daemon:
        """The running daemon."""
        assert self._daemon is not None
        return self._daemon

    @property
    def log(self) -> str:
        """What the daemon said last, to the journal, which reads again if it was stuck."""
        self.journal.send(signal.SIGCONT)
        told = self.host.run("journalctl", "--sync", check=False).stderr
        return told + self.host.run("journalctl", "--output=cat", f"--lines={_LINES}", check=False).stdout

    def autopsy(self) -> str:
        """Say what the daemon said last, and abort it if it runs, with where each thread was if Python says."""
        told = self.log
        if self._daemon and self._daemon.process.running:
            self._daemon.process.stop(signal.SIGABRT)
        seen = [self.host.run("sh", "-c", command, check=False).stdout for command in _TOLD_AT_THE_END]
        return "\n".join([told, self.log, *seen])

    def start_daemon(self, text: str | None = None) -> None:
        """Start the daemon on the model's configuration, or on this text, and wait until it is ready."""
        through = (self.host.python, _JOURNALED)
        self._daemon = self.host.daemon(text or self.world.config(), wait=False, through=through)
        self._daemon.wait_ready(_READY_WITHIN_S)

    def signal_daemon(self, number: signal.Signals) -> None:
        """Stop or continue the daemon."""
        self.daemon.process.send(number)

    def kill_daemon(self) -> None:
        """SIGKILL."""
        self.daemon.close()

    def stop_daemon(self, *, remove: bool) -> None:
        """SIGTERM, once it knows what is to become of what it holds; it has to end well."""
        if remove:
            self.daemon.reload_with(self.world.config("remove"), _READY_WITHIN_S)
        status = self.daemon.terminate()
        if status != 0:
            raise LabError(f"the daemon ended with status {status}")
        self.daemon.close()

    def configure(self, text: str) -> None:
        """Write the configuration, and let the daemon read it if it is there."""
        self.host.write("/etc/portfwd.toml", text)
        if self.world.daemon != "down":
            self.daemon.sighup()

    def reserve(self) -> None:
        """Let libvirt know the present address of the guest whose address is learned, for now and for later."""
        domain = self.world.domains["a"]
        element = ET.Element("host", mac=mac_of("a"), ip=domain.address4)
        modify, section = libvirt.VIR_NETWORK_UPDATE_COMMAND_MODIFY, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST
        with self.host.libvirt.connection() as connection:
            network = connection.networkLookupByName(domain.network)
            flags = _CHANGED if network.isActive() else libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG
            network.update(modify, section, -1, ET.tostring(element, encoding="unicode"), flags)
