"""How tables, chains and elements are written for `nft -f`, and what the kernel lacks of that."""

from collections.abc import Collection, Iterator, Sequence
from math import ceil
from typing import Final, NamedTuple

from fwdaemon.core.admission import Need
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.errors import ProcessError
from fwdaemon.kernel.process import Runner
from fwdaemon.nftables.model import Chain, Elements, Held, Lasting, Set, Table, Target

# By so much an element outlives what it is for, in seconds: our own clock is to be first where we run.
_LONGER_S: Final = 1.0
# The kernel takes a netlink batch of any size, but a line of script is easier to read, and to find an error in, when it
# is not megabytes long.
_ELEMENTS_A_LINE = 200


def element_lines(verb: str, where: str, texts: Sequence[str]) -> Iterator[str]:
    """Write the commands that add elements to a set or map, or delete them."""
    for start in range(0, len(texts), _ELEMENTS_A_LINE):
        yield f"{verb} element {where} {{ {', '.join(texts[start : start + _ELEMENTS_A_LINE])} }}"


def declared_lines(where: str, content: Set, texts: Sequence[str]) -> Iterator[str]:
    """Write the same as part of the declaration of a set or map, which is there already.

    Before it adds or deletes elements alone, `nft` 1.0.6 reads those of all sets with ranges that there are, of any
    table, which takes seconds where these are a hundred thousand; before it declares a set, it reads none.
    """
    for start in range(0, len(texts), _ELEMENTS_A_LINE):
        listed = ", ".join(texts[start : start + _ELEMENTS_A_LINE])
        yield f"add {word_of(content)} {where} {{ {content.type} elements = {{ {listed} }} }}"


def creation(table: Table, now: float = 0.0) -> str:
    """Write a table as `nft list table` would, for reading and for loading `now`, by CLOCK_BOOTTIME."""
    lines = [f"table {table.name} {{"]
    for name, content in table.sets.items():
        listed = ", ".join(_element(element, now) for element in content.elements.items())
        elements = f" elements = {{ {listed} }}" if listed else ""
        lines.append(f"\t{word_of(content)} {name} {{ {content.type}{elements} }}")
    for name, chain in table.chains.items():
        lines.append(f"\tchain {name} {{")
        lines += [f"\t\t{line}" for line in ([str(chain.hook)] if chain.hook else []) + [*map(str, chain.rules)]]
        lines.append("\t}")
    return "\n".join([*lines, "}"])


def word_of(content: Set) -> str:
    """Say whether it is a map or a set."""
    return "map" if content.type.data else "set"


def made(table: Table, now: float) -> Iterator[str]:
    """Make what is not there; the first line is refused if by now it is."""
    yield f"create table {table.name}"
    yield creation(table, now)


def replaced(table: Table, now: float) -> Iterator[str]:
    """Delete and make in one transaction; the first line lets the deletion succeed where there is nothing any more.

    The kernel waits for all processors before it lets go of a table, which takes longer than all the rest of it.
    """
    yield f"add table {table.name}"
    yield f"delete table {table.name}"
    yield creation(table, now)


def filled(table: str, name: str, chain: Chain, *, existing: bool) -> Iterator[str]:
    """Give a chain its rules and no others."""
    hook = f" {{ {chain.hook} }}" if chain.hook else ""
    yield f"flush chain {table} {name}" if existing else f"add chain {table} {name}{hook}"
    for rule in chain.rules:
        yield f"add rule {table} {name} {rule}"


def set_changes(where: str, content: Set, gone: Elements, new: Elements, *, crowded: bool = False) -> Iterator[str]:
    """Take elements out of a set or map, and put others in; `content` is what is then in it.

    Where it is `crowded`, elements are written as `declared_lines` does, and all of them where one goes.
    """
    if crowded:
        added = content.elements if gone else new
        yield from [f"flush {word_of(content)} {where}"] if gone else []
        yield from declared_lines(where, content, [_element(element, 0.0) for element in sorted(added.items())])
        return
    # Only the key of an element may be named when it is deleted from a map.
    yield from element_lines("delete", where, sorted(gone))
    yield from element_lines("add", where, [_element(element, 0.0) for element in sorted(new.items())])


def renewed(where: str, content: Set, now: float, *, crowded: bool = False) -> Iterator[str]:
    """Write all that vanishes by itself anew: what is to be deleted may have done so since it was listed."""
    yield f"flush set {where}"
    texts = sorted(_element(element, now) for element in content.elements.items())
    yield from declared_lines(where, content, texts) if crowded else element_lines("add", where, texts)


def _element(element: tuple[str, Held], now: float) -> str:
    match element:
        case key, None:
            return key
        case key, Lasting(comment, ends):
            return f'{key} timeout {ceil(1000 * max(ends - now + _LONGER_S, _LONGER_S))}ms comment "{comment}"'
        case key, Target(data, comment):
            return f'{key} comment "{comment}" : {data}'
        case key, chain:
            return f"{key} : jump {chain}"


# --- what the kernel lacks -------------------------------------------------------------------------------------------


class _Sample(NamedTuple):
    """What something needs of nftables, in words and as a set and a rule, and the module that has it."""

    title: str
    flags: str
    rule: str
    module: str


_SAMPLES: Final = {
    Need.SETS: _Sample("sets with ranges and timeouts", "interval, timeout", "ip saddr @sample drop", "nf_tables"),
    Need.RATE: _Sample(
        "limit", "dynamic, timeout", "update @sample { ip saddr limit rate over 1/day counter } drop", "nft_limit"
    ),
    Need.OPEN: _Sample("ct count", "dynamic", "add @sample { ip saddr ct count over 1 counter } drop", "nft_connlimit"),
}
# ENOENT, EOPNOTSUPP and EAFNOSUPPORT. What else may be wrong, as that the user is not root, says nothing of the kernel.
_LACKING: Final = ("No such file or directory", "Operation not supported", "not supported by protocol")


def lacking(runner: Runner, needs: Collection[Need]) -> dict[Need, Fault]:
    """Have the kernel check a rule for each of these, and give what it lacks; what it does not tell is left out.

    With `--check`, a batch ends without a commit, so the kernel makes nothing of it; but it loads its modules.
    """
    found = {}
    for need in sorted(needs):
        title, flags, rule, module = _SAMPLES[need]
        kept = f"set sample {{ type ipv4_addr; size 1; flags {flags}; }}"
        script = f"table ip kvm_portfwd_sample {{\n{kept}\nchain sample {{\n{rule}\n}}\n}}\n"
        try:
            runner.run("nft", "--check", "-f", "-", stdin=script)
        except ProcessError as error:
            if reason := next((text for text in _LACKING if text in error.stderr), ""):
                found[need] = Fault(FaultKind.NO_EXPRESSION, (need.value, title, module), reason)
    return found
