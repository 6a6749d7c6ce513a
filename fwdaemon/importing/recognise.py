"""Which kind of file a text is. Its content tells: such files carry any name.

A kind is only what has its full shape, so that no other text is taken for one by a line or two. Lines of an address and
a name are in many lists, so there, a name such as `hosts` counts too.
"""

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from fwdaemon.core.text import quote
from fwdaemon.importing.findings import BrokenFileError
from fwdaemon.importing.firewalld_zones import HEAD, KEY

# The full shape of texts of nft and firewalld, so that a part of one is not taken for something else.
_FAMILY: Final = r"(?:ip|ip6|inet|arp|bridge|netdev)"
_SHAPE_OF_TABLE: Final = re.compile(rf"(?:(?:add|create)\s+)?table\s+(?:{_FAMILY}\s+)?[\w./\\-]+\s*(?:\{{.*|;.*|)")
_COMMAND: Final = re.compile(
    rf"(?:add|create|insert|delete|destroy|flush)\s+(?:ruleset|table|chain|rule|set|map|element)\b.*"
    rf"|(?:define|redefine)\s+\w+\s*=.*|include\s+\".*|table\s+(?:{_FAMILY}\s+)?[\w./\\-]+.*"
)
_XML: Final = re.compile(r"\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)*<(?P<root>zone|policy|direct)[\s/>]", re.DOTALL)
_PART: Final = re.compile(r"\t.*")


def is_nft(lines: Sequence[str]) -> bool:
    """Whether lines without comments and blanks at their ends begin as a text of nft, and make a table somewhere."""
    return _COMMAND.fullmatch(lines[0]) is not None and any(_SHAPE_OF_TABLE.fullmatch(line) for line in lines)


def firewalld_root(text: str) -> str:
    """Give the outermost element of an XML file of firewalld; empty where the text is none."""
    match = _XML.match(text)
    return "" if match is None else match["root"]


def is_firewalld_list(text: str) -> bool:
    """Whether every line of a text belongs to what firewall-cmd lists of zones, from the name of the first one on."""
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    return (
        len(lines) > 1
        and HEAD.fullmatch(lines[0]) is not None
        and all(HEAD.fullmatch(line) or KEY.fullmatch(line) or _PART.fullmatch(line) for line in lines)
        and any(line.startswith("  forward-ports:") for line in lines)
    )


_LEADING_COMMENTS: Final = re.compile(r"(?:\s|//[^\n]*|/\*(?:[^*]|\*(?!/))*\*/)*")
_NFT_JSON: Final = re.compile(r"\s*\{\s*\"nftables\"\s*:\s*\[")
_HOSTS: Final = re.compile(r"(?i).*hosts(?:file)?(?:\..*)?")
# What JSON may begin with; a heading in brackets, as INI files and TOML have them, is none of it.
_JSON: Final = re.compile(r"\{|\[\s*(?:[]{\"'\d.+-]|\Z)")
_CONFIGURATION: Final = re.compile(r"\[\[\s*(?:forward|nat|route)\s*\]\]\s*(?:#.*)?")
_TABLE: Final = re.compile(r"\*(?:nat|filter|mangle|raw|security)")
_ASSIGNMENT: Final = r"(?m)^\s*(?:export\s+)?{}\s*="
_SHELL: Final = re.compile(r"[{}$`;=()|<>]")


class Kind(StrEnum):
    """A kind of file; the value is what a person calls it."""

    HOOKS_JSON = "hooks.json of libvirt-hook-qemu"
    ROUTED_IPS = "addresses of the routed-ips hook"
    PORTS_SCRIPT = "one domain's file of a bash hook"
    IPTABLES_SAVE = "output of iptables-save"
    NFT_TEXT = "nftables rules as text"
    FIREWALLD_XML = "a file of firewalld"
    FIREWALLD_LIST = "what firewall-cmd lists"
    EMPTY = "nothing but comments"


def recognise(file: Path, text: str) -> Kind:
    """Tell the kind of a file.

    Raises:
        BrokenFileError: it is none of them.

    """
    if _NFT_JSON.match(text):
        raise BrokenFileError(file, 1, "is what nft prints with -j; give the output of `nft list ruleset`, without -j")
    return _of_whole(text) or _of_lines(file, text)


def _of_whole(text: str) -> Kind | None:
    """Tell the kind of a text that is one thing from its beginning to its end."""
    match = _LEADING_COMMENTS.match(text)
    if match is not None and _JSON.match(text, match.end()):
        return Kind.HOOKS_JSON
    if firewalld_root(text):
        return Kind.FIREWALLD_XML
    return Kind.FIREWALLD_LIST if is_firewalld_list(text) else None


def _of_lines(file: Path, text: str) -> Kind:
    lines = list(_significant(text))
    if _TABLE.fullmatch(lines[0][1]) if lines else _is_of_iptables(text):
        return Kind.IPTABLES_SAVE
    if not lines:
        return Kind.EMPTY
    if is_nft([line for _, line in lines]):
        return Kind.NFT_TEXT
    if all(re.search(_ASSIGNMENT.format(key), text) for key in ("PRIVATE_IP", "PORTS")):
        return Kind.PORTS_SCRIPT
    return _routed_ips(file, lines)


def _routed_ips(file: Path, lines: Sequence[tuple[int, str]]) -> Kind:
    """See that each line can be one of routed-ips; else tell the first that cannot."""
    strange = [(number, line) for number, line in lines if not _is_like_a_route(line)]
    if not strange and _HOSTS.fullmatch(file.name):
        raise BrokenFileError(file, 1, "is a list of hosts by its name; give one of the routed-ips hook another name")
    if not strange:
        return Kind.ROUTED_IPS
    number, line = next((line for line in strange if _CONFIGURATION.fullmatch(line[1])), strange[0])
    if _CONFIGURATION.fullmatch(line):
        raise BrokenFileError(file, number, _ALREADY)
    raise BrokenFileError(file, number, f"{quote(line)} is from no known kind of file; {_REMEDY}")


def _is_like_a_route(line: str) -> bool:
    """Whether a line is an address that can be routed, and one name; /etc/hosts and lists of routes have others too."""
    words = re.sub(r"\s#.*", "", line).split()
    return len(words) == len(("address", "network")) and _can_be_routed(words[0]) and not _SHELL.search(words[1])


def _can_be_routed(word: str) -> bool:
    try:
        network = ip_network(word, strict=False)
    except ValueError:
        return False
    return not (network.is_loopback or network.is_multicast or network.is_link_local)


def _is_of_iptables(text: str) -> bool:
    """Whether a text of comments only is what `iptables-save` prints of tables that it cannot show."""
    return re.search(r"(?m)^# Table `\w+' (?:is|contains) incompatible", text) is not None


def _significant(text: str) -> Iterator[tuple[int, str]]:
    """Yield what is neither blank nor a comment, with its number."""
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


_ALREADY: Final = "is of a configuration of kvm-portfwd already; `kvm-portfwd check FILE` says whether it is right"
_REMEDY: Final = (
    "give hooks.json of libvirt-hook-qemu, a routed-ips file, a bash hook's file with PRIVATE_IP= and PORTS=,"
    " the output of iptables-save, nft list ruleset or firewall-cmd --list-all-zones, /etc/nftables.conf, or a zone of"
    " firewalld"
)
