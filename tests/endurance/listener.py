"""Counts the lifecycle events that libvirt really sends: one line of JSON a second, a number for each kind.

Run on the host as a program of its own, with libvirt's library and the standard one only. It hears what any client
hears, whatever was asked for.
"""

import json
import sys
import threading
import time
from collections import Counter

import libvirt

# virDomainEventType, https://libvirt.org/html/libvirt-libvirt-domain.html
_KINDS = ("defined", "undefined", "started", "suspended", "resumed", "stopped")
_EVERY_S = 1.0


def _count(_connection: object, _domain: object, event: int, _detail: int, counted: "Counter[str]") -> None:
    counted[_KINDS[event] if event < len(_KINDS) else f"event {event}"] += 1


def _dispatch() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _main(uri: str) -> None:
    libvirt.virEventRegisterDefaultImpl()
    counted: Counter[str] = Counter()
    connection = libvirt.openReadOnly(uri)
    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, _count, counted)
    threading.Thread(target=_dispatch, daemon=True).start()
    while True:
        print(json.dumps(counted), flush=True)  # noqa: T201  the parent reads it
        time.sleep(_EVERY_S)


if __name__ == "__main__":
    _main(sys.argv[1])
