"""The command line: `kvm-portfwd COMMAND`.

Every error of ours ends as one line on standard error and an exit code; a traceback is a mistake of ours.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from fwdaemon import __version__
from fwdaemon.errors import ConfigError, PortfwdError

_CONFIG = Path("/etc/portfwd.toml")
_FAILED = 1
# EX_CONFIG of sysexits.h: the unit does not start us again after it.
_CONFIG_REFUSED = 78

_COMMANDS = {
    "run": "be the daemon, in the foreground",
    "check": "say whether the configuration is right, and everything that is wrong if not",
    "rules": "print the rules that would be written now, touching nothing",
    "flush": "take away every rule that is ours, in every family",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; wrong usage exits with 2."""
    options = _parser().parse_args(arguments)
    try:
        code: int = import_module(f"fwdaemon.commands.{options.command}").run(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return _CONFIG_REFUSED
    except PortfwdError as error:
        print(f"kvm-portfwd: {error}", file=sys.stderr)
        return _FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kvm-portfwd", description="Keeps ports of this host forwarded to guests.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("--config", type=Path, default=_CONFIG, metavar="FILE", help=f"default: {_CONFIG}")
        if name == "check":
            command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="instead of the one of --config")
    return parser
