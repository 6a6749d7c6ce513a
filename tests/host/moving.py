"""Guests that migrate between two hosts with a daemon on each, for the tests of it."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import libvirt

from tests.host.conftest import Conversation
from tests.lab.daemon import Daemon
from tests.lab.domain import Link
from tests.lab.host import PUBLIC4, Host
from tests.lab.pair import SECOND4, Pair, two_hosts
from tests.lab.place import PATIENCE, wait_until
from tests.lab.qemu import ECHO_PORT, QemuGuest
from tests.lab.release import Flavour

VM4, VM6 = "192.168.122.50", "2001:db8:122::50"
MAIL4, MAIL6 = "198.51.100.8", "2001:db8::88"
ROUTED4, ROUTED6 = "203.0.113.66", "2001:db8:64::66"
PREFIX4, PREFIX6 = "203.0.113.64/29", "2001:db8:64::/64"
HELD = (MAIL4, MAIL6, ROUTED4, ROUTED6)
TICKS = 99
_BOOTED = "/var/lib/libvirt/vm-booted"
# The longer nothing got through, the later TCP tries again, up to twice that time (RFC 6298); and on a busy machine the
# switch-over of an emulated guest takes long.
STREAMS_PATIENCE = 3 * PATIENCE
CONFIG = f"""
[daemon]
libvirt = ["qemu:///system"]
[[nat]]
domain = "vm"
public = "{MAIL4}"
assign = "eth0"
address = "{VM4}"
[[nat]]
domain = "vm"
public = "{MAIL6}"
assign = "eth0"
address = "{VM6}"
[[forward]]
domain = "vm"
address = "{VM4}"
ports = ["8000:80", "9000:{ECHO_PORT}"]
[[forward]]
domain = "vm"
ports = ["8001:80"]
[[route]]
network = "default"
addresses = ["{PREFIX4}", "{PREFIX6}"]
proxy = "eth0"
"""
# It waits for a client that says nothing, within the shell: in an emulated guest, a program for each tick would keep a
# processor busy.
_TICKER = f"""
printf '#!/bin/sh\\ni=0\\nwhile :; do echo $i; i=$((i + 1)); read -t 0.1 _; done\\n' >/ticker
chmod 0755 /ticker
nc -ll -p {TICKS} -e /ticker >/dev/null 2>&1 </dev/null &
"""


class Download:
    """A client that says nothing; the guest sends one number after the other, of which none may be missing."""

    def __init__(self, host: Host, address: str) -> None:
        self._socket = host.outside.connect(address, TICKS, timeout=STREAMS_PATIENCE)
        self._lines = self._socket.makefile("rb")
        self._next = 0

    def goes_on(self) -> None:
        """Read what has come since, up to what is sent from now on."""
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            assert self._lines.readline() == f"{self._next}\n".encode()
            self._next += 1

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._lines.close()
        self._socket.close()


@dataclass
class Migration:
    """A migration that is under way, in a thread; `ended` gives what libvirt said against it."""

    guest: QemuGuest
    to: Host
    thread: threading.Thread
    errors: list[libvirt.libvirtError] = field(default_factory=list)

    def wait_copying(self) -> None:
        wait_until(self._is_copied_or_failed, "the copy is under way", 2 * PATIENCE, interval=0.05)

    def _is_copied_or_failed(self) -> bool:
        assert not self.errors
        return self.guest.is_being_copied()

    def hurry(self) -> None:
        """Let the rest of the memory go at full speed, once what is to be seen during the copy has been."""
        self.guest.hurry_copy()

    def ended(self) -> str:
        self.thread.join(90)
        assert not self.thread.is_alive()
        return "; ".join(map(str, self.errors))


@dataclass
class Move:
    """A guest on one of two hosts, a daemon on each, and clients outside."""

    pair: Pair
    daemons: dict[int, Daemon]

    def daemon(self, host: Host) -> Daemon:
        return self.daemons[id(host)]

    def restart_daemon(self, host: Host) -> None:
        """Kill it and start it again; what it made stays meanwhile."""
        self.daemon(host).kill()
        self.daemons[id(host)] = host.daemon(CONFIG, forked=True)

    def guest(self, host: Host) -> QemuGuest:
        return QemuGuest(host, "vm")

    def migrate(self, start: Host, bandwidth: int = 0, flags: int = 0) -> Migration:
        to = self.pair.other(start)
        errors: list[libvirt.libvirtError] = []

        def run() -> None:
            try:
                self.guest(start).migrate(to, self.pair.copies_to(to), bandwidth=bandwidth, flags=flags)
            except libvirt.libvirtError as error:
                errors.append(error)

        migration = Migration(self.guest(start), to, threading.Thread(target=run, daemon=True), errors)
        migration.thread.start()
        return migration

    def answered(self, host: Host) -> None:
        """By every way that leads to the guest on this host, and by none of the other host's own.

        No lease came with the guest, so for port 8001 the network has to be asked where it is.
        """
        own, others = (PUBLIC4, SECOND4) if host is self.pair.first else (SECOND4, PUBLIC4)
        outside = self.pair.first.outside
        for address, port in (*((held, 80) for held in HELD), (own, 8000), (own, 8001)):
            url = f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"
            self._serves(url)
        wait_until(lambda: not outside.fetch(f"http://{others}:8000/").answered, "the other host's forward is closed")

    def _serves(self, url: str) -> None:
        outside = self.pair.first.outside
        wait_until(lambda: outside.fetch(url).text.startswith("vm "), f"{url} answers")

    def status(self, host: Host) -> list[dict[str, Any]]:
        """What it says of exposures to the guest; a route leads to its network on both hosts, at all times."""
        told = host.portfwd("status", "--json").stdout
        rows: list[dict[str, Any]] = json.loads(told)["openings"]
        return [row for row in rows if row["kind"] != "route"]


@contextmanager
def two_hosts_alike(flavour: Flavour) -> Iterator[Pair]:
    """Two hosts with a network of the same kind."""
    with two_hosts(flavour) as pair:
        for host in (pair.first, pair.second):
            # One definition on both, as docs/behaviour.md asks for: with another MAC address the bridge would be
            # another IPv6 router, and the guest would hold on to the first host's for half a minute.
            host.libvirt.define_network("default", "192.168.122.0/24", "2001:db8:122::/64", mac="52:54:00:12:20:01")
        for prefix in (PREFIX4, PREFIX6):
            pair.first.outside.run(["ip", "route", "add", prefix, "dev", "eth0"])
        yield pair


def _boot(guest: QemuGuest, elsewhere: QemuGuest) -> None:
    """Boot it once for all tests of a pair of hosts, each of which goes on from there."""
    # Once, libvirt asks the emulator what it can do: on the other host, the first migration would wait for that.
    elsewhere.define()
    elsewhere.remove()
    guest.start()
    guest.wait_up()
    guest.run("sh", "-c", _TICKER)
    for address in (ROUTED4, ROUTED6):
        guest.run("ip", "address", "add", address, "dev", "eth0")
    guest.save_to(_BOOTED)


@contextmanager
def guest_on_the_first(pair: Pair, config: str = CONFIG) -> Iterator[Move]:
    """A guest on the first host, with addresses that are in no lease, and a daemon on each host."""
    with ExitStack() as at_end:
        link = Link("default", (f"{VM4}/24", f"{VM6}/64"))
        guest, elsewhere = (QemuGuest(host, "vm", link) for host in (pair.first, pair.second))
        for host in (pair.first, pair.second):
            at_end.callback(QemuGuest(host, "vm").remove)
        if pair.first.run("test", "-e", _BOOTED, check=False).returncode != 0:
            _boot(guest, elsewhere)
        guest.restore_from(_BOOTED)
        moving = Move(pair, {id(host): host.daemon(config, forked=True) for host in (pair.first, pair.second)})
        yield moving
        for host in (pair.first, pair.second):
            moving.daemon(host).terminate()
            host.portfwd("flush")


@contextmanager
def streams(move: Move) -> Iterator[Callable[[], None]]:
    """Hold connections through all addresses that move with the guest; gives what asserts that they go on.

    Through one of each kind and family, the guest sends by itself: each of these keeps an emulated processor busy.
    """
    outside = move.pair.first.outside
    with ExitStack() as at_end:
        talks = [Conversation(outside, address, ECHO_PORT, STREAMS_PATIENCE) for address in HELD]
        loads = [Download(move.pair.first, address) for address in (MAIL4, ROUTED6)]
        for talk in talks:
            at_end.callback(talk.close)
        for load in loads:
            at_end.callback(load.close)

        def go_on() -> None:
            for load in loads:
                load.goes_on()
            assert all(talk.goes_on() for talk in talks)

        yield go_on


def handed_over(move: Move) -> bool:
    """Whether the first host says of each exposure that the guest is elsewhere, and of its public addresses where."""
    reasons = {row["listens"]: row["reason"].split("; ") for row in move.status(move.pair.first)}
    assert {first for first, *_ in reasons.values()} == {"it was handed over to another host"}
    mac = move.pair.second.read("/sys/class/net/eth0/address").strip()
    told = {text for _, *more in reasons.values() for text in more}
    return told == {f"the machine at {mac} has {address} now" for address in (MAIL4, MAIL6)}


def moved_lines(daemon: Daemon) -> list[str]:
    return [line.text for line in daemon.log_lines() if line.text.startswith(("added vm", "removed vm"))]


def held_by(host: Host) -> set[str]:
    """Which of the addresses a host holds, or answers for."""
    listings = ("address", "neighbour show proxy", "-6 neighbour show proxy")
    told = " ".join(host.run("ip", *listing.split()).stdout for listing in listings)
    return {word.partition("/")[0] for word in told.split()} & set(HELD)


def holds(host: Host, expected: set[str]) -> bool:
    return held_by(host) == expected


def runs_on(move: Move, host: Host) -> bool:
    """Whether the guest runs there; until it is known there it does not."""
    guest = move.guest(host)
    return guest.defined and guest.state()[0] == libvirt.VIR_DOMAIN_RUNNING
