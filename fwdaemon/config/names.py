"""Names of other people's things: domains, networks, interfaces, MAC addresses, nftables chains, libvirt URIs.

Domain and network names may be any text and never reach a rule as syntax. Interface and chain names do reach rules,
so they are held to what nftables and iptables can both write without quoting tricks.
"""

import re
from fnmatch import fnmatchcase
from typing import Final

from fwdaemon.core.text import GrammarError, flag_meant, quote, refuse_negation
from fwdaemon.core.types import Gate

_LONGEST_NAME: Final = 255
_LONGEST_INTERFACE: Final = 15  # bytes: the kernel's IFNAMSIZ less the final NUL
# As fnmatch(3), shells and regular expressions have them, among what names are mostly made of, and nothing else: a
# bracket, a brace or a sign may well be in a name.
_PATTERN: Final = re.compile(r"[*?]|\[[!^]|\[[^]]-[^]]|\[[0-9]{2,}\]|\{[^}]*(?:,|\.\.)[^}]*\}|^\^|\([^)|]*\|[^)]*\)")
# What a shell has for several names at once, besides the pattern of one.
_OTHER_PATTERN: Final = re.compile(r"\{[^}]*(?:,|\.\.)[^}]*\}|^\^|\([^)|]*\|[^)]*\)")
# The parts of a shell pattern, as Python's fnmatch reads them: a bracket that is not closed is one.
_PART: Final = re.compile(r"(?P<any>[*?])|\[(?P<set>!?(?:\][^]]*|[^]]+))\]|(?P<plain>.)", re.DOTALL)
_WILD: Final = frozenset("*?[")
_MOSTLY: Final = re.compile(r"[\w.,:@+^$()|!*?\[\]{}\\-]+")
_LIST: Final = re.compile(r"([\w.-]+)(?:\s*[,;|]\s*[\w.-]+)+")
# What templates and shells fill in, and instructions have in its place: `${WEB}`, `$WEB`, `{{ web }}`, `<name>`.
# As people mistype one: with a digit or two more or fewer in a group.
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NEARLY_UUID: Final = re.compile(r"[0-9a-f]{6,10}(-[0-9a-f]{2,6}){3}-[0-9a-f]{10,14}", re.IGNORECASE)
_BLANK: Final = re.compile(r"\$\{[^}]*\}|\$[A-Za-z_][A-Za-z0-9_]*|\{\{.*\}\}|<[\w .-]+>")
# Words of other programs for "whichever"; the kernel keeps "all" and "default" for itself.
_EVERY: Final = frozenset({"all", "any"})
_EVERY_INTERFACE: Final = frozenset({"*", "default", *_EVERY})
# Blanks and what is not printed, for the ends; and what looks like nothing or like a blank, wherever it is.
_NOT_SHOWN: Final = "".join(
    map(chr, [*range(0x21), *range(0x7F, 0xA1), 0x200C, 0x200D, 0x200E, 0x200F, *range(0x2028, 0x202F)])
)
_UNSEEN: Final = re.compile("[\u00ad\u200b\u2060\ufeff]")
_HARD_BLANKS: Final = re.compile("[\u00a0\u2007\u202f]")
# Further ones, which have a place in other scripts and in pictures, but not among the letters of an ordinary name.
_ORDINARY: Final = re.compile(r"[A-Za-z0-9_ .-]*")
_FOREIGN_BLANKS: Final = re.compile("[\t\u1680\u2000-\u200a\u205f\u2800\u3000]")
_FOREIGN_UNSEEN: Final = re.compile(
    "[\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c-\u200f\u2028-\u202e\u2061-\u206f\u3164"
    "\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
# Of two characters or more each, as names of interfaces have.
_INTERFACES: Final = re.compile(r"([\w.-]{2,})(?:\s*[,;|]\s*[\w.-]{2,})+")
_ADDRESS: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_MULTICAST_BIT: Final = 0x01
_MAC: Final = re.compile(r"[0-9a-fA-F]{2}([:-])(?:[0-9a-fA-F]{2}\1){4}[0-9a-fA-F]{2}")
_GATE_FAMILIES: Final = ("ip", "ip6", "inet")
# What nft's scanner reads as one word. Its manual also names the backslash, but nft does not accept it.
NFT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9/_.-]{0,254}")
_OWN_TABLE: Final = "kvm_portfwd"
_CHAIN_PATTERN: Final = re.compile(r"[!-~]{1,255}")
_LIBVIRT_CHAINS: Final = ("LIBVIRT_FWI", "LIBVIRT_FWO", "LIBVIRT_FWX", "guest_input", "guest_output", "guest_cross")
_URI: Final = re.compile(r"(?P<scheme>[^:/?#+]+)(?:\+(?P<transport>[^:/?#]*))?://(?P<host>[^/?#]*)(?P<path>/[^?#]*)?.*")
_URI_SCHEMES: Final = ("qemu", "lxc", "xen", "test")
_URI_REMEDY: Final = 'write a local one such as "qemu:///system"'


