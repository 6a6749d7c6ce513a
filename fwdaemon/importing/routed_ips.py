"""`/etc/sysconfig/routed-ips` of the routed-ips hook: lines of an address, or a subnet, and a libvirt network's name.

The old hook passed over every line with more than these two words, and over names with anything but letters, digits
and `_`. Where such a line can only mean one thing it is imported, and remarked.
"""

import re
from pathlib import Path
from typing import Final

from fwdaemon.config.addresses import parse_routed
from fwdaemon.config.model import RouteEntry
from fwdaemon.config.text import GrammarError, quote
from fwdaemon.importing.findings import Findings
from fwdaemon.importing.recognise import Kind
from fwdaemon.importing.values import read_name

_COMMENT: Final = re.compile(r"\s#.*")
_TAKEN_BEFORE: Final = re.compile(r"\S+\s+\w+")
_WORDS: Final = 2


def parse(file: Path, text: str) -> Findings:
    """Read the file; each line that cannot be a route becomes a warning."""
    findings = Findings(file, Kind.ROUTED_IPS)
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            _read_line(findings, number, stripped)
    return findings


def _read_line(findings: Findings, number: int, line: str) -> None:
    words = _COMMENT.sub("", line).split()
    if len(words) != _WORDS:
        findings.warn(number, f"left out: {quote(line)} is not an address and a network, as in 203.0.113.7 public")
        return
    try:
        route = RouteEntry(read_name(words[1]), parse_routed(words[0]), findings.origin(number))
    except GrammarError as error:
        findings.warn(number, f"left out: {error}")
        return
    findings.routes.append(route)
    if _TAKEN_BEFORE.fullmatch(line) is None:
        findings.warn(number, f"{quote(line)} is imported, though the old hook passed over lines of this form")
