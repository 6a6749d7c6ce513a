"""Names of other people's things: domains, networks, interfaces, MAC addresses, nftables chains, libvirt URIs.

Domain and network names may be any text and never reach a rule as syntax. Interface and chain names do reach rules,
so they are held to what nftables and iptables can both write without quoting tricks.
"""

import re
from typing import Final

from fwdaemon.config.model import Gate
from fwdaemon.config.text import GrammarError, quote

_LONGEST_NAME: Final = 255
_LONGEST_INTERFACE: Final = 15  # bytes: the kernel's IFNAMSIZ less the final NUL
_MULTICAST_BIT: Final = 0x01
_MAC: Final = re.compile(r"[0-9a-fA-F]{2}([:-])(?:[0-9a-fA-F]{2}\1){4}[0-9a-fA-F]{2}")
_GATE_FAMILIES: Final = ("ip", "ip6", "inet")
# What nft's scanner reads as one word. Its manual also names the backslash, but nft does not accept it.
NFT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9/_.-]{0,254}")
_OWN_TABLE: Final = "kvm_portfwd"
_URI: Final = re.compile(r"(?P<scheme>[^:/?#+]+)(?:\+(?P<transport>[^:/?#]*))?://(?P<host>[^/?#]*)(?P<path>/[^?#]*)?.*")
_URI_SCHEMES: Final = ("qemu", "lxc", "xen", "test")
_URI_REMEDY: Final = 'write a local one such as "qemu:///system"'


def parse_name(text: str) -> str:
    """Read the name of a domain or a network: any text that libvirt could hold."""
    if not text:
        raise GrammarError('"" is empty; write the name that virsh shows')
    if "\0" in text:
        raise GrammarError(f"{quote(text)} has a NUL character in it, as no libvirt name has; write it without")
    if len(text) > _LONGEST_NAME:
        raise GrammarError(f"{quote(text)} has {len(text)} characters; write at most {_LONGEST_NAME}, or the UUID")
    return text


def parse_interface(text: str) -> str:
    """Read the name of one of the host's interfaces, under the kernel's rules and those of the rule programs."""
    size = len(text.encode(errors="surrogatepass"))
    if not 1 <= size <= _LONGEST_INTERFACE:
        raise GrammarError(f"{quote(text)} has {size} bytes; write an interface name of 1 to {_LONGEST_INTERFACE}")
    if text in {".", ".."} or not text.isprintable() or re.search(r"[\s/:]", text):
        raise GrammarError(f'{quote(text)} is no name the kernel accepts; write one that "ip link" shows')
    if re.search(r"[\"'\\*+!]", text) or text.startswith("-"):
        raise GrammarError(
            f"{quote(text)} has a quote, backslash, wildcard or sign that is syntax in a firewall rule;"
            " write the plain name of one interface"
        )
    return text


def parse_mac(text: str) -> str:
    """Read a MAC address of a guest; return it in lower case with colons."""
    if _MAC.fullmatch(text) is None:
        raise GrammarError(f'{quote(text)} is not a MAC address; write six pairs of hex digits, "52:54:00:12:34:56"')
    mac = text.lower().replace("-", ":")
    if int(mac[:2], 16) & _MULTICAST_BIT or not int(mac.replace(":", ""), 16):
        raise GrammarError(f"{quote(text)} is no single interface's MAC address; write the one in the domain's XML")
    return mac


def parse_gate(text: str) -> Gate:
    """Read `FAMILY TABLE CHAIN`."""
    words = text.split(" ")
    if len(words) != len(("family", "table", "chain")):
        raise GrammarError(f'{quote(text)} is not "FAMILY TABLE CHAIN"; write for example "inet filter forward"')
    family, table, chain = words
    if family not in _GATE_FAMILIES:
        raise GrammarError(f"{quote(text)}: {quote(family)} is no family of a gate; write ip, ip6 or inet")
    for name in (table, chain):
        if NFT_NAME.fullmatch(name) is None:
            raise GrammarError(
                f"{quote(text)}: {quote(name)} is no nftables name;"
                ' write a letter or "_", then letters, digits, "_", "-", "/" or "."'
            )
    if table == _OWN_TABLE:
        raise GrammarError(f"{quote(text)} is a chain of this program's own table; write another program's, or none")
    return Gate(family, table, chain)


def parse_uri(text: str) -> str:
    """Read the URI of a libvirt on this host."""
    match = _URI.fullmatch(text)
    if match is None or (match["path"] is None and not match["host"]):
        raise GrammarError(f"{quote(text)} is not a libvirt URI; {_URI_REMEDY}")
    if match["scheme"] not in _URI_SCHEMES:
        known = ", ".join(_URI_SCHEMES)
        raise GrammarError(f"{quote(text)} has a scheme other than {known}; {_URI_REMEDY}")
    if match["transport"] not in {None, "unix"}:
        raise GrammarError(f"{quote(text)} leads to libvirt over a network; {_URI_REMEDY}")
    if match["host"]:
        raise GrammarError(f"{quote(text)} names the remote host {quote(match['host'])}; {_URI_REMEDY}")
    if re.search(r"\s", text) or not text.isprintable():
        raise GrammarError(f"{quote(text)} has white space or control characters in it; {_URI_REMEDY}")
    return text
