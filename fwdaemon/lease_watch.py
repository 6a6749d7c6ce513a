"""Watches the files of libvirt's DHCP servers, since libvirt has no event for a lease.

dnsmasq's helper replaces /var/lib/libvirt/dnsmasq/BRIDGE.status by rename when a lease comes or goes, and libvirt
writes NETWORK.hostsfile when reservations change. What is in them is libvirt's to tell; here they only say "look
again". libvirt's *reading* them must not, or every look would cause the next.

The directory may not be there yet: then the nearest one above it is watched, until it is.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fwdaemon.naming import shown

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent

_log = logging.getLogger(__name__)

DNSMASQ_DIRECTORY: Final = Path("/var/lib/libvirt/dnsmasq")

_CHANGES: Final = frozenset({"created", "modified", "moved", "deleted"})
_REASONS: Final = {
    ".status": "DHCP leases on {} changed",
    ".hostsfile": "DHCP reservations of network {} changed",
}


# Up to its version 6, watchdog remembers each rename for as long as it watches: it begins anew after so many changes.
_RENEWED_AFTER: Final = 256


class LeaseWatch:
    """Calls `look_again` with a reason, on the loop's thread, when leases or reservations change.

    watchdog's threads live from `start` to `close`.
    """

    def __init__(self, look_again: Callable[[str], None], directory: Path = DNSMASQ_DIRECTORY) -> None:
        self._look_again = look_again
        self._directory = directory
        self._observer: Any = None  # watchdog's Observer is a variable, not a type
        self._watched: Path | None = None
        self._heard = 0

    def start(self) -> None:
        """Watch. Where the kernel has no inotify watch left, it says so once, and we live without."""
        from watchdog.observers import Observer  # noqa: PLC0415 - only `run` needs it

        self._observer = Observer()
        self._loop = asyncio.get_running_loop()
        try:
            self._observer.start()
            self._aim()
        except OSError as error:
            _log.warning("DHCP leases are noticed with delay, as %s cannot be watched: %s", self._directory, error)

    def close(self) -> None:
        """Stop watchdog's threads and wait for their end."""
        if self._observer is not None and self._observer.is_alive():
            self._observer.stop()
            self._observer.join()
        self._observer = None

    def dispatch(self, event: "FileSystemEvent") -> None:
        """Take an event on watchdog's thread; this is all that watchdog asks of a handler."""
        if event.event_type in _CHANGES:
            # Only a move had a destination before watchdog 4.
            path = Path(os.fsdecode(getattr(event, "dest_path", "") or event.src_path))
            self._loop.call_soon_threadsafe(self._changed, path)

    def _changed(self, path: Path) -> None:
        if self._observer is None:
            return
        if path.parent == self._directory:
            if path.suffix in _REASONS:
                self._look_again(_REASONS[path.suffix].format(shown(path.stem)))
        elif self._aim() and self._watched == self._directory:
            self._look_again(f"{self._directory} appeared")
        self._heard += 1
        if self._heard >= _RENEWED_AFTER:
            self._renew()

    def _renew(self) -> None:
        """Watch anew. What changes between the two watches is heard by neither."""
        self._heard, self._watched = 0, None
        self._aim()
        self._look_again("DHCP leases are watched anew")

    def _aim(self) -> bool:
        """Watch the directory, or the nearest above it; whether that changed. Repeated until nothing more appears."""
        moved = False
        while (nearest := self._nearest()) != self._watched:
            self._observer.unschedule_all()
            self._observer.schedule(self, str(nearest), recursive=False)
            self._watched, moved = nearest, True
        return moved

    def _nearest(self) -> Path:
        return next(path for path in (self._directory, *self._directory.parents) if path.is_dir())
