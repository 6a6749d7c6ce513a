"""The command line: `kvm-portfwd COMMAND`.

Every error of ours ends as one line on standard error and an exit code; a traceback is a mistake of ours.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from keyword import iskeyword
from pathlib import Path

from fwdaemon import __version__
from fwdaemon.core.text import GrammarError, parse_seconds
from fwdaemon.errors import ConfigError, PortfwdError

_CONFIG = Path("/etc/portfwd.toml")
_FAILED = 1
# EX_CONFIG of sysexits.h: the unit does not start us again after it.
_CONFIG_REFUSED = 78
# What shells tell of a program that SIGINT ended.
_INTERRUPTED = 130

# Commands of one subject share a module.
_SHARED = {
    "open": "reload",
    "close": "reload",
    "confirm": "reload",
    "port": "reload",
    "plan": "check",
    "rules": "check",
    "flush": "run",
    "explain": "answer",
}
_LAST_PORT = 65535
_PROTOCOLS = ("tcp", "udp", "sctp")
_PORTS = {
    "open": "as in the file: [ADDRESS:]HOST[:GUEST][/PROTOCOL]; nothing that is taken already",
    "close": "as it was opened; default: all of them",
}
_COMMANDS = {
    "run": "run the daemon in the foreground",
    "check": "check the configuration and report every error",
    "plan": "show what would change in the kernel now, without changing it",
    "status": "show what is reachable, what is not and why, and the state of the daemon",
    "port": "print the ports of the host that lead to a domain",
    "reload": "have the daemon reload its configuration, and report the outcome",
    "confirm": "keep the configuration that reload --confirm loaded",
    "open": "open ports to a domain for a while",
    "close": "close what was opened to a domain for a while",
    "rules": "print the rules that would be written now, without writing them",
    "explain": "follow one connection through the host, and say where it stops and why",
    "fleet": "read and change the table that many hosts share in etcd",
    "import": "convert the files of older tools to a configuration, on standard output",
    "flush": "remove every rule, route and address that kvm-portfwd has made",
}

_FLEET = {
    "list": "name the entries of the table",
    "put": "check a file, and write it to the table as an entry",
    "get": "print an entry of the table",
    "delete": "delete an entry of the table",
    "status": "show which host serves what, holds which address, and is behind",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; wrong usage exits with 2."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names are any text, and may hold what this terminal's encoding has no bytes for.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code: int = import_module(_module(options.command)).run(options)
        sys.stdout.flush()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return _CONFIG_REFUSED
    except PortfwdError as error:
        print(f"kvm-portfwd: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough; at the end, Python would try again to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    return code


def _module(command: str) -> str:
    """Name a command's module; a word of Python's own cannot be one, so it has `_` at its end."""
    module = _SHARED.get(command, command)
    return f"fwdaemon.commands.{module}{'_' if iskeyword(module) else ''}"


def _guest_port(text: str) -> tuple[int, str | None]:
    """Read a port of a guest, with or without its protocol."""
    port, slash, protocol = text.partition("/")
    if not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > _LAST_PORT or (slash and protocol not in _PROTOCOLS):
        raise argparse.ArgumentTypeError(f"{text!a} is no port; write one such as 22 or 53/udp")
    return int(port), protocol or None


def _seconds(shortest: int, longest: int, text: str) -> int:
    """Read a duration."""
    try:
        return parse_seconds(text, shortest, longest)
    except GrammarError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kvm-portfwd", description="Keeps ports of this host forwarded to guests.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("--config", type=Path, default=_CONFIG, metavar="FILE", help=f"default: {_CONFIG}")
        if name == "plan":
            command.add_argument("--exit-code", action="store_true", help="exit with 3 if anything would change")
            command.add_argument("--json", action="store_true", help="print JSON")
        if name == "explain":
            command.add_argument(
                "connection", metavar="ADDRESS:PORT[/PROTOCOL]", help="or a port alone; tcp by default"
            )
            command.add_argument(
                "--from",
                dest="source",
                metavar="SOURCE",
                help="the client's address or network, or a domain; default: a client outside the host",
            )
            command.add_argument("--json", action="store_true", help="print JSON")
        if name == "import":
            command.add_argument(
                "files", nargs="+", type=Path, metavar="FILE", help="files to convert; - is standard input"
            )
        if name == "status":
            command.add_argument("--json", action="store_true", help="print JSON")
            command.add_argument("--watch", action="store_true", help="show it again each time it changes")
            command.add_argument("names", nargs="*", metavar="DOMAIN", help="only these domains and networks")
        if name == "port":
            command.add_argument("--json", action="store_true", help="print JSON")
            command.add_argument("--port-only", action="store_true", help="print the number of one port alone")
            command.add_argument("domain", metavar="DOMAIN", help="libvirt name of the domain")
            command.add_argument(
                "guest",
                nargs="?",
                type=_guest_port,
                metavar="PORT[/PROTOCOL]",
                help="a port of the guest; default: all",
            )
        if name == "fleet":
            _add_fleet(command)
        _add_changing(name, command)
        if name == "check":
            command.add_argument(
                "file", nargs="?", type=Path, metavar="FILE", help="a file to check instead of that of --config"
            )
    return parser


def _add_fleet(command: argparse.ArgumentParser) -> None:
    """Add what `fleet` takes."""
    actions = "; ".join(f"{action}: {text}" for action, text in _FLEET.items())
    command.add_argument("action", choices=_FLEET, metavar="ACTION", help=actions)
    command.add_argument("name", nargs="?", metavar="NAME", help="of the entry to put, get or delete")
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="to put: as a drop-in; - is standard input")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_changing(name: str, command: argparse.ArgumentParser) -> None:
    """Add what the commands take that have the daemon change something."""
    if name in ("reload", "confirm", "open", "close"):
        command.add_argument("--json", action="store_true", help="print JSON")
    if name == "reload":
        command.add_argument(
            "--confirm",
            type=partial(_seconds, 2, 3600),
            metavar="TIME",
            help="unless kvm-portfwd confirm follows within 2s to 1h, the configuration before comes back",
        )
    if name in ("open", "close"):
        command.add_argument("domain", metavar="DOMAIN", help="libvirt name or UUID of the domain")
        several = "+" if name == "open" else "*"
        command.add_argument("ports", nargs=several, metavar="PORT", help=_PORTS[name])
    if name == "open":
        command.add_argument(
            "--for",
            dest="seconds",
            type=partial(_seconds, 1, 7 * 86400),
            metavar="TIME",
            help="for how long: 30s, 15m, 2h or 1d, 7d at most; default: 1h",
        )
        command.add_argument(
            "--from",
            dest="sources",
            action="append",
            default=[],
            metavar="SOURCE",
            help="an address, a network or set:NAME that may connect; may be given again; default: anyone",
        )
