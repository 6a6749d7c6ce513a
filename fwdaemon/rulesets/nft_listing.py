"""Rules of nftables from JSON to statements. Pure; the schema is libnftables-json(5)."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Final

from fwdaemon.core.types import Address, Family
from fwdaemon.nftables.model import TABLE_NAME, every_item
from fwdaemon.rulesets.nft_values import Json, Sets, contains, pairs_of, passes, value_of
from fwdaemon.rulesets.packet import (
    BaseChain,
    Change,
    Choice,
    End,
    Jump,
    Match,
    Packet,
    Return,
    Rule,
    RuleLocation,
    State,
    Statement,
    Surroundings,
    System,
    Translate,
    Tristate,
    Verdict,
)

_UNKNOWN: Final = Match(lambda _packet, _surroundings: Tristate.UNKNOWN)
_NOWHERE: Final = Surroundings({})

# Whatever is neither here nor read below may match or not, and what it does is unknown.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "counter",
        "log",
        "comment",
        "last",
        "secmark",
        "flow",
        "dup",
        "ct helper",
        "ct timeout",
        "ct expectation",
    }
)
_DOUBTFUL: Final = frozenset({"limit", "quota", "ct count", "meter"})
# Targets of iptables-nft, where its own listing is not available.
_XT_WITHOUT_EFFECT: Final = frozenset({"LOG", "NFLOG", "CHECKSUM", "TCPMSS", "TRACE", "AUDIT", "CT"})


def statements_of(expressions: Sequence[Json], sets: Sets) -> tuple[Statement, ...]:
    """Read the statements of a rule; what follows the first verdict can never be reached, and is left out."""
    found: list[Statement] = []
    for expression in expressions:
        for statement in _read(expression, sets):
            found.append(statement)
            if not isinstance(statement, Match | Change):
                return tuple(found)
    return tuple(found)


def _read(expression: Json, sets: Sets) -> Iterator[Statement]:
    """Read one statement of a rule; most give one of ours, some none."""
    if not isinstance(expression, dict) or len(expression) != 1:
        yield from (_UNKNOWN, Verdict(End.UNCLEAR))
        return
    ((kind, body),) = expression.items()
    if kind in _WITHOUT_EFFECT:
        return
    if kind in _DOUBTFUL:
        yield _UNKNOWN
        return
    reader = _READERS.get(kind)
    yield from reader(body, sets) if reader else (_UNKNOWN, Verdict(End.UNCLEAR))


def _match(body: Json, sets: Sets) -> Iterator[Statement]:
    def test(packet: Packet, surroundings: Surroundings) -> Tristate:
        return passes(body, sets, packet, surroundings)

    yield Match(test)


def _verdict_map(body: Json, sets: Sets) -> Iterator[Statement]:
    key, elements = body["key"], pairs_of(body["data"], sets)

    def choose(packet: Packet, surroundings: Surroundings) -> Iterator[tuple[Tristate, Statement]]:
        value = value_of(key, packet, surroundings)
        for element, verdict in elements:
            tristate = contains(element, value, sets, surroundings)
            if tristate is not Tristate.NO:
                yield tristate, next(iter(statements_of([verdict], sets)), Change(_unchanged))

    yield Choice(choose)


def _mangle(body: Json, sets: Sets) -> Iterator[Statement]:
    """Follow what a rule writes to the two marks and the label; all else it may write is not looked at by us."""
    del sets
    match body:
        case {"key": {"meta": {"key": "mark"}}, "value": value}:
            yield Change(lambda packet: replace(packet, mark=_number(value, packet)))
        case {"key": {"ct": {"key": "mark"}}, "value": value}:
            yield Change(lambda packet: _with_connmark(packet, _number(value, packet)))
        case {"key": {"ct": {"key": "label"}}, "value": int() | str() as label}:
            yield Change(lambda packet: packet.labelled(str(label)))


def _with_connmark(packet: Packet, mark: int | None) -> Packet:
    return replace(packet, connmark=mark) if packet.tracked else packet


def _number(value: Json, packet: Packet) -> int | None:
    found = value_of(value, packet, _NOWHERE)
    return found if isinstance(found, int) else None


def _notrack(body: Json, sets: Sets) -> Iterator[Statement]:
    del body, sets
    yield Change(lambda packet: replace(packet, state=State.UNTRACKED) if packet.state is State.UNSEEN else packet)


def _set_update(body: Json, sets: Sets) -> Iterator[Statement]:
    """Take note of a set that rules fill; with a limit in it, it is a test whose outcome is unknown."""
    del sets
    if isinstance(body, dict) and body.get("stmt"):
        yield _UNKNOWN


def _dnat(body: Json, sets: Sets) -> Iterator[Statement]:
    def translate(packet: Packet, location: RuleLocation) -> Packet:
        address, port = _looked_up(body.get("addr"), packet, sets), body.get("port")
        match address:
            # A map from a key to address and port.
            case {"concat": [address, port]}:
                pass
        destination = packet.destination if "addr" not in body else _address(address)
        number = packet.port if port is None else _port(_looked_up(port, packet, sets))
        return packet.sent_to(destination, number, location)

    yield Translate(translate)


def _redirect(body: Json, sets: Sets) -> Iterator[Statement]:
    """Follow a redirection: to the host itself, at whatever address of its own."""
    port = body.get("port") if isinstance(body, dict) else None

    def translate(packet: Packet, location: RuleLocation) -> Packet:
        number = packet.port if port is None else _port(_looked_up(port, packet, sets))
        local = ip_address("127.0.0.1" if packet.family is Family.IPV4 else "::1")
        return packet.sent_to(local, number, location)

    yield Translate(translate)


def _looked_up(value: Json, packet: Packet, sets: Sets) -> Json:
    """Look a value up where it is a map; `None` where it is unknown."""
    if not isinstance(value, dict) or "map" not in value:
        return value
    key = value_of(value["map"]["key"], packet, _NOWHERE)
    for element, result in pairs_of(value["map"]["data"], sets):
        tristate = contains(element, key, sets, _NOWHERE)
        if tristate is not Tristate.NO:
            return result if tristate is Tristate.YES else None
    return None


def _address(value: Json) -> Address | None:
    try:
        return ip_address(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _port(value: Json) -> int | None:
    return value if isinstance(value, int) else None


def _xt(body: Json, sets: Sets) -> Iterator[Statement]:
    """Read a match or target of iptables-nft as far as nft names it, which its older versions do."""
    del sets
    name = body.get("name") if isinstance(body, dict) else None
    match body:
        case {"type": "target", "name": "REJECT"}:
            yield Verdict(End.REFUSE)
        case {"type": "target"} if name in _XT_WITHOUT_EFFECT:
            return
        case {"type": "match", "name": "comment"}:
            return
        case {"type": "match"}:
            yield _UNKNOWN
        case _:
            yield from (_UNKNOWN, Verdict(End.UNCLEAR))


def _ending(end: End, body: Json, sets: Sets) -> Iterator[Statement]:
    del body, sets
    yield Verdict(end)


def _rename(body: Json, sets: Sets) -> Iterator[Statement]:
    """Follow a translation of the source; under which address it goes on is of no interest here."""
    del body, sets
    yield from (Change(lambda packet: replace(packet, renamed=True)), Verdict(End.ACCEPT))


def _leaving(body: Json, sets: Sets, *, goto: bool) -> Iterator[Statement]:
    del sets
    yield Jump(str(body.get("target")), goto)


def _returning(body: Json, sets: Sets) -> Iterator[Statement]:
    del body, sets
    yield Return()


def _nothing(body: Json, sets: Sets) -> Iterator[Statement]:
    del body, sets
    return iter(())


def _unchanged(packet: Packet) -> Packet:
    return packet


_READERS: Mapping[str, Callable[[Json, Sets], Iterator[Statement]]] = {
    "match": _match,
    "vmap": _verdict_map,
    "mangle": _mangle,
    "notrack": _notrack,
    "set": _set_update,
    "map": _set_update,
    "dnat": _dnat,
    "redirect": _redirect,
    "xt": _xt,
    "accept": partial(_ending, End.ACCEPT),
    "snat": _rename,
    "masquerade": _rename,
    "drop": partial(_ending, End.REFUSE),
    "reject": partial(_ending, End.REFUSE),
    "queue": partial(_ending, End.UNCLEAR),
    "tproxy": partial(_ending, End.UNCLEAR),
    "synproxy": partial(_ending, End.UNCLEAR),
    "jump": partial(_leaving, goto=False),
    "goto": partial(_leaving, goto=True),
    "return": _returning,
    "continue": _nothing,
}


# Every base chain of nftables, from the listings of `nft`. Pure; the schema is libnftables-json(5).
_TABLE_LINE = re.compile(r"table (\w+) (\S+) \{")
_RULE_LINE = re.compile(r"\t\t(.*) # handle (\d+)")

TableName = tuple[str, str]
"""A family and a table of it."""
Texts = Mapping[tuple[str, str, int], str]
"""The text of each rule, by family, table and handle."""


def rule_texts(listing: str) -> Texts:
    """Read the texts of rules in `nft -a list ruleset`, with or without `-t`."""
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
        said = [each for each in item["expr"] if name[1] != TABLE_NAME or not _is_of_time(each)]
        chains[name][item["chain"]].append(Rule(_location(item, texts), statements_of(said, sets[name])))
    finished = {name: {chain: tuple(rules) for chain, rules in found.items()} for name, found in chains.items()}
    owned = {(item["family"], item["name"]) for item in objects["table"] if "owner" in item.get("flags", ())}
    return [
        replace(_base_chain(item, finished.get(name, {})), owned=name in owned)
        for item in objects["chain"]
        if "hook" in item and (name := (item["family"], item["table"]))
    ]


def _is_of_time(expression: Json) -> bool:
    """Whether a match looks at the clock; a rule of ours that does is in force as long as it is there."""
    match expression:
        case {"match": {"left": {"meta": {"key": "time"}}}}:
            return True
    return False


def _by_kind(listing: str) -> Mapping[str, list[Json]]:
    """Part a listing into tables, chains, rules and so on; it may be large, so it is read only once."""
    found: defaultdict[str, list[Json]] = defaultdict(list)
    for kind, item in every_item(listing):
        found[kind].append(item)
    return found


def _location(rule: Mapping[str, Json], texts: Texts) -> RuleLocation:
    text = texts.get((rule["family"], rule["table"], rule["handle"]), "")
    return RuleLocation(System.NFTABLES, rule["family"], rule["table"], rule["chain"], rule["handle"], text)


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
