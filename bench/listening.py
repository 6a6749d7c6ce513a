"""Prints `started NAME SECONDS` for each domain that starts, on the host it runs on; SECONDS is CLOCK_MONOTONIC."""

import sys
import time

import libvirt


def _tell(_connection: object, domain: "libvirt.virDomain", event: int, _detail: int, _data: object) -> None:
    at = time.monotonic()
    if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
        print(f"started {domain.name()} {at:.6f}", flush=True)  # noqa: T201  the parent reads it


def main(uri: str) -> None:
    """Listen until killed."""
    libvirt.virEventRegisterDefaultImpl()
    connection = libvirt.openReadOnly(uri)
    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, _tell, None)
    print("ready", flush=True)  # noqa: T201  the same
    while True:
        libvirt.virEventRunDefaultImpl()


if __name__ == "__main__":
    main(sys.argv[1])
