"""`kvm-portfwd status`: show what is reachable, what is not and why, and how the daemon is."""

import argparse
import json
import os
import sys
from collections.abc import Collection, Mapping
from typing import Any, Final

from fwdaemon import status_view
from fwdaemon.control import client
from fwdaemon.errors import PortfwdError
from fwdaemon.naming import shown
from fwdaemon.status import SCHEMA_VERSION

# Counting the connections of ten thousand forwards takes a second.
_PATIENCE_S: Final = 15.0


def run(options: argparse.Namespace) -> int:
    """Ask the daemon; without one, look at the kernel and at libvirt, and say so."""
    if options.watch:
        return _watch(options)
    try:
        status = _ask()
        _show(status, options)
    except client.NotRunningError as error:
        if os.geteuid() != 0:
            raise  # the kernel and libvirt answer root only
        print(f"kvm-portfwd: {error}", file=sys.stderr)
        from fwdaemon.status_once import status_without_daemon  # noqa: PLC0415  takes long to import, and is rare

        _show(json.loads(status_without_daemon(options.config).encode()), options)
        return 1
    return _missed(status, options.names)


def _missed(status: Mapping[str, Any], names: Collection[str]) -> int:
    """Say which names have no opening; 1 if there are any."""
    missed = sorted(set(names) - {opening["owner"] for opening in status["openings"]})
    for name in missed:
        print(f"kvm-portfwd: nothing of the configuration is for {shown(name)}", file=sys.stderr)
    return int(bool(missed))


def _watch(options: argparse.Namespace) -> int:
    """Show it again whenever it changes, until interrupted."""
    # ECMA-48: go home and erase the page; xterm: and what was above it.
    before = "\033[H\033[2J\033[3J" if sys.stdout.isatty() and not options.json else ""
    try:
        for _ in client.watch():
            status = _ask()
            print(before, end="")
            _show(status, options)
            print(end="" if before or options.json else "\n", flush=True)
    except KeyboardInterrupt:
        pass  # the usual way to end it
    return 0


def _ask() -> Mapping[str, Any]:
    status = client.call("Status", _PATIENCE_S)
    if status.get("schema_version") != SCHEMA_VERSION:
        raise PortfwdError(
            f"the daemon, version {status.get('version')}, tells its status in another form;"
            " restart it: systemctl restart kvm-portfwd"
        )
    return status


def _show(status: Mapping[str, Any], options: argparse.Namespace) -> None:
    status = _of(status, options.names)
    if options.json:
        print(json.dumps(status, indent=None if options.watch else 2))
    elif sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415  takes 60 ms to import

        status_view.draw(status, Console())
    else:
        print(status_view.as_text(status))


def _of(status: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """Leave only the openings of these domains and networks, all of them without a name; the counts stay of all."""
    if not names:
        return status
    return {**status, "openings": [opening for opening in status["openings"] if opening["owner"] in names]}