def parse_name(text: str) -> str:
    """Read the name of a domain or a network: any text that libvirt could hold."""
    if not text:
        raise GrammarError('"" is empty', "write the name that virsh shows")
    if "\0" in text:
        raise GrammarError(f"{quote(text)} has a NUL character in it, as no libvirt name has", "write it without")
    if "/" in text:
        raise GrammarError(f'{quote(text)} has a "/" in it, as no libvirt name has', "write the name that virsh shows")
    _refuse_unseen(text, _seen(text).strip(), "")
    _refuse_length(text)
    return text


def _refuse_length(text: str) -> None:
    if len(text) > _LONGEST_NAME:
        raise GrammarError(f"{quote(text)} has {len(text)} characters", f"write at most {_LONGEST_NAME}, or the UUID")


def _is_pattern(text: str) -> bool:
    return _MOSTLY.fullmatch(text) is not None and _PATTERN.search(text) is not None


def parse_network(text: str) -> str:
    """Read the name of one libvirt network."""
    _refuse_length(text)
    if text.lower() == "none":
        raise GrammarError(f"{quote(text)} names no network", 'write one that "virsh net-list" shows')
    if text.lower() in _EVERY or _is_pattern(text) or _LIST.fullmatch(text):
        remedy = 'write one that "virsh net-list" shows'
        raise GrammarError(f"{quote(text)} stands for several networks, and an entry names one", remedy)
    return parse_name(text)


def is_pattern(text: str) -> bool:
    """Whether a text that `parse_domains` has read stands for several names."""
    return any(part["any"] or (part["set"] and part["set"] not in _WILD) for part in _PART.finditer(text))


def as_pattern(name: str) -> str:
    """Write the name of one domain so that none of its characters stands for others."""
    return re.sub(r"[*?[]", r"[\g<0>]", name)


def parse_pattern(text: str) -> str:
    """Read a shell pattern of domains' names, or a UUID."""
    if not text or "\0" in text:
        raise GrammarError(f"{quote(text)} names no domain", 'write a pattern of names, as in "ci-*", or a UUID')
    _refuse_length(text)
    if _NEARLY_UUID.fullmatch(text) and not _UUID.fullmatch(text):
        raise GrammarError(f"{quote(text)} looks like a UUID and is none", 'write the one that "virsh domuuid" shows')
    _refuse_unseen(text, _seen(text).strip(_NOT_SHOWN), "")
    return text


def parse_domain(text: str) -> str:
    """Read what names one domain: its name, in which `[*]` is a `*`, or its UUID."""
    named = parse_domains(text)
    if is_pattern(named):
        really = f"{quote(as_pattern(text))} if that is its name" if as_pattern(text) != text else "or its UUID"
        raise GrammarError(
            f"{quote(text)} is a pattern of names, and one domain is needed", f"write its name, {really}"
        )
    return "".join(part["plain"] or part["set"] for part in _PART.finditer(named))


def parse_domains(text: str) -> str:
    """Read what names one domain, or a shell pattern of names."""
    _refuse_length(text)
    remedy = "write one entry for each domain, by its UUID if its name really"
    if text.lower() in _EVERY:
        raise GrammarError(f"{quote(text)} names no single domain", f"{remedy} is that")
    if _LIST.fullmatch(text):
        raise GrammarError(f"{quote(text)} looks like a list of names", f"{remedy} has such a character")
    if _MOSTLY.fullmatch(text) and _OTHER_PATTERN.search(text):
        what = "looks like a pattern of another kind than *, ? and [a-z]"
        raise GrammarError(f"{quote(text)} {what}", f"{remedy} has such a character")
    for part in _PART.finditer(text):
        _refuse_odd_set(text, part)
    if _BLANK.fullmatch(text):
        shows = "write the name that virsh shows, or its UUID if that is it"
        raise GrammarError(f"{quote(text)} is to be filled in, which nothing does here", shows)
    if _NEARLY_UUID.fullmatch(text) and not _UUID.fullmatch(text):
        raise GrammarError(f"{quote(text)} looks like a UUID and is none", 'write the one that "virsh domuuid" shows')
    _refuse_unseen(text, _seen(text).strip(_NOT_SHOWN), ", or its UUID if virsh really shows that")
    return parse_name(text)


