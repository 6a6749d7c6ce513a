"""Our tables in nftables, read back from nft's JSON: the exposures they hold, and anything else in them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, summarize_address_range
from typing import Any

from tests.chaos.admission import DENYING
from tests.chaos.truth import ANY, Exposure, collapsed

Item = dict[str, Any]
# Chains of forwards that are one port for anyone, and the maps in which they find its target.
_PLAIN = {f"{name}_plain": f"{name}_targets" for name in ("one_address", "every_address")}
# What drops who is denied everything; each translation has a rule that leads there ahead of it.
_DENY = frozenset(f"deny.{name}" for name in DENYING)
# The chains that are there whatever is open; all others are dispatch chains that a map leads to.
_FRAME = _DENY.union(("forwards", "prerouting", "output", "postrouting", "forward"), _PLAIN)
# Each translation comes behind what denies, for each set, and limits.
_GUARDED = re.compile(rf"(?:D{{{len(_DENY)}}}L*T)+")
_COUNTED = re.compile(r'"counter": \{[^}]*\}')
# What a 1:1 guest sends: dispatch chains for each guest, and how they begin.
_OF_GUEST = ("from.", "as.")
# Where packets of guests come in: a dispatch chain for each subnet that has no exposure.
_OF_SUBNET = "home."


@dataclass(frozen=True, slots=True)
class NftTable:
    """One family's table. `frame` is all of it that does not depend on what is open, as text.

    `sets` is who is in those that deny.
    """

    exposures: frozenset[Exposure]
    subnets: frozenset[str]
    uplinks: frozenset[str]
    guests: int
    frame: str
    oddities: tuple[str, ...]
    sets: Mapping[str, frozenset[str]]


def read_table(version: int, listing: str) -> NftTable | None:
    """Read `nft -j list table`; `None` where there is no such table."""
    if not listing:
        return None
    items: list[Item] = json.loads(listing)["nftables"]
    rules = [item["rule"] for item in items if "rule" in item]
    chains = {item["chain"]["name"] for item in items if "chain" in item} - _FRAME
    maps = {item["map"]["name"]: item["map"].get("elem", []) for item in items if "map" in item}
    targets = {chain: _by_key(maps.pop(name, [])) for chain, name in _PLAIN.items()}
    elements = [(key, verdict["jump"]["target"]) for found in maps.values() for key, verdict in found]
    oddities = [f"chain {name} that no map leads to" for name in sorted(chains - {chain for _, chain in elements})]
    exposures: set[Exposure] = set()
    for key, chain in elements:
        dispatch_chain = [rule for rule in rules if rule["chain"] == chain]
        if chain.startswith(_OF_SUBNET):
            # One for the subnet, and some for each part of it that is elsewhere.
            distinct = {rule.get("comment") for rule in dispatch_chain}
            oddities += [f"{chain}: {len(dispatch_chain)} rules"] * (
                not dispatch_chain or len(distinct) != len(dispatch_chain)
            )
            continue
        if chain in _PLAIN:
            found = _plain_exposure(version, key, targets[chain].pop(str(key), None))
            oddities += [f"{key} has no target"] * (not found)
        else:
            limits = "".join(filter(None, map(_limit, dispatch_chain)))
            kinds = "".join("D" if _leads_to_deny(rule) else "L" if _limit(rule) else "T" for rule in dispatch_chain)
            dispatch_chain = [rule for rule, kind in zip(dispatch_chain, kinds, strict=True) if kind == "T"]
            found = _exposures(version, key, dispatch_chain, limits)
            is_guarded = chain.startswith(_OF_GUEST) or _GUARDED.fullmatch(kinds)
            oddities += [f"{key}: the order of rules that deny, limit and translate is {kinds}"] * (not is_guarded)
            wanted = len(dispatch_chain) // 2 if chain.startswith("from.") else len(dispatch_chain)
            oddities += [f"{key}: {len(dispatch_chain)} rules, {len(found)} translations"] * (len(found) != wanted)
        exposures |= found
    oddities += [f"{key} has a target, and nothing leads there" for found in targets.values() for key in found]
    ours = frozenset(exposure for exposure in exposures if exposure.target)
    return NftTable(
        ours,
        _subnets(items),
        frozenset(_elements(items, "uplinks")),
        len(exposures) - len(ours),
        _frame(items),
        tuple(oddities),
        {name: frozenset(map(str, _elements(items, f"set_{name}"))) for name in DENYING},
    )


def _leads_to_deny(rule: Item) -> bool:
    return any(part["jump"]["target"] in _DENY for part in rule["expr"] if "jump" in part)


def _limit(rule: Item) -> str:
    """Read a rule that drops who is over a limit, as the configuration says that; empty for any other rule."""
    for part in rule["expr"]:
        match part:
            case {
                "set": {
                    "op": "update",
                    "stmt": [{"limit": {"rate": rate, "burst": burst, "per": unit, "inv": True}}, *_],
                }
            }:
                return f'rate = "{rate}/{unit}"' if rate == burst else f"burst of {burst}"
            case {"set": {"op": "add", "stmt": [{"ct count": {"val": most, "inv": True}}, *_]}}:
                return f"max_open = {most}"
    return ""


def _by_key(elements: list[Any]) -> dict[str, Any]:
    """Read a map of targets; its keys are `{"elem": {"val": key, …}}`, as its elements count."""
    return {str(key["elem"]["val"]): target["concat"] for key, target in elements}


def _plain_exposure(version: int, key: Any, target: Any) -> set[Exposure]:
    if target is None:
        return set()
    listen, protocol, port = _listened(key)
    return {Exposure(version, protocol, listen, port, 1, ANY, *target)}


def _exposures(version: int, key: Any, dispatch_chain: list[Item], limits: str) -> set[Exposure]:
    """Read the rules of a dispatch chain; what only labels or changes the source has no target."""
    if dispatch_chain and dispatch_chain[0]["chain"].startswith(_OF_GUEST):
        return {Exposure(version, "", rule["chain"], 0, 0, ANY, "", 0) for rule in dispatch_chain[:1]}
    found = (_exposure(version, key, rule, limits) for rule in dispatch_chain)
    return {exposure for exposure in found if exposure is not None}


def _exposure(version: int, key: Any, rule: Item, limits: str) -> Exposure | None:
    dnat = next((part["dnat"] for part in rule["expr"] if "dnat" in part), None)
    if dnat is None or not any("mangle" in part for part in rule["expr"]):
        return None
    listen, protocol, ports = _listened(key)
    first, last = ports["range"] if isinstance(ports, dict) else (ports, ports)
    width = last - first + 1 if protocol else 0
    return Exposure(version, protocol, listen, first, width, _source(rule), dnat["addr"], _first_port(dnat), limits)


def _listened(key: Any) -> tuple[str, str, Any]:
    """Read a key of a verdict map: address, protocol and port or range of ports."""
    parts = key["concat"] if isinstance(key, dict) else [key, "", 0]
    listen, protocol, ports = parts if len(parts) == 3 else (ANY, *parts)
    return listen, protocol, ports


def _first_port(dnat: Item) -> int:
    """Read the port, or the first one of a map from port to port."""
    port = dnat.get("port", 0)
    if isinstance(port, int):
        return port
    first: int = min(pair[1] for pair in port["map"]["data"]["set"])
    return first


def _source(rule: Item) -> str:
    for part in rule["expr"]:
        match part:
            case {"match": {"left": {"payload": {"field": "saddr"}}, "right": right}}:
                return _subnet(right["set"][0] if "set" in right else right)
    return ANY


def _subnet(value: Item) -> str:
    return f"{value['prefix']['addr']}/{value['prefix']['len']}"


def _subnets(items: list[Item]) -> frozenset[str]:
    """Read the subnets of guests; nft may show two that touch as one, or as a range."""
    return collapsed(subnet for element in _elements(items, "guest_subnets") for subnet in _spanned(element))


def _elements(items: list[Item], name: str) -> list[Any]:
    listed = [item["set"] for item in items if "set" in item and item["set"]["name"] == name]
    return [element for found in listed for element in found.get("elem", ())]


def _spanned(element: Item) -> list[str]:
    if "prefix" in element:
        return [_subnet(element)]
    first, last = map(ip_address, element["range"])
    return [str(subnet) for subnet in summarize_address_range(first, last)]


def _place(item: Item) -> tuple[str, str]:
    ((kind, body),) = item.items()
    return kind, str(body.get("chain", body.get("name")))


def _frame(items: list[Item]) -> str:
    """Everything but elements, dispatch chains and handles; of what was made in which order, only rules have one."""
    lines = []
    for item in sorted(items, key=_place):
        ((kind, body),) = item.items()
        if kind in {"map", "set"}:
            body = {name: value for name, value in body.items() if name != "elem"}
        elif kind == "metainfo" or (kind != "table" and body.get("chain", body.get("name")) not in _FRAME):
            continue
        kept = {name: value for name, value in body.items() if name != "handle"}
        lines.append(_COUNTED.sub('"counter": null', f"{kind} {json.dumps(kept, sort_keys=True)}"))
    return "\n".join(lines)
