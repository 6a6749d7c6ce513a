"""Faults of our tables in nftables: rules and elements that go, come twice, or are somewhere else."""

import json
from collections.abc import Mapping
from random import Random
from typing import Any

from tests.chaos.commands import FAMILIES, Command, Commands, Make, always
from tests.chaos.listing import NFT, Listing

Item = dict[str, Any]

_DELETE_GATE = (
    f'handle=$({NFT} -a list chain "$1" libvirt_network forward | sed -n \'s/.*"kvm-portfwd" # handle //p\');'
    f' {NFT} delete rule "$1" libvirt_network forward handle $handle'
)


def nft(*lines: str) -> Make:
    """Commit these lines at once."""
    return always(Command((NFT, "-f", "-"), "\n".join([*lines, ""])))


def _commit(*commands: Item) -> Command:
    return Command((NFT, "-j", "-f", "-"), json.dumps({"nftables": list(commands)}))


def _items(listing: Listing, family: str, kind: str) -> list[Item]:
    text = listing[f"own-{family}"]
    return [item[kind] for item in json.loads(text)["nftables"] if kind in item] if text else []


def _drawn_rule(random: Random, listing: Listing) -> tuple[Item, Item] | None:
    """Draw a rule: how to refer to it, and what to add it again with."""
    rules = [rule for family in FAMILIES for rule in _items(listing, family, "rule")]
    if not rules:
        return None
    rule = random.choice(rules)
    reference = {name: rule[name] for name in ("family", "table", "chain", "handle")}
    return reference, {name: value for name, value in rule.items() if name != "handle"}


def delete_rule(random: Random, listing: Listing) -> Commands:
    """Take one rule away."""
    drawn = _drawn_rule(random, listing)
    return [_commit({"delete": {"rule": drawn[0]}})] if drawn else []


def double_rule(random: Random, listing: Listing) -> Commands:
    """Put one rule at the end of its chain as well."""
    drawn = _drawn_rule(random, listing)
    return [_commit({"add": {"rule": drawn[1]}})] if drawn else []


def move_rule(random: Random, listing: Listing) -> Commands:
    """Put one rule at the end of its chain instead."""
    drawn = _drawn_rule(random, listing)
    return [_commit({"delete": {"rule": drawn[0]}}, {"add": {"rule": drawn[1]}})] if drawn else []


def unlabel_rule(random: Random, listing: Listing) -> Commands:
    """Have one rule translate without setting the label; who replaces a rule by hand writes none of our comments."""
    rules = [rule for family in FAMILIES for rule in _items(listing, family, "rule") if any(map(_labels, rule["expr"]))]
    if not rules:
        return []
    rule = random.choice(rules)
    kept = {name: value for name, value in rule.items() if name != "comment"}
    return [_commit({"replace": {"rule": {**kept, "expr": [part for part in rule["expr"] if not _labels(part)]}}})]


def _labels(part: Item) -> bool:
    return "mangle" in part and part["mangle"]["key"] == {"ct": {"key": "label"}}


def _drawn_elements(random: Random, listing: Listing, count: int) -> tuple[Item, list[Any]] | None:
    """Draw elements of one map that leads to dispatch chains."""
    maps = [
        item for family in FAMILIES for item in _items(listing, family, "map") if len(item.get("elem", ())) >= count
    ]
    if not maps:
        return None
    drawn = random.choice(maps)
    return {name: drawn[name] for name in ("family", "table", "name")}, random.sample(drawn["elem"], count)


def _elements(where: Mapping[str, Any], elements: list[Any]) -> Item:
    return {"element": {**where, "elem": elements}}


def delete_element(random: Random, listing: Listing) -> Commands:
    """Take one element out of a map."""
    drawn = _drawn_elements(random, listing, 1)
    return [_commit({"delete": _elements(*drawn)})] if drawn else []


def swap_elements(random: Random, listing: Listing) -> Commands:
    """Let two elements of a map lead to each other's dispatch chains."""
    drawn = _drawn_elements(random, listing, 2)
    if drawn is None:
        return []
    where, ((one, leads), (other, elsewhere)) = drawn
    swapped = _elements(where, [[one, elsewhere], [other, leads]])
    return [_commit({"delete": _elements(*drawn)}, {"add": swapped})]


def delete_native_gate(random: Random, listing: Listing) -> Commands:
    """Take our rule out of libvirt's own chain."""
    families = [family for family in FAMILIES if "kvm-portfwd" in listing[f"libvirt-{family}"]]
    return [Command(("sh", "-c", _DELETE_GATE, "sh", random.choice(families)))] if families else []
