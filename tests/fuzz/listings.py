"""Rules of other tools, as `nft` and `iptables-save` print them, with other names, numbers and addresses in them.

Both programs always print whole words of their own language, so what is changed are the words that a user chose:
names, comments, prefixes, numbers, addresses, and which rules there are.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from fwdaemon.core.bans import BEHIND
from fwdaemon.core.text import rule_lines
from fwdaemon.core.types import Family, Gate, Protocol
from fwdaemon.errors import KernelError
from fwdaemon.nftables.gates import GateState, read_iptables, read_native
from fwdaemon.nftables.model import items, read_table
from fwdaemon.rulesets import nat_chains, nft_listing, xt_listing
from fwdaemon.rulesets.evaluation import pass_through
from fwdaemon.rulesets.nat_chains import translations
from fwdaemon.rulesets.packet import BaseChain, Packet, Surroundings, System
from tests.fuzz.choices import Choices

_HERE = Path(__file__).parent / "listings"
_RULESET = (_HERE / "ruleset.json").read_text(encoding="utf-8")
_NAT = (_HERE / "nat.json").read_text(encoding="utf-8")
_TEXT = (_HERE / "ruleset.txt").read_text(encoding="utf-8")
_SAVE = (_HERE / "save.txt").read_text(encoding="utf-8")
_SPELLED = frozenset({25})

_SOURCE, _DESTINATION = ip_address("192.0.2.1"), ip_address("198.51.100.7")
_AROUND = Surroundings({_DESTINATION: frozenset({"eth0"})}, way_back="eth0")
_PACKETS = tuple(
    Packet(Family.IPV4, protocol, _SOURCE, _DESTINATION, port, (_DESTINATION, port), came_in="eth0", goes_out="virbr1")
    for protocol, port in ((Protocol.TCP, 80), (Protocol.UDP, 53), (Protocol.SCTP, 8080))
)
_ADDRESSES = ("192.0.2.1", "255.255.255.255", "0.0.0.0", "10.0.0.1")  # noqa: S104  addresses in rules, not to bind to
_NUMBERS = (0, 1, 2, 31, 32, 80, 255, 65535, 0xFFFFFFFF)
# Words that are nft's own; and where a rule leads to, since the kernel takes no rule that leads back.
_KEPT = frozenset({"op", "family", "type", "hook", "policy", "target", "chain", "key", "protocol", "field", "flags"})
# Numbers and addresses in these have to fit each other, and in what nft prints they do.
_TOGETHER = frozenset({"prefix", "range"})


def native(data: bytes) -> None:
    """Read listings of nftables as all readers do, and follow packets through what was read."""
    choices = Choices(data)
    nat, ruleset = _changed(json.loads(_NAT), choices), _changed(json.loads(_RULESET), choices)
    table = ("ip", "nat")
    sets = {item["name"]: item.get("elem", []) for kind in ("set", "map") for item in items(nat, kind)}
    assert {name for _, name in nat_chains.read_sets(nat, table)} <= sets.keys()
    nat_chains.read_elements(nat)
    list(translations(nat_chains.read_nft(nat, table, sets), "prerouting", -100))
    _follow(nft_listing.base_chains(ruleset, nft_listing.rule_texts(_TEXT)))
    read_native(Gate("inet", "fw", "forward"), ruleset, _SPELLED, BEHIND)


def own_table(data: bytes) -> None:
    """Read our own table, to which root may have added anything."""
    read_table(Family.IPV4, _changed(json.loads(_NAT), Choices(data)))


def no_listing(data: bytes) -> None:
    """Read what is no listing of `nft` at all."""
    text = data.decode("utf-8", "backslashreplace")
    with suppress(KernelError):
        list(items(text, "rule"))
    nft_listing.rule_texts(text)


def _changed(listing: Any, choices: Choices) -> str:
    """Change some leaves of a listing, and leave some of its rules out."""
    leaves = list(_leaves(listing))
    for _ in range(choices.number(8)):
        parent, key = choices.one_of(leaves)
        parent[key] = _other(parent[key], choices)
    everything = listing["nftables"]
    for _ in range(choices.number(4)):
        place = choices.number(len(everything))
        if "rule" in everything[place]:
            del everything[place]
    return json.dumps(listing)


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Give where each text and number stands that is a user's own word."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        if key in _TOGETHER:
            continue
        if isinstance(item, dict | list):
            yield from _leaves(item)
        elif item is not None and key not in _KEPT and not isinstance(item, bool):
            yield value, key


def _other(item: str | float, choices: Choices) -> str | float:
    if not isinstance(item, str):
        return choices.one_of(_NUMBERS)
    try:
        ip_address(item)
    except ValueError:
        return f"@{choices.text()}" if item.startswith("@") else choices.text()
    return choices.one_of(_ADDRESSES)


def written_by_iptables(data: bytes) -> None:
    """Read `iptables-save` with any comment and interface, as all readers do."""
    choices = Choices(data)
    quoted = choices.text().replace("\\", "\\\\").replace('"', '\\"').replace("'", "\\'").replace("\0", "")
    save = _SAVE.replace("kvm-portfwd", f'"{quoted} "').replace('"a b "', f'"{quoted[:29]} "')
    # A line break in a comment ends no rule.
    lines = list(rule_lines(save))
    for _ in range(choices.number(4)):
        place = choices.number(len(lines))
        if lines[place].startswith("-A "):
            del lines[place]
    save = "\n".join(lines)
    for family in Family:
        chains = nat_chains.read_iptables(save, System.LEGACY, family)
        list(translations(chains, nat_chains.PREROUTING, -100))
    _follow(xt_listing.base_chains(save, System.LEGACY, Family.IPV4))
    # Only a comment that is ours to the letter makes a rule ours, and after each of these there is a blank.
    assert not gate_in(save).ours


def gate_in(save: str = _SAVE) -> GateState:
    """Read the gate in `iptables-save`; that of the unchanged text is ours."""
    return read_iptables(Gate("ip", "filter", "FORWARD"), save, _SPELLED, BEHIND)


def _follow(chains: list[BaseChain]) -> None:
    for chain in chains:
        pass_through(chain, _PACKETS, _AROUND)


READERS: dict[str, Callable[[bytes], None]] = {
    "nft-listing": native,
    "nft-own-table": own_table,
    "nft-nonsense": no_listing,
    "iptables-save": written_by_iptables,
}
