"""From the tables the kernel holds to the desired ones: the shortest script of `nft` commands.

`nft -f` takes the whole script as one transaction. An empty script means that nothing is to be done.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, repeat
from operator import is_not
from typing import Final, TypeAlias, TypeVar

from fwdaemon.core.admission import Place
from fwdaemon.core.report import Fault
from fwdaemon.core.types import Family
from fwdaemon.nftables.admission import DENY
from fwdaemon.nftables.dispatch_chains import BESIDE, EVERY_ADDRESS, EVERYWHERE, NOWHERE, ONE_ADDRESS, MapKey, MapKeys
from fwdaemon.nftables.external import external_places
from fwdaemon.nftables.gates import GateState
from fwdaemon.nftables.model import (
    VERDICT,
    Chain,
    Elements,
    Set,
    SetType,
    Table,
    declared_lines,
    element_lines,
    element_text,
    table_name,
    word_of,
)

Tables: TypeAlias = Mapping[Family, Table]
_T = TypeVar("_T")
_MISSING: Final = object()
_OF_FORWARDS: Final = frozenset({*ONE_ADDRESS, *EVERY_ADDRESS})
_PORTS: Final = 1 << 16
_NO_SET: Final = Set(SetType(""))


@dataclass(frozen=True, slots=True)
class Difference:
    """The commands for one table, and the map keys whose exposures did not work before them.

    Of one that is made `anew`, nothing is left that others had put into its sets.
    """

    script: tuple[str, ...] = ()
    mended: MapKeys = NOWHERE
    anew: bool = False


def difference(
    family: Family, desired: Table | None, observed: Table | None, now: float = 0.0, *, crowded: bool = False
) -> Difference:
    """Say what makes `observed` become `desired`, `now` by CLOCK_BOOTTIME; `None` is a table that is not there.

    It is `crowded` where others have very many elements in our sets.
    """
    if desired is observed:
        return Difference()
    if desired is None:
        return Difference((f"delete table {table_name(family)}",))
    if observed is None:
        return Difference(tuple(made(desired, now)), EVERYWHERE, anew=True)
    comparison = _Comparison.of(desired, observed)
    if comparison is None:
        return Difference(tuple(replaced(desired, now)), EVERYWHERE, anew=True)
    return Difference(tuple(comparison.script(now, crowded=crowded)), comparison.mended())


def mended(desired: Table | None, observed: Table | None) -> MapKeys:
    """Name the map keys of `desired` whose exposures do not work with `observed`."""
    if desired is None or desired is observed:
        return NOWHERE
    comparison = _Comparison.of(desired, observed) if observed is not None else None
    return EVERYWHERE if comparison is None else comparison.mended()


def altered(desired: Tables, observed: Tables) -> dict[Family, MapKeys]:
    """Name the map keys of forwards where tables that led somewhere may have led in another way, by family.

    They were not as desired, or another key with a port of theirs was not: a connection to one address goes on by a
    forward on every address once its own has gone.
    """
    return {family: _altered(desired[family], table) for family, table in observed.items() if family in desired}


def _altered(desired: Table, observed: Table) -> MapKeys:
    led = "forwards" in observed.chains and observed.chains["forwards"].rules
    comparison = _Comparison.of(desired, observed) if led and desired is not observed else None
    former = _Comparison.of(observed, desired) if comparison is not None else None
    if comparison is None or former is None:
        return NOWHERE
    beside = _at_ports_of(desired, _of_forwards(former.altered()))
    return MapKeys(_of_forwards(comparison.altered()).union(beside))


def _of_forwards(map_keys: MapKeys) -> frozenset[MapKey]:
    return frozenset(map_key for map_key in map_keys.named if map_key[0] in _OF_FORWARDS)


def _at_ports_of(table: Table, map_keys: Iterable[MapKey]) -> Iterator[MapKey]:
    """Give the map keys of forwards that have a port of one of these, whatever their addresses."""
    taken = defaultdict[str, bytearray](lambda: bytearray(_PORTS))
    for _, key in map_keys:
        protocol, ports = _ports(key)
        taken[protocol][ports] = b"\1" * (ports.stop - ports.start)
    for name in _OF_FORWARDS if taken else ():
        for key in table.sets[name].elements:
            protocol, ports = _ports(key)
            if protocol in taken and any(taken[protocol][ports]):
                yield name, key


def _ports(key: str) -> tuple[str, slice]:
    """Read the end of a key, a protocol and a port or a range of them; what we would not write is all of them."""
    rest, _, ports = key.rpartition(" . ")
    first, _, last = ports.partition("-")
    known = first.isdecimal() and (last or first).isdecimal()
    return rest.rpartition(" . ")[2], slice(int(first), int(last or first) + 1) if known else slice(0, _PORTS)


class _Comparison:
    """What differs between two tables of one frame; where one was made of the other, nothing else is read."""

    def __init__(self, desired: Table, observed: Table) -> None:
        self._desired, self._observed = desired, observed
        self._step = desired.step_from(observed)
        among = self._step.chains if self._step else None
        self._chains = _differing(desired.chains, observed.chains, among)
        self._gone_chains = _differing(observed.chains, desired.chains, among).keys() - desired.chains.keys()

    @classmethod
    def of(cls, desired: Table, observed: Table) -> "_Comparison | None":
        """Compare; `None` where hooks, flags or set types differ, which cannot be changed, or it is none of ours."""
        found = cls(desired, observed)
        there = observed.chains
        hooks = all(name not in there or there[name].hook == chain.hook for name, chain in found._chains.items())
        types, others = _types(desired), _types(observed)
        alike = "forwards" in there and all(others.get(name, kind) == kind for name, kind in types.items())
        same = hooks and desired.flags == observed.flags and alike
        return found if same else None

    @cached_property
    def _new(self) -> dict[str, Elements]:
        return self._differing_elements(self._desired, self._observed)

    def script(self, now: float, *, crowded: bool) -> Iterator[str]:
        """Give the commands that make one table the other, `now` by CLOCK_BOOTTIME."""
        table, there, wanted = self._desired.name, self._observed.sets, self._desired.sets
        # Sets first, since rules name them, then chains, which elements name; what is no longer named goes last.
        for name in wanted.keys() - there.keys():
            yield f"add {word_of(wanted[name])} {table} {name} {{ {wanted[name].type} }}"
        for name, chain in sorted(self._chains.items(), key=_place):
            yield from filled(table, name, chain, existing=name in self._observed.chains)
        gone = self._differing_elements(self._observed, self._desired)
        for name, new in self._new.items():
            where, content, old = f"{table} {name}", wanted[name], gone.get(name, {})
            if not content.type.lasting:
                yield from set_changes(where, content, old, new, crowded=crowded)
            elif old or new:
                yield from renewed(where, content, now, crowded=crowded)
        # Chains that another program made may lead to each other.
        for verb in ("flush", "delete") if len(self._gone_chains) > 1 else ("delete",):
            yield from (f"{verb} chain {table} {name}" for name in sorted(self._gone_chains))
        for name in there.keys() - wanted.keys():
            yield f"delete {word_of(there[name])} {table} {name}"

    def mended(self) -> MapKeys:
        """Name the map keys that were not reached, or not right: these chains differed, and these elements."""
        if "forwards" in self._chains or any(chain.hook for chain in self._chains.values()):
            return EVERYWHERE
        return self.altered()

    def altered(self) -> MapKeys:
        """Name the map keys whose own chains or elements differed, whatever else did."""
        sets = [(name, item) for name, item in self._desired.sets.items() if item.type.data or name in BESIDE]
        map_keys = {(BESIDE.get(name, name), key) for name, _ in sets for key in self._new[name]}
        # What leads to a chain that was not there is new, too.
        if known := self._chains.keys() & self._observed.chains.keys():
            map_keys |= {(name, key) for name, content in sets for key in _leading(content.elements, known)}
        return MapKeys(frozenset(map_keys))

    def _differing_elements(self, those: Table, others: Table) -> dict[str, Elements]:
        """By set, the elements of one table that are not in the other, or lead elsewhere there."""
        among = self._step.elements if self._step else {}
        return {
            name: _differing(content.elements, others.sets.get(name, _NO_SET).elements, among.get(name))
            for name, content in those.sets.items()
            if name in self._desired.sets
        }


def _types(table: Table) -> dict[str, object]:
    return {name: content.type for name, content in table.sets.items()}


def _place(chain: tuple[str, Chain]) -> tuple[bool, bool]:
    """Sort first what rules of other chains lead to, and base chains last."""
    return chain[1].hook is not None, not chain[0].startswith(DENY)


def _leading(elements: Elements, chains: Collection[str]) -> Iterator[str]:
    return (key for key, chain in elements.items() if chain in chains)


def _differing(these: Mapping[str, _T], those: Mapping[str, _T], among: Collection[str] | None = None) -> dict[str, _T]:
    """Give those of `these` that are not among `those`, or another there; only `among` these names, if given."""
    if these is those:
        return {}
    if among is not None:
        return {
            name: these[name] for name in sorted(among) if name in these and those.get(name, _MISSING) != these[name]
        }
    # Of thousands nearly all are the same object, so those are passed over without a line of Python for each.
    others = map(those.get, these, repeat(_MISSING))
    differing = compress(these.items(), map(is_not, these.values(), others))
    return {name: item for name, item in differing if those.get(name, _MISSING) != item}


def tables_difference(
    desired: Tables, observed: Tables, now: float = 0.0, *, crowded: bool = False
) -> dict[Family, Difference]:
    """Give the difference of both families; families that need nothing are left out."""
    every = {
        family: difference(family, desired.get(family), observed.get(family), now, crowded=crowded) for family in Family
    }
    return {family: change for family, change in every.items() if change.script}


# Our part of the kernel's rules, as it was found, and what to look for. Plain data.


@dataclass(frozen=True, slots=True)
class Observed:
    """Our part of the kernel's rules at one generation.

    `gates` are the foreign chains that exist and are to have a gate, `orphaned_gates` those that hold a rule of ours
    without reason; not `searched` if those could not be looked for. `faults` are what could not be read. `libvirt` says
    whether libvirt's own rules were seen, `listed` is false where it follows from what we committed since the last
    listing.
    """

    generation: int
    tables: dict[Family, Table]
    gates: tuple[GateState, ...]
    orphaned_gates: tuple[GateState, ...]
    faults: tuple[Fault, ...]
    libvirt: bool = False
    listed: bool = True
    searched: bool = True


# What one reconcile commits: the differences of our tables, and the gates that are to be opened or closed. Pure.
WithMapKeys: TypeAlias = Mapping[Family, MapKeys]
"""Map keys in our table of each family."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One commit, which is `script` for `nft -f`, and the gates to be opened (`shut`) or closed (`orphaned_gates`).

    Each gate is changed by itself: it stands in a table of others, who may refuse it. `tables` are what our tables will
    be, `mended` the map keys in them whose exposures do not work before it.
    """

    tables: dict[Family, Table]
    script: str
    shut: tuple[GateState, ...]
    orphaned_gates: tuple[GateState, ...]
    mended: WithMapKeys

    @classmethod
    def of(
        cls,
        wanted: dict[Family, Table],
        observed: Observed,
        refilling: Callable[[Collection[Place]], str],
        now: float = 0.0,
        *,
        crowded: bool = False,
    ) -> "Plan":
        """Compare the desired tables with those there are, `now` by CLOCK_BOOTTIME.

        `refilling` writes what others had in sets that are made anew; it is `crowded` where that is very much.
        """
        changes = tables_difference(wanted, observed.tables, now, crowded=crowded)
        shut = tuple(state for state in observed.gates if not state.open)
        script = "".join(f"{line}\n" for change in changes.values() for line in change.script)
        there = {family: table for family, table in observed.tables.items() if not _is_anew(changes.get(family))}
        script += refilling(set(external_places(wanted)) - set(external_places(there)))
        return cls(wanted, script, shut, observed.orphaned_gates, _mended(changes))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.script or self.shut or self.orphaned_gates)

    def damaged(self, committed: Tables, observed: Observed) -> WithMapKeys:
        """Name those of `mended` that differ from what was committed last."""
        return {
            family: map_keys & mended(committed.get(family), observed.tables.get(family))
            for family, map_keys in self.mended.items()
        }


def stale(wanted: Tables, observed: Tables) -> frozenset[str]:
    """Name the map keys of exposures that are not wanted."""
    return frozenset(
        f"{table.name} {name} {{ {key} }}"
        for family, table in observed.items()
        for name, content in table.sets.items()
        if content.type.data == VERDICT
        for key in content.elements.keys() - _keys(wanted.get(family), name)
    )


def _keys(table: Table | None, name: str) -> AbstractSet[str]:
    return table.sets[name].elements.keys() if table and name in table.sets else set()


def _is_anew(change: Difference | None) -> bool:
    return change is not None and change.anew


def _mended(changes: Mapping[Family, Difference]) -> WithMapKeys:
    return {family: change.mended for family, change in changes.items() if change.mended}


# The commands of such a script.


def creation(table: Table, now: float = 0.0) -> str:
    """Write a table as `nft list table` would, for reading and for loading `now`, by CLOCK_BOOTTIME."""
    lines = [f"table {table.name} {{"]
    for name, content in table.sets.items():
        listed = ", ".join(element_text(element, now) for element in content.elements.items())
        elements = f" elements = {{ {listed} }}" if listed else ""
        lines.append(f"\t{word_of(content)} {name} {{ {content.type}{elements} }}")
    for name, chain in table.chains.items():
        lines.append(f"\tchain {name} {{")
        lines += [f"\t\t{line}" for line in ([str(chain.hook)] if chain.hook else []) + [*map(str, chain.rules)]]
        lines.append("\t}")
    return "\n".join([*lines, "}"])


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
        yield from declared_lines(where, content, [element_text(element, 0.0) for element in sorted(added.items())])
        return
    # Only the key of an element may be named when it is deleted from a map.
    yield from element_lines("delete", where, sorted(gone))
    yield from element_lines("add", where, [element_text(element, 0.0) for element in sorted(new.items())])


def renewed(where: str, content: Set, now: float, *, crowded: bool = False) -> Iterator[str]:
    """Write all that vanishes by itself anew: what is to be deleted may have done so since it was listed."""
    yield f"flush set {where}"
    texts = sorted(element_text(element, now) for element in content.elements.items())
    yield from declared_lines(where, content, texts) if crowded else element_lines("add", where, texts)
