"""libvirt's numbers become the words libvirt means by them."""

import libvirt
import pytest

from fwdaemon.hypervisor.connection import domain_lifecycle
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
