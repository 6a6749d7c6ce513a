"""Every base chain of nftables, from the listings of `nft`. Pure; the schema is libnftables-json(5)."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping

from fwdaemon.errors import KernelError
from fwdaemon.explain.nft_rules import statements_of
from fwdaemon.explain.nft_values import Json
from fwdaemon.explain.packet import Place, System
from fwdaemon.explain.rules import BaseChain, Rule

_TABLE_LINE = re.compile(r"table (\w+) (\S+) \{")
_RULE_LINE = re.compile(r"\t\t(.*) # handle (\d+)")

TableName = tuple[str, str]
"""A family and a table of it."""
Texts = Mapping[tuple[str, str, int], str]
"""The text of each rule, by family, table and handle."""


def rule_texts(listing: str) -> Texts:
    """Read the texts of rules in `nft -a list ruleset`."""
    found: dict[tuple[str, str, int], str] = {}
    family = table = ""
    for line in listing.splitlines():
        if (head := _TABLE_LINE.match(line)) is not None:
            family, table = head[1], head[2]
        elif (rule := _RULE_LINE.fullmatch(line)) is not None:
            found[family, table, int(rule[2])] = rule[1]
    return found


def base_chains(listing: str, texts: Texts) -> list[BaseChain]:
    """Read all base chains in `nft -j list ruleset` or `list table`, with the rules they lead to.

    Raises:
        KernelError: the listing is not what libnftables-json(5) describes.

    """
    objects = _by_kind(listing)
    sets: defaultdict[TableName, dict[str, list[Json]]] = defaultdict(dict)
    for item in (*objects["set"], *objects["map"]):
        sets[item["family"], item["table"]][item["name"]] = item.get("elem", [])
    chains: defaultdict[TableName, defaultdict[str, list[Rule]]] = defaultdict(lambda: defaultdict(list))
    for item in objects["rule"]:
        name = item["family"], item["table"]
        chains[name][item["chain"]].append(Rule(_place(item, texts), statements_of(item["expr"], sets[name])))
    finished = {name: {chain: tuple(rules) for chain, rules in found.items()} for name, found in chains.items()}
    return [
        _base_chain(item, finished.get((item["family"], item["table"]), {}))
        for item in objects["chain"]
        if "hook" in item
    ]


def _by_kind(listing: str) -> Mapping[str, list[Json]]:
    """Part a listing into tables, chains, rules and so on; it may be large, so it is read only once."""
    found: defaultdict[str, list[Json]] = defaultdict(list)
    try:
        for item in json.loads(listing)["nftables"]:
            for kind, body in item.items():
                found[kind].append(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelError(f"nft printed a listing that cannot be read ({error})") from error
    return found


def _place(rule: Mapping[str, Json], texts: Texts) -> Place:
    text = texts.get((rule["family"], rule["table"], rule["handle"]), "")
    return Place(System.NFTABLES, rule["family"], rule["table"], rule["chain"], rule["handle"], text)


def _base_chain(chain: Mapping[str, Json], chains: Mapping[str, tuple[Rule, ...]]) -> BaseChain:
    devices = chain.get("dev", ())
    return BaseChain(
        System.NFTABLES,
        chain["family"],
        chain["table"],
        chain["name"],
        chain["type"],
        chain["hook"],
        chain["prio"],
        chain.get("policy", "accept") == "accept",
        chains,
        frozenset([devices] if isinstance(devices, str) else devices),
    )
