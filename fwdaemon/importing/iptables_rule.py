"""One rule of `iptables-save`, and the forwards it stands for.

Only what is fully understood is used: one match more than is known here, and the rule let in fewer packets than a
forward made of the rest would. The words are those of iptables-extensions(8).
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fwdaemon.config.addresses import parse_guest
from fwdaemon.config.model import Origin
from fwdaemon.config.names import parse_interface
from fwdaemon.config.ports import LAST_PORT
from fwdaemon.config.text import GrammarError, quote
from fwdaemon.importing.findings import Forward
from fwdaemon.importing.values import port_range, read_listen, read_port, read_sources
from fwdaemon.model import Address, PortRange, Protocol, Subnet

_OPTIONS: Final = (
    *("-A", "-s", "-d", "-i", "-p", "-j", "--dport", "--dports", "--to-destination"),
    *("--comment", "--ctstate", "--state", "--dst-type"),
)
_MATCHES: Final = ("tcp", "udp", "sctp", "multiport", "comment", "conntrack", "state", "addrtype")
# Ports that all lead to one port of the guest are written one by one; more of them than this nobody means.
_MOST_TO_ONE: Final = 100
_EVERY_PORT: Final = PortRange(1, LAST_PORT)
_TARGET: Final = re.compile(
    r"(?:\[(?P<ip6>[0-9A-Fa-f:.]+)\]|(?P<ip4>[0-9.]+)|(?P<bare>[0-9A-Fa-f:.]+))"
    r"(?::(?P<first>\d+)(?:-(?P<last>\d+)(?:/(?P<base>\d+))?)?)?"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """The words of a rule by option, each of which may stand once."""

    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, line: str) -> "Rule":
        """Read a rule as `iptables-save` prints it; raise `GrammarError` where it says more than is known here."""
        rule = cls()
        words = iter(_words(line))
        for word in words:
            value = next(words, "")
            if "!" in {word, value}:
                raise GrammarError("it has a negation")
            if word == "-m" and value in _MATCHES:
                continue
            if word not in _OPTIONS or word in rule.options:
                raise GrammarError(f"{quote(f'{word} {value}')} is not understood")
            rule.options[word] = value
        return rule

    @property
    def is_for_any_address(self) -> bool:
        """Whether it takes packets to every address, those of other hosts included."""
        return "-d" not in self.options and "--dst-type" not in self.options

    def forwards(self, origin: Origin) -> Iterator[Forward]:
        """Yield what a DNAT rule forwards; raise `GrammarError` where no forward could say the same."""
        self._refuse_narrow_matches()
        protocol = self._protocol()
        address, target = _target(self.options.get("--to-destination", ""))
        listen, interface, sources = self._listen(), self._interface(), self._sources()
        for host in self._ports():
            for each, guest in target.guest_ports(host):
                yield Forward(None, address, each, guest, protocol, origin, listen, interface, sources)

    def _refuse_narrow_matches(self) -> None:
        for option in ("--ctstate", "--state"):
            if "NEW" not in self.options.get(option, "NEW").split(","):
                raise GrammarError(f"{quote(f'{option} {self.options[option]}')} has no new connection in it")
        if self.options.get("--dst-type", "LOCAL") != "LOCAL":
            raise GrammarError("--dst-type is another than LOCAL")

    def _protocol(self) -> Protocol:
        name = self.options.get("-p", "all")
        if name in set(Protocol):
            return Protocol(name)
        if name == "all":
            raise GrammarError("it is for every protocol; write a [[nat]] for the guest instead")
        raise GrammarError(f"protocol {quote(name)} has no ports")

    def _listen(self) -> Address | None:
        return read_listen(self.options["-d"]) if "-d" in self.options else None

    def _interface(self) -> str | None:
        return parse_interface(self.options["-i"]) if "-i" in self.options else None

    def _sources(self) -> tuple[Subnet, ...]:
        return read_sources(self.options["-s"]) if "-s" in self.options else ()

    def _ports(self) -> Iterator[PortRange]:
        """Yield the ports of the host; a rule without any is for all of them."""
        listed = self.options.get("--dports", self.options.get("--dport"))
        if listed is None:
            yield _EVERY_PORT
            return
        for part in listed.split(","):
            first, colon, last = part.partition(":")
            # iptables counts from 0, to which nobody can connect.
            start = 1 if colon and first == "0" else read_port(first)
            yield port_range(start, read_port(last) if colon else start)


@dataclass(frozen=True, slots=True)
class _GuestPorts:
    """The ports of `--to-destination`; `base` is the port of the host that `ports.first` stands for."""

    ports: PortRange | None
    base: int | None

    def guest_ports(self, host: PortRange) -> Iterator[tuple[PortRange, PortRange]]:
        """Yield pairs of the host's and the guest's ports, as the kernel maps them (nf_nat_core.c)."""
        ports = self.ports
        if ports is None or (self.base is None and ports.first <= host.first and host.last <= ports.last):
            yield host, host
        elif ports.width == 1 and host.width <= _MOST_TO_ONE:
            yield from ((PortRange(port, port), ports) for port in host)
        elif self.base is not None and host.first >= self.base and host.last - self.base < ports.width:
            first = ports.first + host.first - self.base
            yield host, PortRange(first, first + host.width - 1)
        else:
            raise GrammarError(f"ports {host} lead to {ports} in no order a forward could keep")


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        raise GrammarError("its quotes do not close") from None


def _target(text: str) -> tuple[Address, _GuestPorts]:
    match = _TARGET.fullmatch(text)
    if match is None:
        raise GrammarError(f"--to-destination {quote(text)} is not one address with its ports")
    address = parse_guest(match["ip6"] or match["ip4"] or match["bare"])
    if match["first"] is None:
        return address, _GuestPorts(None, None)
    first = read_port(match["first"])
    ports = port_range(first, first if match["last"] is None else read_port(match["last"]))
    return address, _GuestPorts(ports, None if match["base"] is None else read_port(match["base"]))
