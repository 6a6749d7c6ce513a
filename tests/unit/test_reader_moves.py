"""What is remembered of guests that migrate, from observations and events; with libvirt's own in-process driver.

That driver cannot migrate: what the event of a migration says is given, and all else is its own word.
"""

from collections.abc import Iterator

import libvirt
import pytest

from fwdaemon.core.inventory import Element, Metadata, Move
from fwdaemon.hypervisor.connection import migrated
from fwdaemon.hypervisor.reader import Reader
from fwdaemon.hypervisor.xml import NAMESPACE

URI = "test:///default"
GUEST_UUID = "00000000-0000-0000-0000-000000000001"
GUEST = f"""
<domain type='test'>
  <name>guest</name><uuid>{GUEST_UUID}</uuid><memory>1024</memory><os><type>hvm</type></os>
</domain>
"""


@pytest.fixture
def connection() -> Iterator[libvirt.virConnect]:
    connection = libvirt.open(URI)
    yield connection
    for domain in connection.listAllDomains():
        if domain.name() == "guest":
            domain.destroy()
    connection.close()


@pytest.fixture
def reader() -> Reader:
    return Reader(URI)


@pytest.fixture
def guest(connection: libvirt.virConnect) -> libvirt.virDomain:
    """Run a guest that libvirt forgets when it stops."""
    return connection.createXML(GUEST)


def seen(reader: Reader, connection: libvirt.virConnect) -> tuple[bool, Move | None] | None:
    """Say whether the guest runs here, and how it moves; libvirt would have reported each change of it."""
    reader.invalidate(GUEST_UUID)
    domains = (observed.domain for observed in reader.observe(connection, connection).domains)
    return next(((domain.running, domain.move) for domain in domains if domain.name == "guest"), None)


def returns(reader: Reader, connection: libvirt.virConnect) -> bool:
    """Say whether the guest, which does not run, may be rebooting."""
    reader.invalidate(GUEST_UUID)
    (domain,) = (seen.domain for seen in reader.observe(connection, connection).domains if seen.domain.name == "guest")
    assert not domain.running
    return domain.returning


def test_a_guest_that_arrives_paused_is_not_here_until_it_runs(
    reader: Reader, connection: libvirt.virConnect, guest: libvirt.virDomain
) -> None:
    guest.suspend()
    reader.invalidate(guest.UUIDString(), Move.HERE)
    assert seen(reader, connection) == (False, Move.ARRIVED)
    assert seen(reader, connection) == (False, Move.ARRIVED)
    guest.resume()
    assert seen(reader, connection) == (True, None)
    guest.suspend()
    reader.invalidate(guest.UUIDString())
    assert seen(reader, connection) == (True, None)


@pytest.mark.parametrize("received", [True, False])
def test_a_guest_that_shuts_down_runs_no_more_than_before(
    reader: Reader, connection: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch, *, received: bool
) -> None:
    """A copy does so where its source has died; libvirt's in-process driver never says that a guest is about to."""
    guest = connection.createXML(GUEST)
    if received:
        guest.suspend()
        reader.invalidate(guest.UUIDString(), Move.HERE)
    before = seen(reader, connection)
    assert before == ((False, Move.ARRIVED) if received else (True, None))
    monkeypatch.setattr(libvirt.virDomain, "state", lambda _domain: [libvirt.VIR_DOMAIN_SHUTDOWN, 1])
    reader.invalidate(guest.UUIDString())
    assert seen(reader, connection) == before


