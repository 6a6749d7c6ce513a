"""The tables `[daemon]`, `[control]`, `[metrics]` and `[fleet]`."""

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import StrEnum
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final, TypeVar

from fwdaemon.config.addresses import is_address, parse_served
from fwdaemon.config.model import (
    KEYS,
    BackendChoice,
    ControlSettings,
    DaemonSettings,
    MetricsSettings,
    OnStop,
)
from fwdaemon.config.names import parse_ban_chain, parse_gate, parse_interface, parse_uri
from fwdaemon.config.node import Node, among_several, read_distinct, read_key
from fwdaemon.config.ports import LAST_PORT, parse_host_ports
from fwdaemon.config.sets import read_asked
from fwdaemon.core.text import GrammarError, quote, show, suggest
from fwdaemon.core.types import Endpoint, FleetSettings, Gate, OnPartition, PortRange

# The `[control]` table.
_DEFAULTS: Final = ControlSettings()
CONTROL_KEYS: Final = KEYS["control"]


def read_control(node: Node) -> ControlSettings:
    """Read the `[control]` table; a value that is wrong is recorded and stands as its default."""
    group = read_key(node.fields(CONTROL_KEYS), "group", parse_group, _DEFAULTS.group)
    return _DEFAULTS if group is None else ControlSettings(group)


def parse_group(text: str) -> str:
    """Read the name of a group of users; whether there is one is no question of the grammar."""
    if not text:
        raise GrammarError('"" is empty', 'write the name of a group, or "root" for root only')
    if text.isdecimal():
        remedy = f'write the name that "getent group {text[:10]}" shows'
        raise GrammarError(f"{quote(text)} is the number of a group", remedy)
    if not text.isprintable() or re.search("[:,;]", text):
        raise GrammarError(f"{quote(text)} is no name of a group", 'write one that "getent group" shows')
    return text


# The `[metrics]` table.
METRICS_KEYS: Final = KEYS["metrics"]

_TEXTFILE: Final = "/var/lib/prometheus/node-exporter/kvm_portfwd.prom"
_LISTEN: Final = "127.0.0.1:9750"
_LISTEN_PORT: Final = 9750
_ENDPOINT: Final = re.compile(r"(?:\[([^][]*)\]|([^][:]*)):([1-9][0-9]{0,4})")


def read_metrics(node: Node) -> MetricsSettings:
    """Read the `[metrics]` table; a value that is wrong is recorded and stands as if it were left out."""
    fields = node.fields(METRICS_KEYS)
    return MetricsSettings(
        read_key(fields, "textfile", parse_textfile, _TEXTFILE),
        read_key(fields, "listen", parse_endpoint, _LISTEN),
        node.origin,
    )


def parse_textfile(text: str) -> Path:
    """Read the path of a file for the textfile collector, which takes `*.prom` only."""
    path, remedy = Path(text), f"write one such as {quote(_TEXTFILE)}"
    if not text.isprintable() or not path.is_absolute():
        raise GrammarError(f"{quote(text)} is no absolute path of plain characters", remedy)
    if path.suffix != ".prom":
        raise GrammarError(f"{quote(text)} does not end in .prom, so no node exporter would read it", remedy)
    return path


def parse_endpoint(text: str) -> Endpoint:
    """Read an address and a port, an IPv6 address in brackets."""
    if text.startswith("localhost:"):
        right = text.replace("localhost", "127.0.0.1", 1)
        raise GrammarError(f"{quote(text)} has a name where an address belongs", right=right)
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match[3]) > LAST_PORT or not is_address(match[1] or match[2] or ""):
        raise GrammarError(f"{quote(text)} is no address and port", right=_endpoint_meant(text))
    address = parse_served(match[1] or match[2] or "")
    if isinstance(address, IPv6Address) != (match[1] is not None):
        right = str(Endpoint(address, int(match[3])))
        raise GrammarError(f"{quote(text)} has brackets around IPv4, where only IPv6 has them", right=right)
    return Endpoint(address, int(match[3]))


