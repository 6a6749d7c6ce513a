"""`kvm-portfwd import`: turn the files of older tools into our configuration, on standard output."""

import argparse
import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fwdaemon import config as configuration
from fwdaemon.config.model import DaemonSettings
from fwdaemon.default_address import default_address
from fwdaemon.errors import ConfigError, KernelError, LibvirtUnavailableError
from fwdaemon.events import take_inventory
from fwdaemon.importing import hooks_json, iptables_save, ports_script, routed_ips
from fwdaemon.importing.assembling import assemble
from fwdaemon.importing.findings import BrokenFileError, Findings
from fwdaemon.importing.owners import Owners, owners_of
from fwdaemon.importing.recognise import Kind, recognise
from fwdaemon.importing.values import printable
from fwdaemon.model import Address

_STANDARD_INPUT: Final = Path("-")


def run(options: argparse.Namespace) -> int:
    """Read all files and print one configuration, or nothing if one of them is broken."""
    found: list[Findings] = []
    broken: list[str] = []
    for file in options.files:
        try:
            found.append(_read(file))
        except BrokenFileError as error:
            broken.append(str(error))
    if broken:
        for said in broken:
            _say(said)
        return 1
    imported = assemble(found, _owners(found, options.config))
    for warning in imported.warnings:
        _say(f"warning: {warning}")
    # TOML is UTF-8, whatever the terminal's own encoding.
    sys.stdout.buffer.write(imported.text.encode())
    return 0


def _read(file: Path) -> Findings:
    text = _text(file)
    match recognise(file, text):
        case Kind.HOOKS_JSON:
            return hooks_json.parse(file, text, _default_listen())
        case Kind.ROUTED_IPS:
            return routed_ips.parse(file, text)
        case Kind.PORTS_SCRIPT:
            return ports_script.parse(file, text, None if file == _STANDARD_INPUT else file.name)
        case Kind.IPTABLES_SAVE:
            return iptables_save.parse(file, text)
        case Kind.EMPTY:
            findings = Findings(file, Kind.EMPTY)
            findings.warn(1, "has nothing to import")
            return findings


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


def _default_listen() -> Address | None:
    try:
        return default_address()
    except KernelError as error:
        _say(f"warning: {error}")
        return None


def _owners(found: Iterable[Findings], config: Path) -> Owners | None:
    """Ask libvirt who has which address, where any entry needs to know."""
    if all(forward.domain is not None for findings in found for forward in findings.forwards):
        return {}
    try:
        return owners_of(asyncio.run(take_inventory(_uris(config))))
    except (LibvirtUnavailableError, KernelError) as error:
        _say(f"warning: {error}")
        return None


def _uris(config: Path) -> tuple[str, ...]:
    """Give the URIs of the configuration; there need not be one yet."""
    if not config.exists():
        return DaemonSettings().libvirt
    try:
        return configuration.load(config).daemon.libvirt
    except ConfigError as error:
        usual = DaemonSettings().libvirt
        _say(f"warning: {error.problems[0]}; until that is mended, {', '.join(usual)} is asked")
        return usual


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)
