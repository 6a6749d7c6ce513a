"""Everything that touches python-iptables; only a helper process imports this. Its traps are dealt with here.

- `autocommit` swallows what the kernel refuses, so it is off, and every commit is explicit.
- A target is looked for among the chains of *all* tables, which brings all of them into being: our rules know none.
- `final_check` reads a rule back through a redirected standard output, and may wait forever: only what it does last is
  used, the extension's own check.
- From 1.8.10 on, iptables' option descriptions are larger than the library thinks (`_mend_options`).
- A name that is not UTF-8 raises, so chains are never listed, only asked for (`OpenTable._own_chains`).
- For IPv6 it writes an interface's mask so that one bit of each letter counts: `_bind_interface` writes it.
"""

import ctypes
import errno
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import iptc
from iptc.ip4tc import IPTCError
from iptc.xtables import NFPROTO_IPV4, XTablesError, xt_option_entry, xtables

from fwdaemon.core.bans import Judge, Kind, place
from fwdaemon.core.bans import Rule as ForeignRule
from fwdaemon.core.types import Family
from fwdaemon.legacy import info, model
from fwdaemon.legacy.info import Entry, decode
from fwdaemon.legacy.model import COMMENT, OWN_CHAINS, SET_MATCH, Head, ObservedTable, Rule, TableName, is_own

# What a helper cannot do; each text is for the daemon, which makes it a `KernelError`.


class HelperError(Exception):
    """Base of all of them.

    After a `final` one the process is not to be trusted any more; an `unusable` one will not go away by trying again.
    After a `late` one, do not wait at once again.
    """

    final = False
    unusable = False
    late = False


class LockError(HelperError):
    """Another program holds iptables' lock, and goes on holding it, or it cannot be opened."""

    late = True


class LibraryError(HelperError):
    """python-iptables is not there, or does not fit."""

    final = True
    unusable = True


class NoTableError(HelperError):
    """The kernel does not have a table, or does not let us have it."""

    unusable = True


class RefusedError(HelperError):
    """The library does not take a rule; what state the process is in is unknown."""

    final = True

    def __init__(self, rule: Rule, reason: str) -> None:
        self.reason = reason
        super().__init__(f"iptables' library refused a rule: {reason}; the rule is {rule}")


class TableError(HelperError):
    """The kernel refused a commit, which was wrong, or came too late (`again`)."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        self.again = again
        super().__init__(reason)


# Reads rules in the form `fwdaemon.legacy.ruleset` writes them. Pure; no general reader of iptables' language.
_HEADER = {"-s": "src", "-d": "dst", "-i": "in_interface", "-o": "out_interface", "-p": "protocol"}
# Options that stand alone, and those of two words.
_ALONE = frozenset({"--set", "--connlimit-saddr"})
_OF_TWO = frozenset({"--match-set"})


@dataclass(frozen=True, slots=True)
class Extension:
    """A match or a target with its options; the value of an inverted option begins with `!`."""

    name: str
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Words:
    """A rule taken apart; `header` holds what the rule says of addresses, interfaces and protocol.

    Its names are those of python-iptables, its values are as in an `Extension`.
    """

    header: tuple[tuple[str, str], ...]
    matches: tuple[Extension, ...]
    target: Extension


def parse(rule: Rule) -> Words:
    """Take a rule apart."""
    header, *matches = _groups(rule.matches)
    return Words(
        tuple((_HEADER[option], value) for option, value in _options(header)),
        (*(_extension(match) for match in matches), Extension("comment", (("comment", rule.comment),))),
        _extension(rule.target.split()),
    )


def _groups(matches: str) -> list[list[str]]:
    """Split at each `-m`; what stands before the first is the header."""
    groups: list[list[str]] = [[]]
    for word in matches.split():
        if word == "-m":
            groups.append([])
        else:
            groups[-1].append(word)
    return groups


def _extension(words: list[str]) -> Extension:
    name, *options = words
    return Extension(name, tuple((option[2:], value) for option, value in _options(options)))


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    waiting = iter(words)
    for word in waiting:
        if word == "!":
            yield next(waiting), "!" + next(waiting).strip('"')
        elif word in _OF_TWO:
            yield word, f"{next(waiting)} {next(waiting)}"
        else:
            yield word, "" if word in _ALONE else next(waiting).strip('"')


# How many rules in the kernel's form are kept, of about 1 kB each.
_REMEMBERED = 20_000
# The parts of a rule's header that hold an interface: the name, its mask, and the bit that turns the match around; the
# bits are IPT_INV_VIA_IN and IPT_INV_VIA_OUT of linux/netfilter_ipv4/ip_tables.h, and the same for IPv6.
_INTERFACES = {"in_interface": ("iniface", "iniface_mask", 1), "out_interface": ("outiface", "outiface_mask", 2)}
# Further than this apart, two words are no neighbours in one library's strings.
_NEAR = 1 << 20


class _Rule4(iptc.Rule):  # type: ignore[misc]  # the library is not typed
    tables = ()


class _Rule6(iptc.Rule6):  # type: ignore[misc]
    tables = ()


class Compiler:
    """Makes the kernel's form of a rule, which takes 0.2 ms, and remembers it."""

    def __init__(self, family: Family) -> None:
        self._rule = _Rule4 if family is Family.IPV4 else _Rule6
        self._made: dict[Rule, Any] = {}
        _mend_options()

    def compile(self, rule: Rule) -> Any:
        """Give the buffer that `Table` takes.

        Raises:
            RefusedError: the library, or the kernel it asks, does not know a match or target, or an option.

        """
        if len(self._made) > _REMEMBERED:
            self._made.clear()
        # An ipset is in it by a number, which is another once the set was made again.
        if rule not in self._made or SET_MATCH in rule.matches:
            try:
                self._made[rule] = self._make(rule)
            except (AttributeError, IPTCError, TypeError, ValueError, XTablesError) as error:
                raise RefusedError(rule, str(error)) from error
        return self._made[rule]

    def _make(self, rule: Rule) -> Any:
        words = parse(rule)
        made = self._rule()
        for name, value in words.header:
            if name in _INTERFACES:
                _bind_interface(made, _INTERFACES[name], value)
            else:
                setattr(made, name, value)
        for extension in words.matches:
            match = iptc.Match(made, extension.name)
            made.add_match(match)
            _set_options(match, extension)
        # A jump is a "standard" target that names a chain.
        own = is_own(words.target.name)
        made.target = iptc.Target(made, "" if own else words.target.name)
        if own:
            made.target.standard_target = words.target.name
        _set_options(made.target, words.target)
        return made.rule


