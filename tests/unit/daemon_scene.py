"""The daemon with a rule system, a host, libvirt and a configuration in memory, as its tests run it."""

import asyncio
import json
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from fwdaemon.config import Loaded, parse
from fwdaemon.config.model import Config
from fwdaemon.control.listener import Peer
from fwdaemon.control.protocol import MANAGER, Call
from fwdaemon.control.server import ControlServer
from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    GuestInterface,
    HostAddress,
    Inventory,
    LearnedAddress,
    Network,
    Occupied,
)
from fwdaemon.core.report import ApplyResult, Reason, ReasonKind, RulesChanged, Trigger
from fwdaemon.core.state import Desired, Silent
from fwdaemon.core.types import Job
from fwdaemon.daemon import Daemon, Parts, RequestPass
from fwdaemon.errors import PortfwdError
from fwdaemon.events import ConnectionState
from fwdaemon.fleet import Fleet
from fwdaemon.kernel.process import HASTE, new_budgets
from fwdaemon.netfilter import Monitor, Netfilter
from fwdaemon.status.reloads import Start
from fwdaemon.status.temporary import Now
from fwdaemon.triggers import Budgets, Pauses
from tests.unit.memory_backend import MemoryBackend, NoProgram
from tests.unit.seams import Memory
from tests.unit.varlink_types import Interface

MAIN = Path("/etc/portfwd.toml")
WEB = '[[forward]]\ndomain = "web1"\nports = ["80:8080"]\n'
SSH = '[[forward]]\ndomain = "web1"\nports = ["22"]\n'
REMOVE = '[daemon]\non_stop = "remove"\n'
STARTED = Reason(ReasonKind.DOMAIN, "web1", "started")
FAST = Pauses(0.001, 0.01, verify=0.02, verify_at_most=0.1, retry=0.01, retry_at_most=0.05, ready=60.0)
RULE = "web1: tcp *:80 -> 192.168.122.50:8080"
SSH_RULE = "web1: tcp *:22 -> 192.168.122.50:22"
ROOT = Peer(1 << 30, 0, frozenset({0}))
PUBLIC = ip_network("198.51.100.0/24")


def inventory(*, running: bool = True) -> Inventory:
    """Give what there is: one domain, with a lease where it runs."""
    learned = (LearnedAddress(ip_address("192.168.122.50"), AddressSource.LEASE),) if running else ()
    interface = GuestInterface("52:54:00:00:00:01", "default", "virbr0", "vnet0", learned)
    interfaces = (interface,) if running else ()
    domain = Domain("web1", UUID(int=1), running=running, interfaces=interfaces, returning=not running)
    subnet, gateway = ip_network("192.168.122.0/24"), ip_address("192.168.122.1")
    network = Network("default", active=True, bridge="virbr0", subnets=(subnet,), gateways=(gateway,))
    host = HostAddress(ip_address("198.51.100.1"), PUBLIC, "eth0")
    return Inventory((domain,), (network,), (host,), frozenset({"eth0"}))


@dataclass
class Libvirt:
    """Everything that says "look again", and the inventory; `faults` are what the next inventories fail with."""

    there: Inventory | None = field(default_factory=inventory)
    faults: list[Exception] = field(default_factory=list)
    trigger: Trigger = field(init=False)
    configured: list[Config] = field(default_factory=list)
    begun: int = 0
    closed: int = 0
    invalidated: int = 0
    refreshed: int = 0
    searched: int = 0
    starting: asyncio.Event | None = None

    def configure(self, config: Config) -> None:
        self.configured.append(config)

    async def start(self) -> None:
        self.begun += 1
        if self.starting is not None:
            await self.starting.wait()

    async def refresh(self) -> Inventory | None:
        await asyncio.sleep(0)
        self.refreshed += 1
        if self.faults:
            raise self.faults.pop(0)
        return self.there

    def search(self, silent: Collection[Silent], inventory: Inventory) -> None:
        del silent, inventory
        self.searched += 1

    def invalidate(self) -> None:
        self.invalidated += 1

    def connections(self) -> tuple[ConnectionState, ...]:
        return (ConnectionState("qemu:///system", connected=self.there is not None, since=datetime.now(UTC)),)

    async def close(self) -> None:
        self.closed += 1


@dataclass
class Routes:
    """Changes of routes, of which there are none."""

    started: bool = False

    def start(self) -> None:
        self.started = True

    def close(self) -> None:
        self.started = False