def _endpoint_meant(text: str) -> str:
    """Give the address and port that a text names, one of this host alone where it names none."""
    bare = text.strip("[]")
    head, _, tail = bare.rpartition(":")
    if ":" in head and is_address(head) and tail.isdecimal() and 0 < int(tail) <= LAST_PORT:
        return f"[{head}]:{int(tail)}"
    if is_address(bare):
        return f"[{bare}]:{_LISTEN_PORT}" if ":" in bare else f"{bare}:{_LISTEN_PORT}"
    found = re.search(r"(?:^|:)([1-9][0-9]{0,4})(?=/|$)", text)
    port = int(found[1]) if found and int(found[1]) <= LAST_PORT else _LISTEN_PORT
    return f"127.0.0.1:{port}"


# The `[fleet]` table.
FLEET_KEYS: Final = KEYS["fleet"]
_MEMBER: Final = "https://192.0.2.11:2379"
_FLEET_PREFIX: Final = "/portfwd/v1"
_SECRET_AT: Final = "/etc/portfwd.etcd-password"  # noqa: S105 - the path of a file
_CA: Final = "/etc/ssl/etcd-ca.pem"
_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[1-9][0-9]{0,4})/?"
)
_LONGEST_PREFIX: Final = 200
_LOOPBACK_HOST: Final = re.compile(r"127(\.[0-9]{1,3}){3}|\[::1\]|localhost")


def read_fleet(node: Node) -> FleetSettings | None:
    """Read the `[fleet]` table; `None` where it does not say where etcd is, which is recorded."""
    fields = node.fields(FLEET_KEYS)
    if "etcd" not in fields:
        if isinstance(node.value, dict):
            node.refuse(f"does not say where etcd is; write etcd = [{quote(_MEMBER)}]")
        return None
    if fields["etcd"].value == []:
        fields["etcd"].refuse(f"is empty; write at least one URL, [{quote(_MEMBER)}]")
    if ("user" in fields) != ("password_file" in fields):
        written, missing = ("user", "password_file") if "user" in fields else ("password_file", "user")
        example = _SECRET_AT if missing == "password_file" else "portfwd"
        fields[written].refuse(f"goes with {missing}; write {missing} = {quote(example)} too, or remove this line")
    members = read_distinct(fields["etcd"].one_or_more(_MEMBER), among_several(parse_member_url, _MEMBER), _MEMBER)
    return FleetSettings(
        members,
        _read(fields, "prefix", parse_fleet_prefix, _FLEET_PREFIX, _FLEET_PREFIX),
        _read(fields, "on_partition", _choice_of(OnPartition), OnPartition.RELEASE, "release"),
        read_key(fields, "ca", partial(_parse_path, example=_CA), _CA),
        read_key(fields, "user", _parse_user, "portfwd"),
        read_key(fields, "password_file", partial(_parse_path, example=_SECRET_AT), _SECRET_AT),
        node.origin,
    )


def parse_member_url(text: str) -> str:
    """Read where a member of etcd answers clients: over TLS, unless it is on this host."""
    match = _URL.fullmatch(text)
    if match is None or int(match["port"]) > LAST_PORT:
        host = re.match(r"(?:https?://)?([A-Za-z0-9.-]+)(?::([1-9][0-9]{0,4}))?/?$", text)
        meant = f"https://{host[1]}:{host[2] or 2379}" if host and int(host[2] or 0) <= LAST_PORT else _MEMBER
        raise GrammarError(f"{quote(text)} is no URL of a member of etcd", right=meant)
    if match["scheme"] == "http" and not _LOOPBACK_HOST.fullmatch(match["host"]):
        right = quote(f"https://{match['host']}:{match['port']}")
        raise GrammarError(
            f"{quote(text)} would let anyone on the way open ports", f"have etcd use TLS, and write {right}"
        )
    return text.rstrip("/")


def parse_fleet_prefix(text: str) -> str:
    """Read what the names of all keys begin with."""
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", text) or len(text) > _LONGEST_PREFIX:
        parts = [part for part in re.split(r"[^A-Za-z0-9._-]+", text[:_LONGEST_PREFIX]) if part]
        meant = "".join(f"/{part}" for part in parts)
        meant = meant if meant and len(meant) <= _LONGEST_PREFIX else _FLEET_PREFIX
        raise GrammarError(f"{quote(text)} is no prefix of keys", right=meant)
    return text