class OpenTable:
    """One table as it was when opened, with the changes made since; `commit` writes them at once, or none."""

    def __init__(self, family: Family, name: TableName) -> None:
        self._family, self._name = family, name
        try:
            self._table = (iptc.Table if family is Family.IPV4 else iptc.Table6)(name.value, autocommit=False)
            self._table.refresh()
        except IPTCError as error:
            raise NoTableError(f"iptables-legacy's {name} cannot be used for IPv{family}: {_plain(error)}") from error

    def observe(self, heads: Mapping[str, Any], behind: Collection[str] | None = None) -> ObservedTable:
        """Read what is ours; `heads` are the compiled rules that are looked for, by the kernel's chains.

        Bans stay ahead of these where `behind` is given: jumps to the chains that its patterns name are such.
        """
        chains = self._own_chains()
        found = {name: self._head(name, compiled, behind) for name, compiled in heads.items()}
        leading = Counter(entry.target for entries in chains.values() for entry in entries)
        for name, compiled in heads.items():
            leading[decode(self._family, bytes(compiled)).target] += len(found[name].positions)
        return ObservedTable(
            {name: tuple(entry.comment for entry in entries) for name, entries in chains.items()},
            found,
            frozenset(name for name in chains if self._references(name) > leading[name]),
        )

    def has(self, chain: str) -> bool:
        """Whether there is such a chain."""
        return bool(self._table.is_chain(chain))

    def create(self, chain: str) -> None:
        """Add a chain."""
        self._do(self._table.create_chain, chain)

    def delete(self, chain: str, position: int) -> None:
        """Take a rule out; positions count from 0."""
        # The library has no call for this; its own needs the whole rule, and takes the first one like it.
        handle, function = self._table._handle, self._table._iptc.iptc_delete_num_entry  # noqa: SLF001
        if function(chain.encode(), ctypes.c_uint(position), handle) != 1:
            raise TableError(f"cannot delete rule {position + 1} of {chain}")

    def insert(self, chain: str, position: int, compiled: Any) -> None:
        """Put a rule where `position` says, counting from 0."""
        self._do(self._table.insert_entry, chain, compiled, position)

    def drop(self, *chains: str) -> None:
        """Delete chains, which may lead to each other."""
        for chain in chains:
            self._do(self._table.flush_entries, chain)
        for chain in chains:
            self._do(self._table.delete_chain, chain)

    def commit(self) -> None:
        """Write all changes; nothing is written when there are none.

        Raises:
            TableError: the kernel refused, and holds what it held before.

        """
        self._do(self._table.commit)

    def _do(self, function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except IPTCError as error:
            text = _plain(error)
            raise TableError(text, again=os.strerror(errno.EAGAIN) in text) from error

    def _own_chains(self) -> dict[str, tuple[Entry, ...]]:
        # Those of limits are in one table alone; others may have such names, so a rule of ours leads there or is there.
        found = info.chain_names(self._family, self._name) if self._name is TableName.MANGLE else frozenset()
        names = sorted(OWN_CHAINS.union(filter(is_own, found)))
        chains = {name: tuple(self.entries(name)) for name in names if self.has(name)}
        rules = ((name, entry) for name, entries in chains.items() for entry in entries)
        ours = OWN_CHAINS.union(*((name, entry.target) for name, entry in rules if model.is_written(entry.comment)))
        return {name: entries for name, entries in chains.items() if name in ours}

    def _references(self, chain: str) -> int:
        """Count the rules that lead to a chain, wherever they are."""
        number, function = ctypes.c_uint(), self._table._iptc.iptc_get_references  # noqa: SLF001  it has no call for this
        if function(ctypes.byref(number), chain.encode(), self._table._handle) != 1:  # noqa: SLF001
            raise TableError(f"cannot count what leads to {chain}")
        return number.value

    def entries(self, chain: str) -> Iterator[Entry]:
        """Read the rules of a chain, in order."""
        entry = self._table.first_rule(chain)
        while entry:
            raw = ctypes.string_at(ctypes.addressof(entry), entry.next_offset)
            yield decode(self._family, raw, self._table.get_target(entry) or b"")
            entry = self._table.next_rule(entry)

    def _head(self, chain: str, compiled: Any, behind: Collection[str] | None) -> Head:
        entries, wanted = list(self.entries(chain)), decode(self._family, bytes(compiled))
        ours = tuple(
            number
            for number, entry in enumerate(entries)
            if entry.target == wanted.target and (entry.comment == COMMENT or _is_bare(entry, wanted))
            if not info.is_path(self._family, entry)
        )
        others = [entry for number, entry in enumerate(entries) if number not in ours]
        staying = 0 if behind is None else place(self._kinds(chain, others, behind))
        return Head(
            ours,
            good=len(ours) == 1 and entries[ours[0]] == wanted,
            first=bool(ours)
            and ours[0] >= staying
            and all(entry.comment == COMMENT for entry in entries[staying : ours[0]]),
            foreign=sum(entry.comment != COMMENT for entry in entries),
            policy=self.policy(chain),
            place=staying,
        )

    def _kinds(self, chain: str, others: Iterable[Entry], behind: Collection[str]) -> Iterator[Kind]:
        """Judge the rules that may be ahead of ours; another of ours may be, and so may one that decides nothing."""
        judge, accepts = Judge(behind, self.rules), self.policy(chain) == "ACCEPT"
        for entry in others:
            is_ours = entry.comment == COMMENT
            yield Kind.IDLE if is_ours else judge.kind(info.read_rule(self._family, entry), accepts=accepts)

    def rules(self, chain: str) -> list[ForeignRule] | None:
        """Read a chain of others; a target may as well be of an extension."""
        return [info.read_rule(self._family, entry) for entry in self.entries(chain)] if self.has(chain) else None

    def policy(self, chain: str) -> str:
        """Give what becomes of what no rule of a chain decides about."""
        return str(self._table.get_policy(chain)[0].name)


def _is_bare(entry: Entry, link: Entry) -> bool:
    """Whether a rule is a jump to a chain of ours that says nothing else, and so does what the link does."""
    return is_own(entry.target) and not entry.matches and entry.header == link.header


def _set_options(module: Any, extension: Extension) -> None:
    for name, value in extension.options:
        module.set_parameter(name, value.split() if f"--{name}" in _OF_TWO else value)
    # Some extensions bring what was set into its final form only here.
    module._final_check()  # noqa: SLF001


def _bind_interface(made: Any, parts: tuple[str, str, int], value: str) -> None:
    """Match packets of the interface of exactly this name, or after `!` those of all others."""
    name_part, mask_part, inverted = parts
    header, name = made.get_ip(), value.removeprefix("!").encode()
    setattr(header, name_part, name)
    setattr(header, mask_part, b"\xff" * (len(name) + 1))
    if value.startswith("!"):
        header.invflags |= inverted


def _plain(error: IPTCError) -> str:
    """Give the library's text, in which the kernel's part is a printed byte string, without signs of that."""
    return re.sub(r"b'([^']*)'", r"\1", str(error))


def _mend_options() -> None:
    """Make the library find options by the size their descriptions really have, and not look at all of them."""
    stride = _option_stride()

    def lookup(_: Any, entries: Any, name: bytes) -> Any:
        start = ctypes.cast(entries, ctypes.c_void_p).value or 0
        for number in count():
            entry = xt_option_entry.from_address(start + number * stride)
            if not entry.name or entry.name == name:
                return entry if entry.name else None
        return None

    xtables._option_lookup = lookup  # noqa: SLF001
    xtables._options_fcheck = lambda *_: None  # noqa: SLF001


def _option_stride() -> int:
    """Find out how far apart option descriptions are, by looking for the second option of a well-known match.

    Nothing is read as an address before it is known to lie among the same library's strings.
    """
    match = xtables(NFPROTO_IPV4).find_match("addrtype")
    if not match:
        raise LibraryError("the match addrtype cannot be loaded")
    start = ctypes.cast(match[0].x6_options, ctypes.c_void_p).value or 0
    first = ctypes.c_size_t.from_address(start).value
    known = ctypes.sizeof(xt_option_entry)
    for stride in range(known, 2 * known, ctypes.sizeof(ctypes.c_void_p)):
        second = ctypes.c_size_t.from_address(start + stride).value
        if abs(second - first) < _NEAR and ctypes.string_at(second) == b"dst-type":
            return stride
    raise LibraryError("the options of iptables' extensions are described in a form that python-iptables cannot read")
