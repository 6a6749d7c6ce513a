"""libvirt's numbers become the words libvirt means by them."""

from dataclasses import dataclass, field

import libvirt
import pytest

from fwdaemon.core.report import Reason
from fwdaemon.errors import LibvirtUnavailableError
from fwdaemon.hypervisor.connection import Callback, LibvirtConnection, agent_lifecycle, domain_lifecycle
from fwdaemon.triggers import Origin, origin
from tests.unit.saying import said


@pytest.mark.parametrize(
    ("event", "detail", "words"),
    [
        (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_DEFINED_ADDED, "defined"),
        (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_DEFINED_RENAMED, "defined (renamed)"),
        (libvirt.VIR_DOMAIN_EVENT_UNDEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED_REMOVED, "undefined"),
        (libvirt.VIR_DOMAIN_EVENT_UNDEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED_RENAMED, "undefined (renamed)"),
        (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED, "started"),
        (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_MIGRATED, "started (migrated here)"),
        (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_RESTORED, "started (restored)"),
        (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_FROM_SNAPSHOT, "started (from a snapshot)"),
        (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED, "suspended"),
        (
            libvirt.VIR_DOMAIN_EVENT_SUSPENDED,
            libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED,
            "suspended (handed over to another host)",
        ),
        (
            libvirt.VIR_DOMAIN_EVENT_SUSPENDED,
            libvirt.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY,
            "suspended (handed over, post-copy)",
        ),
        (
            libvirt.VIR_DOMAIN_EVENT_SUSPENDED,
            libvirt.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED,
            "suspended (post-copy migration failed)",
        ),
        (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED, "resumed"),
        (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_MIGRATED, "resumed (migration ended)"),
        (
            libvirt.VIR_DOMAIN_EVENT_RESUMED,
            libvirt.VIR_DOMAIN_EVENT_RESUMED_POSTCOPY,
            "resumed (migrated here, post-copy)",
        ),
        (
            libvirt.VIR_DOMAIN_EVENT_RESUMED,
            libvirt.VIR_DOMAIN_EVENT_RESUMED_POSTCOPY_FAILED,
            "resumed (post-copy migration failed)",
        ),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN, "stopped (shut down)"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED, "stopped (destroyed)"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, "stopped (crashed)"),
        (
            libvirt.VIR_DOMAIN_EVENT_STOPPED,
            libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED,
            "stopped (handed over to another host)",
        ),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED, "stopped (saved)"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED, "stopped (failed)"),
        (
            libvirt.VIR_DOMAIN_EVENT_STOPPED,
            libvirt.VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT,
            "stopped (reverted to a snapshot)",
        ),
        (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, 0, "shutting down"),
        (libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED, 0, "suspended by its guest"),
        (libvirt.VIR_DOMAIN_EVENT_CRASHED, 0, "crashed"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, 99, "stopped"),
        (99, 0, "changed (event 99)"),
    ],
)
def test_lifecycle(event: int, detail: int, words: str) -> None:
    assert said(domain_lifecycle("web1", event, detail)) == f"domain web1 {words}"


def test_a_hostile_name_stays_one_line() -> None:
    assert said(domain_lifecycle("a\nb", 2, 0)).isprintable()


@dataclass
class Domain:
    """One that events are about."""

    number: int = 1

    def name(self) -> str:
        return f"web{self.number}"

    def UUIDString(self) -> str:  # noqa: N802  libvirt's
        return str(self.number)


