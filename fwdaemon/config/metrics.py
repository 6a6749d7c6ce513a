"""The `[metrics]` table."""

import re
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from fwdaemon.config.addresses import parse_served
from fwdaemon.config.entry import read_key
from fwdaemon.config.model import Endpoint, MetricsSettings
from fwdaemon.config.node import Node
from fwdaemon.config.ports import LAST_PORT
from fwdaemon.config.text import GrammarError, quote

KEYS: Final = ("listen", "textfile")

_TEXTFILE: Final = "/var/lib/prometheus/node-exporter/kvm_portfwd.prom"
_LISTEN: Final = "127.0.0.1:9750"
_ENDPOINT: Final = re.compile(r"(?:\[([^][]*)\]|([^][:]*)):([1-9][0-9]{0,4})")


def read_metrics(node: Node) -> MetricsSettings:
    """Read the `[metrics]` table; a value that is wrong is recorded and stands as if it were left out."""
    fields = node.fields(KEYS)
    return MetricsSettings(
        read_key(fields, "textfile", parse_textfile, _TEXTFILE),
        read_key(fields, "listen", parse_endpoint, _LISTEN),
        node.origin,
    )


def parse_textfile(text: str) -> Path:
    """Read the path of a file for the textfile collector, which takes `*.prom` only."""
    path, remedy = Path(text), f"write one such as {quote(_TEXTFILE)}"
    if not text.isprintable() or not path.is_absolute():
        raise GrammarError(f"{quote(text)} is no absolute path of plain characters; {remedy}")
    if path.suffix != ".prom":
        raise GrammarError(f"{quote(text)} does not end in .prom, so no node exporter would read it; {remedy}")
    return path


def parse_endpoint(text: str) -> Endpoint:
    """Read an address and a port, an IPv6 address in brackets."""
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match[3]) > LAST_PORT:
        raise GrammarError(f'{quote(text)} is no address and port; write {quote(_LISTEN)} or "[::1]:9750"')
    address = parse_served(match[1] or match[2] or "")
    if isinstance(address, IPv6Address) != (match[1] is not None):
        raise GrammarError(f"{quote(text)} has brackets around IPv4, where only IPv6 has them; write {quote(_LISTEN)}")
    return Endpoint(address, int(match[3]))
