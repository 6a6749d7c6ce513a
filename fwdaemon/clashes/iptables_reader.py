"""The table nat of iptables as steps, from `iptables-save`. Pure; the words are those of iptables-extensions(8)."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from ipaddress import ip_network
from itertools import takewhile
from typing import Final

from fwdaemon.clashes.scope import Field, Scope, Value, both
from fwdaemon.clashes.translation import Chains, Step
from fwdaemon.explain.packet import Place, System
from fwdaemon.legacy.model import OWN_PREFIX
from fwdaemon.model import Family, PortRange, Protocol
from fwdaemon.naming import rule_lines, unquoted

PREROUTING: Final = "PREROUTING"

_TRANSLATES: Final = frozenset({"DNAT", "REDIRECT", "NETMAP"})


def read_chains(save: str, system: System, family: Family) -> Chains:
    """Read all chains but ours; a match that is not known here counts as passed."""
    lines = [line for line in map(unquoted, rule_lines(save)) if OWN_PREFIX not in line]
    own_chains = {name for line in lines if line.startswith(":") for name in line[1:].split(maxsplit=1)[:1]}
    chains = defaultdict[str, list[Step]](list)
    for line in lines:
        match line.split():
            case ["-A", chain, *words]:
                place = Place(system, "ip" if family is Family.IPV4 else "ip6", "nat", chain, 0)
                chains[chain] += _steps(place, words, own_chains)
    return chains


def _steps(place: Place, words: Sequence[str], chains: Collection[str]) -> Iterator[Step]:
    scope: Scope = {}
    for option, values in _options(words):
        if option in ("-j", "-g"):
            target = values[0] if values[0] in chains else None
            if target is not None or values[0] in _TRANSLATES:
                yield Step(place, scope, target)
            return
        if option in _READERS:
            field, read = _READERS[option]
            narrowed = both(scope, {field: tuple(read(values[0]))})
            if narrowed is None:
                return
            scope = narrowed


def _options(words: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Give options with their values, without those that are negated."""
    position = 0
    while position < len(words):
        negated = words[position] == "!"
        option = words[position + negated]
        position += negated + 1
        values = list(takewhile(lambda word: word != "!" and not word.startswith("-"), words[position:]))
        position += len(values)
        if not negated and values:
            yield option, values


def _protocols(word: str) -> Iterator[Value]:
    yield from (protocol for protocol in Protocol if word == protocol)


def _ports(word: str) -> Iterator[Value]:
    """Read `80`, `80:90` and `80,443,1000:2000`."""
    for part in word.split(","):
        first, _, last = part.partition(":")
        yield PortRange(int(first), int(last or first))


def _subnets(word: str) -> Iterator[Value]:
    yield ip_network(word, strict=False)


def _interfaces(word: str) -> Iterator[Value]:
    yield f"{word[:-1]}*" if word.endswith("+") else word


_READERS: Final[Mapping[str, tuple[Field, Callable[[str], Iterator[Value]]]]] = {
    "-p": (Field.PROTOCOL, _protocols),
    "--dport": (Field.PORT, _ports),
    "--dports": (Field.PORT, _ports),
    "-d": (Field.DESTINATION, _subnets),
    "-s": (Field.SOURCE, _subnets),
    "-i": (Field.INTERFACE, _interfaces),
}
