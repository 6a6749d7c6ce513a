"""What the command line knows: its commands, and the options of each."""

import argparse
from collections.abc import Iterable
from typing import Final

from fwdaemon import cli


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """The long options of the program or of a command."""
    return sorted(option for action in _actions(parser) for option in action.option_strings if option.startswith("--"))


def _actions(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    return parser._actions  # noqa: SLF001  argparse has no other way to ask a parser what it knows


PARSER: Final = cli._parser()  # noqa: SLF001  the one way to the parser without running a command
COMMANDS: Final[dict[str, argparse.ArgumentParser]] = next(
    dict(action.choices) for action in _actions(PARSER) if isinstance(action.choices, dict)
)
EVERY_OPTION: Final = sorted({option for parser in COMMANDS.values() for option in options_of(parser)})
