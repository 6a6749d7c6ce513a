"""`kvm-portfwd open` and `close`: open ports to a domain for a while, and close them again."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from fwdaemon.commands.reload import PATIENCE_S, SCHEMA_VERSION, change, clock, outcome
from fwdaemon.control import protocol
from fwdaemon.core.text import printable, shown


def run(options: argparse.Namespace) -> int:
    """Ask the daemon to do so."""
    return change(options, _open if options.command == "open" else _close)


def _open(options: argparse.Namespace) -> int:
    wish = {"domain": options.domain, "ports": options.ports, "sources": options.sources, "seconds": options.seconds}
    result = protocol.call("Open", PATIENCE_S, parameters=wish)
    if options.json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, "openings": result["openings"]}, indent=2))
    else:
        for opening in result["openings"]:
            print(printable(_opened(opening)))
    return outcome(result)


def _opened(opening: Mapping[str, Any]) -> str:
    """Say what was opened, or why it waits."""
    what = f"{shown(opening['owner'])}: {opening['listens']}"
    leads = f" -> {opening['leads_to']}" if opening["leads_to"] else ""
    reason = f" {opening['state']}: {opening['reason']}" if opening["reason"] else ""
    return f"{what}{leads}{reason}, until {clock(opening['until'])}"


def _close(options: argparse.Namespace) -> int:
    result = protocol.call("Close", PATIENCE_S, parameters={"domain": options.domain, "ports": options.ports})
    if options.json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, "closed": result["closed"]}, indent=2))
    else:
        print(printable(f"closed {', '.join(result['closed'])} to {shown(options.domain)}"))
    return 0
