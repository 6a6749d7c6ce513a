"""Rules without a daemon: written by hand for `nft`, or made by a hook script."""

from collections.abc import Iterable, Sequence
from typing import Final

from bench.forwards import PUBLIC, hook_forwards
from bench.hook_scripts import HookForward, chains, commands, no_chains
from bench.peers.peer import Peer, added, one_more
from bench.peers.steps import Program, Step
from bench.scene import Scene

_TABLE: Final = "ip by_hand"
_RESTORE: Final = ("iptables-restore", "--noflush")


class Nft(Peer):
    """The least that there is to do: one map, and one rule that looks into it."""

    label = "`nft -f`"
    about = "one map from ports to guests, as one would write it by hand; one by `nft add element`: the limit"
    limit = True

    def publish(self, size: int) -> Sequence[Step]:
        """Load a table."""
        return [Program(("nft", "-f", "-"), table(hook_forwards(size)))]

    def add(self, size: int) -> Sequence[Step]:
        """Add an element."""
        return [Program(("nft", "add", "element", *_TABLE.split(), "guests", f"{{ {_element(added(size))} }}"))]

    def remove(self, size: int) -> Sequence[Step]:
        """Delete it."""
        return [Program(("nft", "delete", "element", *_TABLE.split(), "guests", f"{{ {one_more(size)} }}"))]

    def reload(self, size: int) -> Sequence[Step]:
        """Load the table anew, in place of the one before."""
        return [Program(("nft", "-f", "-"), f"delete table {_TABLE}\n{table([*hook_forwards(size), added(size)])}")]

    def withdraw(self, size: int) -> None:  # noqa: ARG002  whatever there is
        """Delete the table."""
        self.scene.host.run("nft", "delete", "table", *_TABLE.split())


class Hooks(Peer):
    """What libvirt's hook runs when a domain starts: one `iptables` for each rule."""

    label = "hook script"
    about = "four `iptables` for each port, without the start of the script itself"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        scene.host.run(*_RESTORE, stdin=chains())

    def publish(self, size: int) -> Sequence[Step]:
        """Run four programs for each port."""
        return _programs(hook_forwards(size))

    def add(self, size: int) -> Sequence[Step]:
        """Run four programs."""
        return _programs([added(size)])

    def remove(self, size: int) -> Sequence[Step]:
        """Run four programs that delete."""
        made = _programs([added(size)])
        return [Program(tuple("-D" if word == "-A" else word for word in step.argv)) for step in made]

    def withdraw(self, size: int) -> None:  # noqa: ARG002  whatever there is
        """Take the chains away, and put them back empty."""
        for text in (no_chains(), chains()):
            self.scene.host.run(*_RESTORE, stdin=text)


def table(forwards: Iterable[HookForward]) -> str:
    """Write the forwards as a table for `nft -f`."""
    elements = ", ".join(map(_element, forwards))
    return f"""table {_TABLE} {{
    map guests {{
        type inet_service : ipv4_addr . inet_service
        elements = {{ {elements} }}
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat
        ip daddr {PUBLIC} dnat ip to tcp dport map @guests
    }}
}}
"""


def _element(forward: HookForward) -> str:
    return f"{forward.port} : {forward.guest} . {forward.guest_port}"


def _programs(forwards: Iterable[HookForward]) -> list[Program]:
    return [Program(tuple(argv)) for argv in commands("iptables", forwards)]
