"""`kvm-portfwd reload`: have the daemon reload its configuration, and report the outcome."""

import argparse
import sys
from typing import Any, Final

from fwdaemon.control import client
from fwdaemon.control.protocol import CONFIGURATION_REFUSED, CallError
from fwdaemon.core.text import printable

# A reconcile may wait for a lock of iptables' for a while.
_PATIENCE_S: Final = 120.0
_FAILED: Final = 1
_CONFIG_REFUSED: Final = 78


def run(options: argparse.Namespace) -> int:
    """Ask, wait and print."""
    del options
    try:
        result = client.call("Reload", _PATIENCE_S)
    except CallError as error:
        if error.name != CONFIGURATION_REFUSED:
            raise
        _print_problems(error.parameters["problems"])
        return _CONFIG_REFUSED
    counted = ", ".join(f"{number} {state}" for state, number in result["counts"].items())
    print(printable(f"{result['file']} loaded: {counted}"))
    if result["failure"]:
        print(printable(f"kvm-portfwd: not in the kernel yet: {result['failure']}; trying again"), file=sys.stderr)
        return _FAILED
    return 0


def _print_problems(problems: list[dict[str, Any]]) -> None:
    for problem in problems:
        print(printable(f"{problem['file']}:{problem['line']}: {problem['text']}"), file=sys.stderr)
    print("kvm-portfwd: configuration refused; the old one stays in force", file=sys.stderr)