def _refuse_odd_set(text: str, part: re.Match[str]) -> None:
    """Refuse brackets that stand for one character, as in the names of some domains, and the sign that others have."""
    inside, before, after = part["set"] or "", text[: part.start()], text[part.end() :]
    if inside.startswith("^"):
        right = f"{before}[!{inside[1:]}]{after}"
        raise GrammarError(f'{quote(text)} has "[^", which is "[!" in a shell pattern', right=right)
    if len(inside) == 1 and inside not in _WILD:
        # Without the brackets it would be another guest.
        raise GrammarError(f"{quote(text)} has one character in brackets", " for that name", right=as_pattern(text))


def _seen(text: str) -> str:
    """Give a name without what looks like nothing in it, and plain blanks for what looks like one."""
    if _ORDINARY.fullmatch(text):
        return text
    shown = _HARD_BLANKS.sub(" ", _UNSEEN.sub("", text))
    plain = _FOREIGN_BLANKS.sub(" ", _FOREIGN_UNSEEN.sub("", shown))
    return plain if _ORDINARY.fullmatch(plain) else shown


def _refuse_unseen(text: str, plain: str, otherwise: str) -> None:
    """Refuse a name that holds what may have been copied along with it; `plain` is the name without."""
    if plain != text:
        what = f"{quote(text)} has blanks at its ends, or invisible characters"
        raise (
            GrammarError(what, otherwise, right=plain)
            if plain
            else GrammarError(what, "write the name that virsh shows")
        )


def parse_incoming(text: str) -> str:
    """Read the name of the interface on which packets arrive."""
    if text.lower() in _EVERY_INTERFACE:
        raise GrammarError(f"{quote(text)} is no interface", "leave the key out for packets from any")
    if text == "lo":
        raise GrammarError(
            '"lo" is for this host alone',
            'leave the key out in an entry of its own with sources = ["127.0.0.1"], and'
            " write localhost = true in [daemon]",
        )
    if _ADDRESS.fullmatch(text):
        raise GrammarError(f"{quote(text)} is an address", "write it as listen, in place of interface")
    return parse_interface(text)


def parse_holding(text: str) -> str:
    """Read the name of the interface that is to hold an address, or to answer for it; there may be none."""
    if text.lower() == "none" or (flag_meant(text) is False and text != "0"):
        raise GrammarError(f"{quote(text)} names no interface", "leave the key out for none")
    return parse_interface(text)


def parse_interface(text: str) -> str:
    """Read the name of one of the host's interfaces, under the kernel's rules and those of the rule programs."""
    refuse_negation(text, "write the name of an interface that is meant")
    is_flag = flag_meant(text) is not None and not text.isdecimal()
    if is_flag or text.lower() in {"none", *_EVERY_INTERFACE} or _ADDRESS.fullmatch(text):
        raise GrammarError(f"{quote(text)} names no interface", 'write the name of one, such as "eth0"')
    _refuse_printed(text)
    size = len(text.encode(errors="surrogatepass"))
    if not 1 <= size <= _LONGEST_INTERFACE:
        raise GrammarError(f"{quote(text)} has {size} bytes", f"write an interface name of 1 to {_LONGEST_INTERFACE}")
    if text in {".", ".."} or not text.isprintable() or re.search(r"[\s/:%]", text):
        raise GrammarError(f"{quote(text)} is no name the kernel accepts", 'write one that "ip link" shows')
    if re.search(r"[\"'\\*+!]", text) or text.startswith("-") or _is_pattern(text):
        raise GrammarError(
            f"{quote(text)} has a quote, backslash, wildcard or sign that is syntax in a firewall rule",
            "write the plain name of one interface",
        )
    return text


