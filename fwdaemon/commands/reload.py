"""The commands that have the daemon change something: `reload` and `confirm`, `open` and `close`."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from fwdaemon.control import protocol
from fwdaemon.control.protocol import CONFIGURATION_REFUSED, REFUSED, CallError
from fwdaemon.core.text import printable, shown

_SCHEMA_VERSION: Final = 1
# A reconcile may wait for a lock of iptables' for a while.
_PATIENCE_S: Final = 120.0
_FAILED: Final = 1
_CONFIG_REFUSED: Final = 78


def run(options: argparse.Namespace) -> int:
    """Ask the daemon to do so."""
    acts = {"reload": _reload, "confirm": _confirm, "open": _open, "close": _close}
    return _changed(options, acts[options.command])


def _reload(options: argparse.Namespace) -> int:
    result = protocol.call("Reload", _PATIENCE_S, parameters={"confirm_seconds": options.confirm})
    if options.json:
        print(json.dumps({"schema_version": _SCHEMA_VERSION, **result}, indent=2))
    else:
        counted = ", ".join(f"{number} {state}" for state, number in result["counts"].items())
        print(printable(f"{result['file']} loaded: {counted}"))
        if until := result["confirm_by"]:
            print(f"unless you run kvm-portfwd confirm, the configuration before comes back at {_clock(until)}")
    return _outcome(result)


def _confirm(options: argparse.Namespace) -> int:
    result = protocol.call("Confirm", _PATIENCE_S)
    reply = {"schema_version": _SCHEMA_VERSION, **result}
    print(json.dumps(reply, indent=2) if options.json else printable(f"{result['file']} stays in force"))
    return 0


def _open(options: argparse.Namespace) -> int:
    wish = {"domain": options.domain, "ports": options.ports, "sources": options.sources, "seconds": options.seconds}
    result = protocol.call("Open", _PATIENCE_S, parameters=wish)
    for warning in result["warnings"]:
        print(printable(f"warning: {warning}"), file=sys.stderr)
    if options.json:
        print(json.dumps({"schema_version": _SCHEMA_VERSION, "openings": result["openings"]}, indent=2))
    else:
        for opening in result["openings"]:
            print(printable(_opened(opening)))
    return _outcome(result)


def _opened(opening: Mapping[str, Any]) -> str:
    """Say what was opened, or why it waits."""
    what = f"{shown(opening['owner'])}: {opening['listens']}"
    leads = f" -> {opening['leads_to']}" if opening["leads_to"] else ""
    reason = f" {opening['state']}: {opening['reason']}" if opening["reason"] else ""
    return f"{what}{leads}{reason}, until {_clock(opening['until'])}"


def _close(options: argparse.Namespace) -> int:
    result = protocol.call("Close", _PATIENCE_S, parameters={"domain": options.domain, "ports": options.ports})
    if options.json:
        print(json.dumps({"schema_version": _SCHEMA_VERSION, "closed": result["closed"]}, indent=2))
    else:
        print(printable(f"closed {', '.join(result['closed'])} to {shown(options.domain)}"))
    return 0


def _changed(options: argparse.Namespace, act: Callable[[argparse.Namespace], int]) -> int:
    """Have the daemon change something, wait and print; say why where it refuses."""
    try:
        return act(options)
    except CallError as error:
        if error.name == CONFIGURATION_REFUSED:
            _print_problems(error.parameters["problems"])
            return _CONFIG_REFUSED
        if error.name != REFUSED:
            raise
        for reason in error.parameters["reasons"]:
            print(printable(f"kvm-portfwd: {reason}"), file=sys.stderr)
        return _FAILED


def _outcome(result: Mapping[str, Any]) -> int:
    """Say that what was changed is not in the kernel yet, if so, and give the exit code."""
    if result["failure"]:
        print(printable(f"kvm-portfwd: not in the kernel yet: {result['failure']}; trying again"), file=sys.stderr)
        return _FAILED
    return 0


def _clock(time: str) -> str:
    """Write a time as a clock on this host shows it."""
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print_problems(problems: list[dict[str, Any]]) -> None:
    for problem in problems:
        print(printable(f"{problem['file']}:{problem['line']}: {problem['text']}"), file=sys.stderr)
    print("kvm-portfwd: configuration refused; the old one stays in force", file=sys.stderr)