@dataclass
class Told:
    """What follows from events, as libvirt would tell them."""

    callbacks: dict[int, Callback] = field(default_factory=dict)
    reasons: list[Reason] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection = LibvirtConnection("test:///default", self.reasons.append, lambda _: None)
        self.connection._watch_domains(self)  # type: ignore[arg-type]  # noqa: SLF001  a connection in its place

    def domainEventRegisterAny(self, _domain: None, event: int, callback: Callback, _opaque: None) -> int:  # noqa: N802
        self.callbacks[event] = callback
        return event

    def lifecycle(self, event: int, detail: int, domain: int = 1) -> bool:
        """Whether guests alone are charged with what follows."""
        self.callbacks[libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE](None, Domain(domain), event, detail, None)
        return origin(self.reasons[-1]) is Origin.GUESTS

    def look(self) -> None:
        """Try to look; it is not open."""
        with pytest.raises(LibvirtUnavailableError):
            self.connection.observe()

    def metadata(self, namespace: str | None) -> int:
        """How many reasons to look there are after a change of metadata."""
        self.callbacks[libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE](None, Domain(), 2, namespace, None)
        return len(self.reasons)

    def reboot(self) -> bool:
        self.callbacks[libvirt.VIR_DOMAIN_EVENT_ID_REBOOT](None, Domain(), None)
        return origin(self.reasons[-1]) is Origin.GUESTS


BY_GUESTS = {
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_WAKEUP),
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR),
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG),
    (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_FINISHED),
    (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST),
    (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST),
    (libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED, libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED_MEMORY),
    (libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED, libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED_DISK),
    (libvirt.VIR_DOMAIN_EVENT_CRASHED, libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED),
    (libvirt.VIR_DOMAIN_EVENT_CRASHED, libvirt.VIR_DOMAIN_EVENT_CRASHED_CRASHLOADED),
}


@pytest.mark.parametrize("event", range(libvirt.VIR_DOMAIN_EVENT_CRASHED + 1))
def test_only_what_a_guest_can_do_again_and_again_is_charged_to_guests(event: int) -> None:
    """That a domain starts or ends is not: its guest cannot have it start again."""
    charged = {detail for detail in range(10) if Told().lifecycle(event, detail)}
    listed = {detail for number, detail in BY_GUESTS if number == event}
    assert listed <= charged
    if event <= libvirt.VIR_DOMAIN_EVENT_STOPPED:
        assert charged == listed


def test_agents_and_reboots_are_charged_to_guests() -> None:
    assert origin(agent_lifecycle("web1", 1)) is Origin.GUESTS
    assert Told().reboot()


def test_a_guest_that_libvirt_starts_again_is_charged_and_one_that_somebody_resumes_is_not() -> None:
    told = Told()
    resumed = libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED
    assert not told.lifecycle(*resumed)
    for _ in range(2):
        told.look()
        told.lifecycle(libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST)
        told.reboot()
        assert told.lifecycle(*resumed)
        assert not told.lifecycle(*resumed, domain=2)
    told.lifecycle(libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED)
    assert not told.lifecycle(*resumed)
    told.reboot()
    assert not told.lifecycle(libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_MIGRATED)


def test_what_happens_again_before_anybody_looked_is_told_once() -> None:
    told, stopped = Told(), (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN)
    for _ in range(2):
        told.reasons.clear()
        for _ in range(1000):
            told.reboot()
        assert len(told.reasons) == 1
        told.lifecycle(*stopped)
        told.lifecycle(*stopped)
        assert len(told.reasons) == 2
        told.lifecycle(*stopped, domain=2)
        assert len(told.reasons) == 3
        told.look()


def test_only_metadata_of_ours_is_a_reason_to_look_and_takes_from_the_budget_of_guests() -> None:
    assert [Told().metadata(namespace) for namespace in ("urn:other", "urn:kvm-portfwd:1", None)] == [0, 1, 1]
    told = Told()
    told.metadata(None)
    assert set(map(origin, told.reasons)) == {Origin.GUESTS}


def test_no_callback_asks_libvirt_anything() -> None:
    """What a domain is called is at hand in a callback; this one has nothing else that could be asked."""
    details = {
        libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: (libvirt.VIR_DOMAIN_EVENT_STARTED, 0, None),
        libvirt.VIR_DOMAIN_EVENT_ID_REBOOT: (None,),
        libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED: ("net0", None),
        libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: ("net0", None),
        libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE: (1, 0, None),
        libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE: (2, None, None),
    }
    for event, callback in Told().callbacks.items():
        callback(None, Domain(), *details.pop(event))
    assert not details
