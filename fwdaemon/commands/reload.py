"""`kvm-portfwd reload` and `confirm`: have the daemon reload its configuration, and keep what it loaded for a while.

What is the same for all commands that have the daemon change something is here, too.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from fwdaemon.control import protocol
from fwdaemon.control.protocol import CONFIGURATION_REFUSED, REFUSED, CallError
from fwdaemon.core.text import printable

SCHEMA_VERSION: Final = 1
# A reconcile may wait for a lock of iptables' for a while.
PATIENCE_S: Final = 120.0
_FAILED: Final = 1
_CONFIG_REFUSED: Final = 78


def run(options: argparse.Namespace) -> int:
    """Ask the daemon to do so."""
    return change(options, _reload if options.command == "reload" else _confirm)


def _reload(options: argparse.Namespace) -> int:
    result = protocol.call("Reload", PATIENCE_S, parameters={"confirm_seconds": options.confirm})
    if options.json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, **result}, indent=2))
    else:
        counted = ", ".join(f"{number} {state}" for state, number in result["counts"].items())
        print(printable(f"{result['file']} loaded: {counted}"))
        if until := result["confirm_by"]:
            print(f"unless you run kvm-portfwd confirm, the configuration before comes back at {clock(until)}")
    return outcome(result)


def _confirm(options: argparse.Namespace) -> int:
    result = protocol.call("Confirm", PATIENCE_S)
    told = {"schema_version": SCHEMA_VERSION, **result}
    print(json.dumps(told, indent=2) if options.json else printable(f"{result['file']} stays in force"))
    return 0


def change(options: argparse.Namespace, act: Callable[[argparse.Namespace], int]) -> int:
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


def outcome(result: Mapping[str, Any]) -> int:
    """Say that what was changed is not in the kernel yet, if so, and give the exit code."""
    if result["failure"]:
        print(printable(f"kvm-portfwd: not in the kernel yet: {result['failure']}; trying again"), file=sys.stderr)
        return _FAILED
    return 0


def clock(time: str) -> str:
    """Write a time as a clock on this host shows it."""
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print_problems(problems: list[dict[str, Any]]) -> None:
    for problem in problems:
        print(printable(f"{problem['file']}:{problem['line']}: {problem['text']}"), file=sys.stderr)
    print("kvm-portfwd: configuration refused; the old one stays in force", file=sys.stderr)
