"""The `[control]` table."""

from typing import Final

from fwdaemon.config.entry import read_key
from fwdaemon.config.model import ControlSettings
from fwdaemon.config.node import Node
from fwdaemon.config.text import GrammarError, quote

_DEFAULTS: Final = ControlSettings()
KEYS: Final = ("group",)


def read_control(node: Node) -> ControlSettings:
    """Read the `[control]` table; a value that is wrong is recorded and stands as its default."""
    group = read_key(node.fields(KEYS), "group", parse_group, _DEFAULTS.group)
    return _DEFAULTS if group is None else ControlSettings(group)


def parse_group(text: str) -> str:
    """Read the name of a group of users; whether there is one is no question of the grammar."""
    if not text:
        raise GrammarError('"" is empty; write the name of a group, or "root" for nobody else')
    if not text.isprintable() or ":" in text:
        raise GrammarError(f'{quote(text)} is no name of a group; write one that "getent group" shows')
    return text
