"""The daemon's loop, with a rule system, a host, libvirt and a configuration in memory."""

import asyncio
import json
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from fwdaemon.config import Loaded, parse
from fwdaemon.config.model import Config
from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    GuestInterface,
    HostAddress,
    Inventory,
    LearnedAddress,
    Network,
)
from fwdaemon.core.pace import Pauses
from fwdaemon.core.probing import Silent
from fwdaemon.core.report import LookAgain, Outcome, Reason, ReasonKind, RulesChanged
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Protocol
from fwdaemon.daemon import Daemon, Parts, Start
from fwdaemon.errors import ConfigError, HangingError, KernelError, LibvirtUnavailableError, PortfwdError, Problem
from fwdaemon.events import ConnectionState
from fwdaemon.kernel.process import HASTE
from fwdaemon.netfilter import Monitor, Netfilter
from fwdaemon.resolve.flows import Flow
from fwdaemon.status.reloads import LATE
from tests.unit.memory_backend import MemoryBackend, NoProgram
from tests.unit.seams import Memory

MAIN = Path("/etc/portfwd.toml")
WEB = '[[forward]]\ndomain = "web1"\nports = ["80:8080"]\n'
SSH = '[[forward]]\ndomain = "web1"\nports = ["22"]\n'
REMOVE = '[daemon]\non_stop = "remove"\n'
STARTED = Reason(ReasonKind.DOMAIN, "web1", "started")
FAST = Pauses(looks=0.001, looks_at_most=0.01, verify=0.02, retry=0.01, retry_at_most=0.05, ready=60.0)
RULE = "web1: tcp *:80 -> 192.168.122.50:8080"
SSH_RULE = "web1: tcp *:22 -> 192.168.122.50:22"
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
    look_again: LookAgain = field(init=False)
    configured: list[Config] = field(default_factory=list)
    begun: int = 0
    closed: int = 0
    doubted: int = 0
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

    def doubt(self) -> None:
        self.doubted += 1

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
    """A daemon, and everything around it; `faults` are what the next writes of rules fail with."""

    place: Path = Path()
    text: str = WEB
    libvirt: Libvirt = field(default_factory=Libvirt)
    pauses: Pauses = FAST
    faults: list[Exception] = field(default_factory=list)
    unreadable: list[PortfwdError] = field(default_factory=list)
    reading: threading.Event = field(default_factory=threading.Event)
    readable: threading.Event | None = None
    asked: Callable[[], None] = print
    start: Start | None = None
    made: list[Config] = field(default_factory=list)
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
            self.place / "control.sock",
            self.place / "state",
            self.place / "run",
            pauses=self.pauses,
        )

    def _conflicts(self, asked: Callable[[], None]) -> Any:
        self.asked = asked
        return self.others

    def _routes(self, changed: RulesChanged) -> Monitor:
        del changed
        return Routes()

    def _sources(self, config: Config, look_again: LookAgain) -> Libvirt:
        self.made.append(config)
        self.libvirt.look_again = look_again
        return self.libvirt

    def _read(self, path: Path, live: Config) -> Loaded:
        del live
        self.reading.set()
        if self.readable is not None:
            self.readable.wait(600)  # longer than the end of a daemon is waited for
        if self.unreadable:
            raise self.unreadable.pop()
        return Loaded(parse({path: self.text}), {path: self.text.encode()})

    @property
    def written(self) -> set[str]:
        return {item.name for items in self.kernel.rules.values() for item in items if "home" not in item.name}

    @property
    def problems(self) -> tuple[str, ...]:
        return self.daemon._records.header(()).problems  # noqa: SLF001  what the status tells

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

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so; the daemon must not end meanwhile."""
        async with asyncio.timeout(60):
            while not condition():
                if self.running.done():
                    self.running.result()
                    pytest.fail("the daemon ended")
                await asyncio.sleep(0.001)


class Failing(MemoryBackend):
    """Fails as it is told to, before anything is done."""

    faults: list[Exception]

    def apply(self, desired: Desired, *, thorough: bool) -> Outcome:
        if self.faults:
            raise self.faults.pop(0)
        return super().apply(desired, thorough=thorough)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    monkeypatch.setattr(HASTE, "idle", HASTE.idle)  # the end of one daemon hurries all programs
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    caplog.set_level(logging.INFO)
    return Scene(place=tmp_path)


def play(act: Coroutine[Any, Any, None]) -> None:
    asyncio.run(act)


# --- looks ------------------------------------------------------------------------------------------------------------


def test_what_the_configuration_and_libvirt_say_is_put_into_the_kernel_and_stays(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE} and scene.libvirt.searched > 0)
        assert scene.written == {RULE}
        assert (scene.libvirt.closed, scene.host.closed) == (1, 1)

    play(act())


def test_before_libvirt_has_answered_nothing_is_written_and_that_is_said(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.libvirt.there, scene.pauses = None, replace(FAST, ready=0.01)

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(
                lambda: (
                    "libvirt has not answered yet: what the kernel holds stays as it is until then" in caplog.messages
                )
            )
            assert (scene.written, scene.kernel.generation) == (set(), 0)
            scene.libvirt.there = inventory()
            scene.libvirt.look_again(STARTED)
            await scene.until(lambda: scene.written == {RULE})

    play(act())


def test_an_event_has_a_fresh_inventory_taken_and_is_the_cause(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.libvirt.there = inventory(running=False)

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: "waiting web1" in caplog.text)
            scene.libvirt.there = inventory()
            scene.libvirt.look_again(STARTED)
            await scene.until(lambda: f"added {RULE} (domain web1 started)" in caplog.messages)

    play(act())


def test_a_wipe_is_mended_while_libvirt_is_lost_between_two_calls(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    gone = "libvirt at qemu:///system does not answer"

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.libvirt.faults += [LibvirtUnavailableError(gone)] * 1000
            scene.libvirt.look_again(STARTED)
            await scene.until(lambda: f"no new inventory: {gone}; trying again, less and less often" in caplog.messages)
            scene.kernel.wipe()
            await scene.until(lambda: f"restored {RULE} (changed by another, pid 7)" in caplog.messages)
            assert scene.written == {RULE}
            # It is tried again by itself, and each failure is told once.
            refreshed = scene.libvirt.refreshed
            await scene.until(lambda: scene.libvirt.refreshed > refreshed + 2)
            assert caplog.text.count(gone) == 1
            scene.libvirt.faults.clear()
            scene.libvirt.there = inventory(running=False)
            await scene.until(lambda: not scene.written)

    play(act())


@pytest.mark.parametrize("error", [KernelError("the kernel refused: no memory"), OSError(24, "Too many open files")])
def test_what_the_kernel_refuses_is_told_once_and_tried_again(
    scene: Scene, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    scene.faults += [error] * 3

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE} and not scene.faults)

    play(act())
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].endswith("trying again in 0 s, and less and less often")


def test_a_kernel_that_refuses_in_the_middle_keeps_what_was_and_what_changed_comes_later(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.text = WEB + SSH

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})
            scene.text, scene.kernel.refusals = WEB, 1
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: "the kernel refused: no memory" in caplog.text)
            await scene.until(lambda: scene.written == {RULE})

    play(act())
    assert f"removed {SSH_RULE} (configuration /etc/portfwd.toml loaded again)" in caplog.messages


def test_a_program_that_hangs_is_named_once_wherever_it_hangs(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.faults += [HangingError(("nft", step), "", -1, f"it hung at {step}") for step in ("list", "-f", "-j")]

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})

    play(act())
    assert [record.levelname for record in caplog.records if "trying again" in record.message] == ["ERROR"]


def test_a_mistake_of_ours_is_shown_with_its_place_and_outlived(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.faults.append(ZeroDivisionError("a mistake"))

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})

    play(act())
    assert any(record.exc_info and "this is a bug in kvm-portfwd" in record.message for record in caplog.records)


def test_what_others_took_from_us_is_told_as_soon_as_it_is_found(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            kept = len(scene.host.kept)
            scene.others.found = ("a clash",)
            await asyncio.to_thread(scene.asked)
            await scene.until(lambda: len(scene.host.kept) > kept)
        # After the end, a late answer goes nowhere.
        scene.asked()

    play(act())
    scene.asked()


def test_after_a_change_of_ours_all_is_compared_once_more(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            await scene.until(lambda: len([whole for _, whole in scene.host.kept if whole]) > 1)

    play(act())


def test_an_opening_that_is_held_for_a_moment_goes_without_another_event(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.libvirt.there = inventory(running=False)
            scene.libvirt.look_again(Reason(ReasonKind.DOMAIN, "web1", "stopped"))
            await scene.until(lambda: not scene.written)

    play(act())


# --- the configuration ------------------------------------------------------------------------------------------------


def test_a_new_configuration_is_in_force_after_a_hangup(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.text = WEB + SSH
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})
            assert scene.libvirt.configured[-1].forwards[1].domain == "web1"
        kept = json.loads((scene.place / "state" / "last-good.json").read_text())
        assert list(kept["files"].values()) == [WEB + SSH]

    play(act())
    assert "configuration /etc/portfwd.toml loaded" in caplog.messages
    assert len(scene.made) == 1


def test_what_a_guest_opened_ends_where_a_new_configuration_names_fewer_uplinks(scene: Scene) -> None:
    guest, public, far = map(ip_address, ("192.168.122.50", "198.51.100.8", "203.0.113.9"))
    one_to_one = '[[nat]]\ndomain = "web1"\npublic = "198.51.100.8"\n'
    scene.text = f'[daemon]\nuplinks = ["eth0", "wg0"]\n{one_to_one}'

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: bool(scene.written))
            scene.connections.flows = [Flow(Protocol.TCP, guest, far, 443, far, 443, public, 40000)]
            scene.text = f'[daemon]\nuplinks = ["eth0"]\n{one_to_one}'
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: not scene.connections.flows)

    play(act())


def test_a_wrong_configuration_changes_nothing(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.unreadable.append(ConfigError([Problem(MAIN, 3, "is wrong")]))
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: "configuration refused; the old one stays in force" in caplog.messages)
            assert scene.written == {RULE}

    play(act())


def test_a_configuration_that_cannot_be_read_now_is_read_later(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.text, scene.unreadable = WEB + SSH, [KernelError("no thread")] * 2
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})

    play(act())
    assert caplog.messages.count("the configuration is not read yet: no thread; trying again") == 1


def test_a_wipe_is_mended_while_the_configuration_cannot_be_read_to_its_end(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.readable = readable = threading.Event()
    restored = f"restored {RULE} (changed by another, pid 7)"

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.text = WEB + SSH
            asked = asyncio.create_task(scene.daemon._reloads.ask())  # noqa: SLF001  what the control socket calls
            await scene.until(scene.reading.is_set)
            for _ in range(2):
                told = caplog.messages.count(restored)
                scene.kernel.wipe()
                await scene.until(partial(lambda told: caplog.messages.count(restored) > told, told))
                assert scene.written == {RULE}
            assert not asked.done()
            # What changes while it is read is read after it.
            scene.text = SSH
            signal.raise_signal(signal.SIGHUP)
            readable.set()
            await scene.until(lambda: scene.written == {SSH_RULE})
            assert (await asked).failure == ""

    play(act())


def test_a_configuration_that_cannot_be_read_to_its_end_is_told_and_holds_up_no_end(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system that it is on may hang for good: nobody waits for the thread that reads."""
    scene.pauses = replace(FAST, reading=0.05, patience=1000.0)
    monkeypatch.setattr(scene, "readable", threading.Event())

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: LATE in caplog.messages)
            assert LATE in scene.problems
            signal.raise_signal(signal.SIGHUP)
            scene.kernel.wipe()
            await scene.until(lambda: scene.written == {RULE})
            assert LATE in scene.problems

    play(act())
    assert scene.readable is not None
    scene.readable.set()