def _parse_path(text: str, example: str) -> Path:
    if not text.isprintable() or not Path(text).is_absolute():
        raise GrammarError(
            f"{quote(text)} is no absolute path of plain characters", f"write one such as {quote(example)}"
        )
    return Path(text)


def _parse_user(text: str) -> str:
    if not text or not text.isprintable():
        raise GrammarError(f"{quote(text)} is no user of etcd", 'write one that "etcdctl user list" shows')
    return text


# The `[daemon]` table.
_OTHER_CHOICES: Final = {
    "nft": "nftables",
    "nf_tables": "nftables",
    "iptables-nft": "nftables",
    "legacy": "iptables",
    "iptables-legacy": "iptables",
    "xtables": "iptables",
    **dict.fromkeys(("clean", "cleanup", "clear", "delete", "flush", "purge"), "remove"),
    **dict.fromkeys(("leave", "preserve", "stay"), "keep"),
}
_SECTIONS_DEFAULTS: Final = DaemonSettings()
DAEMON_KEYS: Final = KEYS["daemon"]
_UNITS: Final = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
}
# What people and other programs write, in seconds.
_OTHER_UNITS: Final = {
    **dict.fromkeys(("", "s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
_SHORTEST_RESYNC: Final = timedelta(seconds=1)
_LONGEST_RESYNC: Final = timedelta(days=1)
_LAST_LABEL: Final = 127
_AUTO_PORTS: Final = "20000-29999"
# What 0.1.0 used instead of the label. The file that it installed has this value, which is ignored.
_MARK: Final = "mark"
_SHIPPED_MARK: Final = 0x02000000
_NO_MARK: Final = (
    f'"{_MARK}" is no longer used: connections of forwards carry a label, and marks are left to other programs;'
    f" delete this line (the label is {_SECTIONS_DEFAULTS.label} unless you write label = NUMBER)"
)

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


def read_daemon(node: Node) -> DaemonSettings:
    """Read the `[daemon]` table; a value that is wrong is recorded and stands as its default."""
    fields = node.fields(DAEMON_KEYS, former=[_MARK])
    if _MARK in fields and fields[_MARK].value != _SHIPPED_MARK:
        fields[_MARK].refuse_key(_NO_MARK)
    asked = read_asked(fields)
    return DaemonSettings(
        libvirt=_read_libvirt(fields["libvirt"]) if "libvirt" in fields else _SECTIONS_DEFAULTS.libvirt,
        backend=_read(fields, "backend", _choice_of(BackendChoice), _SECTIONS_DEFAULTS.backend, "auto"),
        resync=_read(fields, "resync", parse_resync, _SECTIONS_DEFAULTS.resync, "30s"),
        on_stop=_read(fields, "on_stop", _choice_of(OnStop), _SECTIONS_DEFAULTS.on_stop, "keep"),
        ip_forward=_read_flag(fields, "ip_forward", default=_SECTIONS_DEFAULTS.ip_forward),
        localhost=_read_flag(fields, "localhost", default=_SECTIONS_DEFAULTS.localhost),
        keep_guests_online=_read_flag(fields, "keep_guests_online", default=_SECTIONS_DEFAULTS.keep_guests_online),
        label=_read_label(fields["label"]) if "label" in fields else _SECTIONS_DEFAULTS.label,
        gates=_read_gates(fields["gates"]) if "gates" in fields else _SECTIONS_DEFAULTS.gates,
        uplinks=_read_uplinks(fields["uplinks"]) if "uplinks" in fields else _SECTIONS_DEFAULTS.uplinks,
        behind=_read_behind(fields["behind"]) if "behind" in fields else _SECTIONS_DEFAULTS.behind,
        auto_ports=_read_auto_ports(fields["auto_ports"]) if "auto_ports" in fields else None,
        barred=asked.admission,
        named=asked.named,
    )


def parse_resync(text: str) -> timedelta:
    """Read a duration of 1 second to 24 hours: `30s`, `5m`, `1500ms`, `1h`."""
    match = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h)", text)
    if match is None:
        if right := _duration_meant(text):
            raise GrammarError(f"{quote(text)} is not a duration here", right=right)
        raise GrammarError(f"{quote(text)} is not a duration", 'write a whole number and ms, s, m or h, as in "30s"')
    duration = int(match[1]) * _UNITS[match[2]]
    if not _SHORTEST_RESYNC <= duration <= _LONGEST_RESYNC:
        raise GrammarError(f"{quote(text)} is out of range", 'write a duration from "1s" to "24h"')
    return duration


def _duration_meant(text: str) -> str | None:
    """Give what a duration in other words means; without a unit that is seconds, and never is as rarely as may be."""
    plain = re.sub(r"[\s,]|and", "", text.lower())
    if plain in {"0", "0s", "never", "off", "no", "none", "false"}:
        return "24h"
    parts = re.findall(r"([0-9]{1,6})([a-z]*)", plain)
    if not parts or "".join(map("".join, parts)) != plain:
        return None
    units = [unit for _, unit in parts]
    if not all(unit in _OTHER_UNITS for unit in units):
        return None
    duration = sum((int(number) * _UNITS["s"] * _OTHER_UNITS[unit] for number, unit in parts), timedelta())
    return _written(duration) if _SHORTEST_RESYNC <= duration <= _LONGEST_RESYNC else None


def _written(duration: timedelta) -> str:
    unit = next(unit for unit in ("h", "m", "s") if not duration % _UNITS[unit])
    return f"{duration // _UNITS[unit]}{unit}"


def _read(fields: Mapping[str, Node], key: str, parse: Callable[[str], T], default: T, example: str) -> T:
    value = fields[key].text(parse, example) if key in fields else None
    return default if value is None else value


def _read_flag(fields: Mapping[str, Node], key: str, *, default: bool) -> bool:
    return fields[key].flag(default=default) if key in fields else default


def _choice_of(choices: type[E]) -> Callable[[str], E]:
    def parse(text: str) -> E:
        try:
            return choices(text)
        except ValueError:
            what, meant = f"{quote(text)} is not one of its values", _OTHER_CHOICES.get(text.lower())
            if meant in set(choices):
                raise GrammarError(what, right=meant) from None
            raise GrammarError(what, suggest(text, choices)) from None

    return parse


_URI: Final = "qemu:///system"
_GATE: Final = "inet filter forward"


def _read_libvirt(node: Node) -> tuple[str, ...]:
    if node.value == []:
        node.refuse('is empty; write at least one URI, ["qemu:///system"]')
    array = " in an array" if isinstance(node.value, str) else ""
    return read_distinct(node.one_or_more(_URI), among_several(parse_uri, _URI, array), _URI)


def _read_gates(node: Node) -> tuple[Gate, ...]:
    return read_distinct(node.elements(_GATE), among_several(parse_gate, _GATE), _GATE)


def _read_uplinks(node: Node) -> frozenset[str]:
    return frozenset(read_distinct(node.elements("eth0"), among_several(parse_interface, "eth0"), "eth0"))


def _read_behind(node: Node) -> tuple[str, ...]:
    return read_distinct(node.elements("f2b-*"), among_several(parse_ban_chain, "f2b-*"), "f2b-*")


def _read_auto_ports(node: Node) -> PortRange:
    """Read it; one that is wrong stands as the example, so that entries are not refused for want of it."""
    return node.text(parse_host_ports, _AUTO_PORTS) or parse_host_ports(_AUTO_PORTS)


def _read_label(node: Node) -> int:
    """Read the number of a connection label."""
    label = node.value
    remedy = f"write a number from 0 to {_LAST_LABEL} such as {_SECTIONS_DEFAULTS.label}, without quotes"
    if (
        isinstance(label, str)
        and label.isdecimal()
        and len(label) <= len(str(_LAST_LABEL))
        and int(label) <= _LAST_LABEL
    ):
        remedy = f"write {int(label)} without quotes"
    if isinstance(label, bool) or not isinstance(label, int):
        node.refuse(f"must be an integer, not {show(label)}; {remedy}")
    elif not 0 <= label <= _LAST_LABEL:
        node.refuse(f"must be one of the {_LAST_LABEL + 1} labels of a connection, not {show(label)}; {remedy}")
    else:
        return label
    return _SECTIONS_DEFAULTS.label
