"""The keeper against libvirt's own in-process driver: real events, real inventories; only failures are made up."""

import asyncio
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import libvirt
import pytest

from fwdaemon import events
from fwdaemon.audit import causes
from fwdaemon.config import parse
from fwdaemon.core.inventory import HijackedAddress, LibvirtObservation, Neighbour
from fwdaemon.core.report import Trigger
from fwdaemon.errors import LibvirtUnavailableError
from fwdaemon.events import InventoryKeeper, Surroundings, take_inventory
from fwdaemon.hypervisor.connection import LibvirtConnection
from fwdaemon.hypervisor.link import Connection
from fwdaemon.kernel.process import new_budgets
from fwdaemon.resolve.placement import desired_state
from tests.unit.event_bench import URI, Linking, asked, bench, holds, lists, watching

NOBODY = "qemu:///system?socket=/no/such/socket"

WEB1 = """
<domain type='test'>
  <name>web1</name><memory>1024</memory><os><type>hvm</type></os>
  <devices><interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface></devices>
</domain>
"""


@pytest.fixture
def driver() -> Iterator[libvirt.virConnect]:
    """Another client of the driver; while it is open, the driver keeps its state."""
    connection = libvirt.open(URI)
    yield connection
    connection.close()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def settled(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run twice: what the first run loads may stay, but the second leaves no thread and no descriptor."""

    async def run() -> None:
        await scenario()

    asyncio.run(run())
    threads, before = set(threading.enumerate()), descriptors()
    asyncio.run(run())
    assert set(threading.enumerate()) == threads
    assert descriptors() == before


def test_start_refresh_and_close_leave_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as keeping:
            await keeping.until("answers")
            await keeping.inventory()

    settled(scenario)


def test_close_at_once_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as keeping:
            assert await keeping.keeper.refresh() is None

    settled(scenario)


def test_what_was_put_back_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may not tell when it is taken at the same moment once more."""
    found = HijackedAddress(Neighbour("virbr9", "52:54:00:00:00:01", ip_address("192.168.122.9")), "web1", None)
    # Guests of this driver are on no network, so that no machine there can take an address.
    monkeypatch.setattr(events, "changed_hands", lambda *_: True)
    monkeypatch.setattr(events, "hijacked_addresses", lambda *_: (found,))

    async def scenario() -> None:
        async with bench(tmp_path, verify=0.01) as keeping:
            await keeping.until("answers")
            await keeping.inventory()
            await keeping.until("an address that was taken over was put back")
            await keeping.inventory()

    settled(scenario)


def test_domains_and_networks_are_followed(tmp_path: Path, driver: libvirt.virConnect) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as keeping:
            await keeping.until(f"libvirt at {URI} answers")
            assert await keeping.running() == {"test"}
            web1 = driver.createXML(WEB1)
            await keeping.until("domain web1 started")
            assert await keeping.running() == {"test", "web1"}
            web1.suspend()
            await keeping.until("domain web1 suspended")
            assert await keeping.running() == {"test", "web1"}
            web1.destroy()
            await keeping.until("domain web1 stopped (destroyed)")
            assert await keeping.running() == {"test"}
            network = driver.networkLookupByName("default")
            network.destroy()
            await keeping.until("network default stopped")
            assert [item.active for item in (await keeping.inventory()).networks] == [False]
            network.create()
            await keeping.until("network default started")

    asyncio.run(scenario())


def test_interfaces(tmp_path: Path, driver: libvirt.virConnect) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as keeping:
            driver.createXML(WEB1)
            await keeping.until("answers")
            web1 = next(domain for domain in (await keeping.inventory()).domains if domain.name == "web1")
            assert [(item.mac, item.network, item.bridge) for item in web1.interfaces] == [
                ("52:54:00:00:00:01", "default", "virbr0")
            ]

    asyncio.run(scenario())


def test_hostile_domain_name(tmp_path: Path, driver: libvirt.virConnect) -> None:
    name = "--comment \u202e'\" " + "x" * 200

    async def scenario() -> None:
        async with bench(tmp_path) as keeping:
            await keeping.until("answers")
            driver.createXML(WEB1.replace("web1", name.replace("'", "&apos;")))
            await keeping.until("domain --comment \\u202e'\" xxx")
            assert name in await keeping.running()

    asyncio.run(scenario())


def test_only_a_domain_in_doubt_is_asked_again(
    tmp_path: Path, driver: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as keeping:
            await keeping.until("answers")
            names = asked(monkeypatch)
            assert await keeping.running() == {"test"}
            assert names == []
            driver.createXML(WEB1)
            await keeping.until("domain web1 started")
            assert await keeping.running() == {"test", "web1"}
            assert names == ["web1"]
            keeping.keeper.invalidate()
            assert await keeping.running() == {"test", "web1"}
            assert sorted(names) == ["test", "web1", "web1"]

    asyncio.run(scenario())


def test_a_list_that_libvirt_holds_back_keeps_nothing_from_being_followed(
    tmp_path: Path, driver: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists no domain while it starts or stops one of them."""

    async def scenario() -> None:
        async with bench(tmp_path) as keeping:
            await keeping.until("answers")
            assert await keeping.running() == {"test"}
            asked = lists(monkeypatch)
            web1 = driver.createXML(WEB1)
            await keeping.until("domain web1 started")
            assert await keeping.running() == {"test", "web1"}
            web1.destroy()
            await keeping.until("domain web1 stopped (destroyed)")
            assert await keeping.running() == {"test"}
            assert asked == []
            keeping.keeper.invalidate()
            assert await keeping.running() == {"test"}
            assert asked

    asyncio.run(scenario())


class Unreliable(LibvirtConnection):
    """The real connection, with a made-up failure on demand."""

    opened = 0
    failing = False
    frozen = threading.Event()

    def open(self) -> None:
        type(self).opened += 1
        self._fail_if_asked()
        super().open()

    def observe(self) -> LibvirtObservation:
        self._fail_if_asked()
        self.frozen.wait(60)
        return super().observe()

    def _fail_if_asked(self) -> None:
        if self.failing:
            raise LibvirtUnavailableError("the daemon is gone")


@pytest.fixture
def unreliable(monkeypatch: pytest.MonkeyPatch) -> type[Unreliable]:
    monkeypatch.setattr(Unreliable, "opened", 0)
    monkeypatch.setattr(Unreliable, "failing", False)
    Unreliable.frozen.set()
    return Unreliable


@pytest.mark.usefixtures("driver")
def test_lost_and_found(tmp_path: Path, unreliable: type[Unreliable], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fwdaemon")

    async def scenario() -> None:
        async with bench(tmp_path, Linking(unreliable, pauses=lambda: itertools.repeat(0.0))) as keeping:
            await keeping.until("answers")
            unreliable.failing = True
            assert await keeping.running() == {"test"}, "what libvirt said last stands"
            (state,) = keeping.keeper.connections()
            assert (state.connected, state.last_error) == (False, "the daemon is gone")
            await holds(lambda: unreliable.opened > 5)
            unreliable.failing = False
            await keeping.until(f"libvirt at {URI} answers again")
            assert await keeping.running() == {"test"}
            assert keeping.keeper.connections()[0].connected

    asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == [
        f"libvirt at {URI} answers",
        f"lost libvirt at {URI} (the daemon is gone): forwards stay as they are",
        f"libvirt at {URI} answers again",
    ]


@pytest.mark.usefixtures("driver")
def test_no_inventory_before_the_first_answer(
    tmp_path: Path, unreliable: type[Unreliable], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        unreliable.failing = True
        async with bench(tmp_path, Linking(unreliable)) as keeping:
            await holds(lambda: keeping.keeper.connections()[0].last_error is not None)
            assert await keeping.keeper.refresh() is None
            unreliable.failing = False
            await keeping.until("answers again")
            await keeping.inventory()

    asyncio.run(scenario())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_frozen_libvirt(tmp_path: Path, unreliable: type[Unreliable], driver: libvirt.virConnect) -> None:
    async def scenario() -> None:
        linking = Linking(unreliable, patience=0.2)
        async with bench(tmp_path, linking) as keeping:
            await keeping.until("answers")
            unreliable.frozen.clear()
            driver.lookupByName("test").destroy()
            assert await keeping.running() == {"test"}, "what libvirt said last stands"
            # To wait again would now outlast the frost, and give what libvirt says after it.
            linking.made[0].patience = 60
            assert await keeping.running() == {"test"}, "a frozen libvirt is waited for once only"
            assert not keeping.keeper.connections()[0].connected
            keeping.reasons.clear()
            unreliable.frozen.set()
            await keeping.until("answers again")
            assert await keeping.running() == set()

    asyncio.run(scenario())


def test_uri_that_nobody_serves(tmp_path: Path) -> None:
    async def scenario() -> None:
        keeper = InventoryKeeper(
            watching(URI, NOBODY),
            lambda _reason: None,
            new_budgets(),
            Surroundings(leases=tmp_path, records=tmp_path),
        )
        await keeper.start()
        await holds(lambda: keeper.connections()[0].connected and keeper.connections()[1].last_error is not None)
        assert await keeper.refresh() is None
        good, bad = keeper.connections()
        assert (good.connected, bad.connected) == (True, False)
        assert bad.last_error is not None
        assert "does not answer: Failed to connect socket to '/no/such/socket'" in bad.last_error
        await keeper.close()

    settled(scenario)


def test_one_inventory() -> None:
    async def scenario() -> None:
        inventory = await take_inventory([URI])
        assert [domain.name for domain in inventory.domains] == ["test"]
        assert inventory.host_addresses
        with pytest.raises(LibvirtUnavailableError, match="Failed to connect socket"):
            await take_inventory([URI, NOBODY])

    settled(scenario)


def test_errors_are_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    test_uri_that_nobody_serves(tmp_path)
    assert capfd.readouterr() == ("", "")


NODE = """
<node>
  <network>
    <name>default</name><forward mode='nat'/><bridge name='virbr0'/>
    <ip address='192.168.122.1' netmask='255.255.255.0'/>
  </network>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>{name}</name><uuid>{uuid}</uuid><memory>1024</memory><os><type>hvm</type></os>
    <devices><interface type='network'><mac address='{mac}'/><source network='default'/></interface></devices>
    <test:runstate>{state}</test:runstate>
  </domain>
</node>
"""
_RUNNING, _OFF = 1, 5  # VIR_DOMAIN_RUNNING and VIR_DOMAIN_SHUTOFF


@pytest.mark.parametrize("named", ["web", "00000000-0000-4000-8000-00000000000A"])
@pytest.mark.parametrize(("first", "reason"), [(_RUNNING, []), (_OFF, ["the domain is not running"])])
def test_the_first_uri_has_the_name(tmp_path: Path, named: str, first: int, reason: list[str]) -> None:
    uuids, macs = (
        [f"00000000-0000-4000-8000-00000000000{digit}" for digit in "ab"],
        ["52:54:00:00:00:1a", "52:54:00:00:00:1b"],
    )
    names = ["web", named]
    uris = []
    for name, uuid, mac, state in zip(names, uuids, macs, (first, _RUNNING), strict=True):
        node = tmp_path / f"{uuid}.xml"
        node.write_text(NODE.format(name=name, uuid=uuid, mac=mac, state=state))
        uris.append(f"test://{node}")
    text = f'[[forward]]\ndomain = "{named}"\nports = ["80"]\naddress = "192.168.122.50"\n'
    config = parse({tmp_path / "portfwd.toml": f"[daemon]\nlibvirt = {uris}\n{text}"})
    desired = desired_state(config, asyncio.run(take_inventory(uris)))
    assert [forward.domain for forward in desired.forwards] == ([] if reason else ["web"])
    assert [causes.why(waiting.reason) for waiting in desired.waiting] == reason
    (remark,) = map(causes.remark, desired.remarks)
    assert f" {named} " in f"{remark} ".replace(":", " ")
    assert uris[1] in remark


def test_where_no_thread_is_to_be_had_at_first_libvirt_is_reached_later(tmp_path: Path) -> None:
    kept: list[Connection] = []

    def connect(uri: str, trigger: Trigger, closed: Callable[[str], None]) -> Connection:
        # With stacks of this size, the kernel has no room for a thread.
        threading.stack_size(0 if kept else 1 << 46)
        kept.append(LibvirtConnection(uri, trigger, closed))
        return kept[-1]

    async def scenario() -> None:
        async with bench(tmp_path, Linking(connect)) as it:
            await it.until("answers")
            assert len(kept) == 2
            (state,) = it.keeper.connections()
            assert state.last_error is not None
            assert "cannot be started" in state.last_error

    asyncio.run(scenario())
