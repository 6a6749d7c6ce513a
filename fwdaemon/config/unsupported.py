"""What belongs to the grammar but is not done by this version. Delete the line of what has been done.

Refusing is safer than ignoring: nobody should believe that something is forwarded which is not.
"""

from typing import Final

from fwdaemon.config.node import Node
from fwdaemon.config.text import show

TABLES: Final = frozenset({"control", "metrics", "nat", "route"})
_VALUES: Final[tuple[tuple[str, object, str], ...]] = (("localhost", True, "write localhost = false"),)


def refuse_table(node: Node) -> None:
    """Record that a table of `TABLES` is not supported."""
    name = node.path[-1]
    header = f"[[{name}]]" if isinstance(node.value, list) else f"[{name}]"
    node.refuse_key(f"{header} is not supported by this version; remove it")


def refuse_values(daemon: dict[str, Node]) -> None:
    """Record each value of `[daemon]` that is not supported."""
    for key, value, remedy in _VALUES:
        if key in daemon and type(daemon[key].value) is type(value) and daemon[key].value == value:
            daemon[key].refuse(f"{show(value)} is not supported by this version; {remedy}")