def test_a_guest_that_is_lost_before_all_of_it_was_here_may_go_on_elsewhere(
    reader: Reader, connection: libvirt.virConnect, guest: libvirt.virDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Post-copy that fails early: libvirt's in-process driver cannot do it, so its state is given."""
    reader.invalidate(guest.UUIDString(), Move.HERE)
    monkeypatch.setattr(libvirt.virDomain, "state", lambda _domain: [libvirt.VIR_DOMAIN_RUNNING, 10])
    assert seen(reader, connection) == (True, None)
    guest.destroy()
    assert seen(reader, connection) == (False, Move.GONE)


def test_a_guest_that_is_lost_between_list_and_question_may_go_on_elsewhere_too(
    reader: Reader, connection: libvirt.virConnect, guest: libvirt.virDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.invalidate(guest.UUIDString(), Move.HERE)
    monkeypatch.setattr(libvirt.virDomain, "state", lambda _domain: [libvirt.VIR_DOMAIN_RUNNING, 10])
    assert seen(reader, connection) == (True, None)
    crashed = [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED]
    monkeypatch.setattr(libvirt.virDomain, "state", lambda _domain: crashed)
    reader.invalidate(guest.UUIDString())
    assert seen(reader, connection) == (False, Move.GONE)
    guest.destroy()
    assert seen(reader, connection) == (False, Move.GONE)


@pytest.mark.parametrize("reason", [None, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_SHUTOFF_FAILED])
def test_how_a_guest_ended_says_whether_it_may_be_rebooting(
    reader: Reader, connection: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch, reason: int | None
) -> None:
    """The emulator of libvirt's in-process driver never dies, so that state is given."""
    guest = connection.defineXML(GUEST)
    try:
        assert not returns(reader, connection)  # where it was not seen running, nothing waits for it
        guest.create()
        assert seen(reader, connection) == (True, None)
        guest.destroy()
        if reason is not None:
            monkeypatch.setattr(libvirt.virDomain, "state", lambda _domain: [libvirt.VIR_DOMAIN_SHUTOFF, reason])
        for _ in range(2):
            reader.invalidate(guest.UUIDString())
            assert returns(reader, connection) is (reason is None)
    finally:
        guest.undefine()


def test_a_guest_that_runs_again_when_it_is_asked_how_it_ended_has_rebooted(
    reader: Reader, connection: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = connection.defineXML(GUEST)
    try:
        guest.create()
        assert seen(reader, connection) == (True, None)
        guest.destroy()
        monkeypatch.setattr(libvirt.virDomain, "state", lambda _domain: [libvirt.VIR_DOMAIN_RUNNING, 1])
        assert returns(reader, connection)
    finally:
        guest.undefine()


def test_a_guest_that_another_host_took_while_paused_is_gone(
    reader: Reader, connection: libvirt.virConnect, guest: libvirt.virDomain
) -> None:
    uuid = guest.UUIDString()
    guest.suspend()
    assert seen(reader, connection) == (True, None)
    guest.destroy()
    reader.invalidate(uuid, Move.GONE)
    assert seen(reader, connection) == (False, Move.GONE)
    assert seen(reader, connection) == (False, Move.GONE)


def test_a_defined_guest_that_another_host_took_is_gone_until_it_starts_again(
    reader: Reader, connection: libvirt.virConnect
) -> None:
    guest = connection.defineXML(GUEST)
    try:
        guest.create()
        assert seen(reader, connection) == (True, None)
        guest.destroy()
        reader.invalidate(guest.UUIDString(), Move.GONE)
        assert seen(reader, connection) == (False, Move.GONE)
        assert seen(reader, connection) == (False, Move.GONE)
        guest.create()
        assert seen(reader, connection) == (True, None)
        guest.destroy()
        assert seen(reader, connection) == (False, None)
        guest.create()
    finally:
        guest.undefine()


def test_a_guest_that_only_stops_is_not_gone(
    reader: Reader, connection: libvirt.virConnect, guest: libvirt.virDomain
) -> None:
    assert seen(reader, connection) == (True, None)
    guest.destroy()
    reader.invalidate(guest.UUIDString())
    assert seen(reader, connection) is None


def test_only_two_events_say_that_a_guest_moves() -> None:
    started, stopped = libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STOPPED
    assert migrated(started, libvirt.VIR_DOMAIN_EVENT_STARTED_MIGRATED) is Move.HERE
    assert migrated(stopped, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED) is Move.GONE
    assert migrated(started, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED) is None
    assert migrated(stopped, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED) is None


def test_what_a_guest_asks_for_is_read_once_until_it_changes_and_known_after_its_end(
    reader: Reader, connection: libvirt.virConnect
) -> None:
    guest = connection.defineXML(GUEST)
    guest.create()

    def asked(*, ports: str | None = None) -> Metadata | None:
        if ports is not None:
            text = f"<forwards><forward ports='{ports}'/></forwards>"
            kind, live = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
            guest.setMetadata(kind, text, "p", NAMESPACE, live)
        reader.invalidate()
        domains = (observed.domain for observed in reader.observe(connection, connection).domains)
        return next(domain.metadata for domain in domains if domain.name == "guest")

    try:
        assert asked() is None
        first = asked(ports="80")
        assert first == Metadata((Element("forward", (("ports", "80"),)),))
        assert asked() is first
        second = asked(ports="81")
        assert second not in (None, first)
        guest.destroy()
        assert asked() is second
    finally:
        guest.undefine()
