"""Tells systemd how we are: ready, reloading, stopping (sd_notify(3)). Without systemd it does nothing."""

import time

import systemd.daemon


def ready(status: str) -> None:
    """Say that start or reload is done."""
    systemd.daemon.notify(f"READY=1\nSTATUS={status}")


def reloading() -> None:
    """Say that a reload has begun; systemd wants the time of it to tell two apart."""
    systemd.daemon.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Say that the stop has begun."""
    systemd.daemon.notify("STOPPING=1")