@dataclass
class Scene(Memory):
    """A daemon, and all around it; `faults` are what the next writes of rules fail with, `files` those of sets."""

    place: Path = Path()
    text: str = WEB
    files: tuple[Path, ...] = ()
    libvirt: Libvirt = field(default_factory=Libvirt)
    pauses: Pauses = FAST
    faults: list[Exception] = field(default_factory=list)
    unreadable: list[PortfwdError] = field(default_factory=list)
    reading: threading.Event = field(default_factory=threading.Event)
    readable: threading.Event | None = None
    asked: RequestPass = print
    budgets: Budgets = field(default_factory=new_budgets)
    start: Start | None = None
    made: list[Config] = field(default_factory=list)
    sockets: set[Occupied] | None = field(default_factory=set)
    now: Now = field(default_factory=lambda: Now(1_772_000_000.0, 5_000.0, "first"))
    daemon: Daemon = field(init=False)
    running: asyncio.Task[None] = field(init=False)

    def parts(self) -> Parts:
        backend = Failing(self.kernel, "nftables")
        backend.faults = self.faults
        return Parts(
            Netfilter(NoProgram(), among=(backend,)),
            self.host,
            self.connections,
            self._conflicts,
            self._routes,
            self._sources,
            self._read,
            self.place / "run/control.sock",
            self.place / "state",
            self.place / "run",
            budgets=self.budgets,
            pauses=self.pauses,
            occupied=lambda: self.sockets,
            clocks=lambda: self.now,
            fleet=Fleet(MAIN, self.place / "state", self.place / "run"),
        )

    def _conflicts(self, asked: RequestPass) -> Any:
        self.asked = asked
        return self.others

    def _routes(self, changed: RulesChanged) -> Monitor:
        del changed
        return Routes()

    def _sources(self, config: Config, trigger: Trigger) -> Libvirt:
        self.made.append(config)
        self.libvirt.trigger = trigger
        return self.libvirt

    def _read(self, path: Path, live: Config) -> Loaded:
        del live
        self.reading.set()
        if self.readable is not None:
            self.readable.wait(600)  # longer than the end of a daemon is waited for
        if self.unreadable:
            raise self.unreadable.pop()
        lists = {file: file.read_bytes() for file in self.files}
        return Loaded(parse({path: self.text}, lists), {path: self.text.encode()}, lists)

    @property
    def written(self) -> set[str]:
        return {item.name for items in self.kernel.rules.values() for item in items if "home" not in item.name}

    @property
    def problems(self) -> tuple[str, ...]:
        return self.daemon._records.header(()).problems  # noqa: SLF001  what the status shows

    @property
    def late(self) -> set[Job]:
        return {late.job for late in self.daemon._records.header(()).late}  # noqa: SLF001  as above

    @asynccontextmanager
    async def running_daemon(self) -> AsyncIterator[None]:
        """Run the daemon until the block ends, and then as long as it takes to end."""
        start = self.start or Start(parse({MAIN: self.text}), {MAIN: self.text.encode()})
        self.daemon = Daemon(MAIN, start, self.parts())
        self.running = asyncio.create_task(self.daemon.run())
        try:
            await self.until(lambda: self.libvirt.begun > 0)
            yield
            if not self.running.done():
                signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(self.running, 60)
        finally:
            self.running.cancel()

    def pass_by(self, seconds: float, *, by_wall: float | None = None) -> None:
        """Let time pass, and set the clock on the wall to be another one that much later."""
        wall = self.now.wall + (seconds if by_wall is None else by_wall)
        self.now = Now(wall, self.now.boottime + seconds, self.now.boot)
        self.daemon._trigger_queue.wake()  # noqa: SLF001  what a timer does

    def ask(self, method: str, peer: Peer = ROOT, **parameters: Any) -> Coroutine[Any, Any, dict[str, Any]]:
        """Call a method as a client of the control socket."""
        return _answer(self.daemon._control._server, peer, method, parameters)  # noqa: SLF001  what a client calls

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so; the daemon must not end meanwhile."""
        async with asyncio.timeout(60):
            while not condition():
                if self.running.done():
                    self.running.result()
                    pytest.fail("the daemon ended")
                await asyncio.sleep(0.001)


async def _answer(server: ControlServer, peer: Peer, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    call = Call(f"{MANAGER}.{method}", parameters)
    answer = await server._called(peer, call)  # noqa: SLF001  what it does with what it reads from a socket
    assert isinstance(answer, bytes)
    content: dict[str, Any] = json.loads(answer)
    described = Interface(MANAGER)
    assert list(described.faults(described.replies[method], content)) == []
    return content


class Failing(MemoryBackend):
    """Fails as it is asked to, before anything is done."""

    faults: list[Exception]

    def apply(self, desired: Desired, *, full: bool) -> ApplyResult:
        if self.faults:
            raise self.faults.pop(0)
        return super().apply(desired, full=full)


def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    monkeypatch.setattr(HASTE, "idle", HASTE.idle)  # the end of one daemon hurries all programs
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    caplog.set_level(logging.INFO)
    return Scene(place=tmp_path)


def play(act: Coroutine[Any, Any, None]) -> None:
    asyncio.run(act)
