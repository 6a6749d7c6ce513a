"""`kvm-portfwd import`: turn the files of older tools into our configuration, on standard output."""

import argparse
import asyncio
import socket
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from fwdaemon import config as configuration
from fwdaemon.config.model import DaemonSettings
from fwdaemon.core.inventory import Inventory
from fwdaemon.core.types import Address
from fwdaemon.errors import ConfigError, KernelError, LibvirtUnavailableError
from fwdaemon.events import take_inventory
from fwdaemon.importing import firewalld, hooks_json, iptables_save, nft_text, ports_script
from fwdaemon.importing.assembling import Bridges, Imported, Owners, assemble, bridges_of, keep_apart, owners_of
from fwdaemon.importing.findings import BrokenFileError, Findings, Kind, firewalld_root, printable, recognise
from fwdaemon.kernel.observe import default_address

_STANDARD_INPUT: Final = Path("-")


def run(options: argparse.Namespace) -> int:
    """Read all files and print one configuration, or nothing if one of them is broken."""
    guests = _Guests(options.config)
    texts, broken = _texts(options.files)
    given = [each for file, text in texts.items() for each in firewalld.policies_in(file, text)]
    found: list[Findings] = []
    for file, text in texts.items():
        try:
            found.append(_read(file, text, [each for each in given if each.file != file], guests))
        except BrokenFileError as error:
            broken[file] = str(error)
    if broken:
        for file in dict.fromkeys(options.files):
            if file in broken:
                _say(broken[file])
        return 1
    keep_apart(found)
    return _print(assemble(found, _owners(found, guests)))


def _print(imported: Imported) -> int:
    for warning in imported.warnings:
        _say(f"warning: {warning}")
    # TOML is UTF-8, whatever the terminal's own encoding.
    sys.stdout.buffer.write(imported.text.encode())
    if imported.has_entries:
        return 0
    _say("nothing could be imported; the reasons are above, and in the comments of what is printed")
    return 1


def _read(file: Path, text: str, given: Sequence[firewalld.Given], guests: "_Guests") -> Findings:
    match recognise(file, text):
        case Kind.HOOKS_JSON:
            found = hooks_json.parse(file, text, _default_listen())
        case Kind.ROUTED_IPS:
            found = ports_script.parse_routed_ips(file, text)
        case Kind.PORTS_SCRIPT:
            found = ports_script.parse_ports_script(file, text, None if file == _STANDARD_INPUT else file.name)
        case Kind.IPTABLES_SAVE:
            found = iptables_save.parse(file, text, _service, guests.bridge)
        case Kind.NFT_TEXT:
            found = nft_text.parse(file, text, _service, guests.bridge)
        case Kind.FIREWALLD_XML:
            found = firewalld.parse_xml(file, text, _zones_beside(file), guests.bridge, given)
        case Kind.FIREWALLD_LIST:
            found = firewalld.parse_list(file, text, guests.bridge, given)
        case Kind.EMPTY:
            found = Findings(file, Kind.EMPTY)
    if not found.says_anything:
        found.warn(1, "has nothing to import")
    return found


def _texts(files: Iterable[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Give the texts of the files that can be read, and what is wrong with the others."""
    texts: dict[Path, str] = {}
    broken: dict[Path, str] = {}
    for file in dict.fromkeys(files):
        try:
            texts[file] = _text(file)
        except BrokenFileError as error:
            broken[file] = str(error)
    return texts, broken


def _text(file: Path) -> str:
    try:
        content = sys.stdin.buffer.read() if file == _STANDARD_INPUT else file.read_bytes()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BrokenFileError(file, line, "is not UTF-8 text; save the file as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BrokenFileError(file, 1, f"cannot be read: {reason}; name another, or - for standard input") from error


def _zones_beside(file: Path) -> list[str] | None:
    """Give the zones of firewalld in the directory of one; `None` where they are not known."""
    if file == _STANDARD_INPUT:
        return None
    try:
        others = [_text(other) for other in sorted(file.parent.glob("*.xml")) if not other.samefile(file)]
    except (BrokenFileError, OSError):
        return None
    return [text for text in others if firewalld_root(text) == "zone"]


def _default_listen() -> Address | None:
    try:
        return default_address()
    except KernelError as error:
        _say(f"warning: {error}")
        return None


def _service(name: str, protocol: str) -> int | None:
    """Give the port of a service by its name, as /etc/services has it."""
    try:
        return socket.getservbyname(name, protocol or "tcp")
    except (OSError, ValueError):
        return None


class _Guests:
    """The guests of this host; libvirt is asked once, and only if anything needs to know."""

    def __init__(self, config: Path) -> None:
        self._config = config

    @cached_property
    def _bridges(self) -> Bridges:
        return {} if self.inventory is None else bridges_of(self.inventory)

    @cached_property
    def inventory(self) -> Inventory | None:
        """What libvirt says, or `None` if it does not tell."""
        try:
            return asyncio.run(take_inventory(_uris(self._config)))
        except (LibvirtUnavailableError, KernelError) as error:
            _say(f"warning: {error}")
            return None

    def bridge(self, address: Address) -> str | None:
        """Give the bridge that leads to an address, if that is known."""
        return self._bridges.get(address)


def _owners(found: Iterable[Findings], guests: _Guests) -> Owners | None:
    """Say who has which address, where any entry needs to know."""
    if all(findings.names_domains for findings in found):
        return {}
    return None if guests.inventory is None else owners_of(guests.inventory)


def _uris(config: Path) -> tuple[str, ...]:
    """Give the URIs of the configuration; there need not be one yet."""
    if not config.exists():
        return DaemonSettings().libvirt
    try:
        return configuration.load(config).daemon.libvirt
    except ConfigError as error:
        usual = DaemonSettings().libvirt
        _say(f"warning: {error.problems[0]}; until that is fixed, {', '.join(usual)} is asked")
        return usual


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)