def test_what_was_late_is_forgotten_once_it_is_there(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.pauses = replace(FAST, reading=0.05)
    scene.readable = readable = threading.Event()

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.text = WEB + SSH
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: LATE in caplog.messages)
            readable.set()
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})
            assert LATE not in scene.problems

    play(act())
    assert caplog.messages.count(LATE) == 1


def test_who_is_told_to_end_while_the_configuration_is_read_ends(scene: Scene) -> None:
    scene.pauses = replace(FAST, patience=0.0)
    scene.readable = readable = threading.Event()
    scene.text = REMOVE + WEB

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            signal.raise_signal(signal.SIGHUP)
            await scene.until(scene.reading.is_set)
        assert not scene.written
        readable.set()

    play(act())


def test_other_connections_to_libvirt_are_made_where_the_configuration_names_others(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            scene.text = f'[daemon]\nlibvirt = ["lxc:///system"]\n{WEB}'
            signal.raise_signal(signal.SIGHUP)
            await scene.until(lambda: scene.libvirt.begun == 2)
            assert (scene.libvirt.closed, scene.made[-1].daemon.libvirt) == (1, ("lxc:///system",))

    play(act())


def test_a_reload_before_the_first_answer_is_answered(scene: Scene) -> None:
    scene.libvirt.there = None

    async def act() -> None:
        async with scene.running_daemon():
            scene.text = WEB + SSH
            asked = asyncio.create_task(scene.daemon._reloads.ask())  # noqa: SLF001  what the control socket calls
            assert (await asyncio.wait_for(asked, 60)).failure == "libvirt has not answered yet"
            assert not scene.written

    play(act())


def test_the_last_good_configuration_is_in_force_at_a_start_with_a_wrong_one(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    problem = Problem(MAIN, 3, "is wrong")
    scene.start = Start(parse({MAIN: WEB}), {}, (problem,), datetime(2026, 3, 1, tzinfo=UTC))

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
        assert not (scene.place / "state").exists()

    play(act())
    assert "the last good one stays in force, of 2026-0" in caplog.text


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upgrade", [False, True])
def test_rules_go_at_the_end_where_that_is_wished_but_for_an_upgrade(scene: Scene, *, upgrade: bool) -> None:
    scene.text = REMOVE + WEB
    if upgrade:
        (scene.place / "run").mkdir()
        (scene.place / "run" / "upgrade").touch()

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
        assert scene.written == ({RULE} if upgrade else set())

    play(act())


def test_what_cannot_be_done_at_the_end_is_told_and_the_rest_is_done(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close() -> None:
        raise KernelError("the helper does not end")

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            monkeypatch.setattr(scene.host, "close", close)

    play(act())
    assert "the helper does not end" in caplog.messages


def test_who_is_told_to_end_while_beginning_ends(scene: Scene) -> None:
    async def act() -> None:
        scene.libvirt.starting = asyncio.Event()
        async with scene.running_daemon():
            pass
        assert (scene.written, scene.libvirt.closed) == (set(), 1)

    play(act())


def test_an_inventory_that_is_being_taken_keeps_nobody_from_ending(scene: Scene) -> None:
    async def forever() -> Inventory | None:
        begun.set()
        await asyncio.Event().wait()
        return None

    begun = threading.Event()
    scene.libvirt.refresh = forever  # type: ignore[method-assign]  # a libvirt that never answers

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(begun.is_set)

    play(act())


def test_a_second_daemon_does_not_begin(scene: Scene, tmp_path: Path) -> None:
    other = Scene(place=tmp_path)

    async def act() -> None:
        async with scene.running_daemon():
            second = Daemon(MAIN, Start(parse({MAIN: WEB}), {}), other.parts())
            with pytest.raises(PortfwdError, match="already running"):
                await second.run()
            assert not other.libvirt.begun
            second._pulse.end()  # noqa: SLF001  else its socket to systemd goes with the program, which ends here

    play(act())


def test_who_changed_rules_is_asked_once_more_and_not_for_ever(scene: Scene) -> None:
    scene.pauses = replace(FAST, patience=0.0)

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            # Nobody tells who it was.
            scene.kernel.changed = None
            scene.kernel.wipe()
            scene.asked()
            await scene.until(lambda: scene.written == {RULE})

    play(act())