def _refuse_printed(text: str) -> None:
    """Refuse what `ip` prints around the name of an interface, and several names."""
    stripped = _seen(text).strip()
    if stripped and stripped != text:
        raise GrammarError(f"{quote(text)} has blanks at its ends, or invisible characters", right=stripped)
    name, at, _ = text.partition("@")
    if at and name:
        raise GrammarError(f'{quote(text)} has "@" and what the interface is tied to', right=name)
    if re.fullmatch(r"[\w.-]+:", text):
        raise GrammarError(f'{quote(text)} has the ":" after the name', right=text[:-1])
    if match := _INTERFACES.fullmatch(text):
        raise GrammarError(f"{quote(text)} is several in one string", f"write one of them, such as {quote(match[1])}")


def parse_mac(text: str) -> str:
    """Read a MAC address of a guest; return it in lower case with colons."""
    if _MAC.fullmatch(text) is None:
        if right := _mac_meant(text):
            raise GrammarError(f"{quote(text)} is a MAC address in another form", right=right)
        raise GrammarError(f"{quote(text)} is not a MAC address", 'write six pairs of hex digits, "52:54:00:12:34:56"')
    mac = text.lower().replace("-", ":")
    if int(mac[:2], 16) & _MULTICAST_BIT or not int(mac.replace(":", ""), 16):
        raise GrammarError(f"{quote(text)} is no single interface's MAC address", "write the one in the domain's XML")
    return mac


def _mac_meant(text: str) -> str | None:
    """Give what is meant by a MAC address without separators, with dots, or without leading zeros."""
    parts = re.split(r"[:.-]", text.strip())
    digits = "".join(part.rjust(2, "0") for part in parts) if len(parts) == 6 else "".join(parts)  # noqa: PLR2004  bytes
    if re.fullmatch(r"[0-9a-fA-F]{12}", digits) is None or any(len(part) % 2 for part in parts if len(parts) != 6):  # noqa: PLR2004
        return None
    return ":".join(re.findall("..", digits.lower()))


def parse_gate(text: str) -> Gate:
    """Read `FAMILY TABLE CHAIN`."""
    words = text.split(" ")
    if len(words) != len(("family", "table", "chain")):
        if len(plain := text.split()) == len(("family", "table", "chain")):
            raise GrammarError(f"{quote(text)} has more than one blank in a place", right=" ".join(plain))
        raise GrammarError(f'{quote(text)} is not "FAMILY TABLE CHAIN"', 'write for example "inet filter forward"')
    family, table, chain = words
    if family not in _GATE_FAMILIES:
        raise GrammarError(f"{quote(text)}: {quote(family)} is no family of a gate", "write ip, ip6 or inet")
    for name in (table, chain):
        if NFT_NAME.fullmatch(name) is None:
            raise GrammarError(
                f"{quote(text)}: {quote(name)} is no nftables name",
                'write a letter or "_", then letters, digits, "_", "-", "/" or "."',
            )
    if table == _OWN_TABLE:
        raise GrammarError(f"{quote(text)} is a chain of this program's own table", "write another program's, or none")
    return Gate(family, table, chain)


def parse_ban_chain(text: str) -> str:
    """Read a shell pattern of chains that hold bans."""
    if _CHAIN_PATTERN.fullmatch(text) is None:
        raise GrammarError(
            f"{quote(text)} is no pattern of a chain's name",
            'write 1 to 255 printable ASCII characters without a blank, as in "f2b-*"',
        )
    taken = next((chain for chain in _LIBVIRT_CHAINS if fnmatchcase(chain, text)), None)
    if taken is not None:
        raise GrammarError(
            f"{quote(text)} also names libvirt's own chain {taken}, which refuses what forwards lead to guests",
            'write the chains that hold bans, as in "f2b-*"',
        )
    return text


def parse_uri(text: str) -> str:
    """Read the URI of a libvirt on this host."""
    match = _URI.fullmatch(text)
    if match is None or (match["path"] is None and not match["host"]):
        raise GrammarError(f"{quote(text)} is not a libvirt URI", _URI_REMEDY)
    if match["scheme"] not in _URI_SCHEMES:
        known = ", ".join(_URI_SCHEMES)
        raise GrammarError(f"{quote(text)} has a scheme other than {known}", _URI_REMEDY)
    if match["transport"] not in {None, "unix"}:
        raise GrammarError(f"{quote(text)} leads to libvirt over a network", _URI_REMEDY)
    if match["host"]:
        raise GrammarError(f"{quote(text)} names the remote host {quote(match['host'])}", _URI_REMEDY)
    if re.search(r"\s", text) or not text.isprintable():
        raise GrammarError(f"{quote(text)} has white space or control characters in it", _URI_REMEDY)
    return text
