"""What people and other tools write: configurations, ports, files to import, an address to explain.

Each target takes any bytes. What it raises, besides the errors that its reader promises, is a defect.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from fwdaemon import config
from fwdaemon.config.addresses import parse_guest, parse_listen, parse_public, parse_routed, parse_served, parse_source
from fwdaemon.config.names import parse_gate, parse_interface, parse_mac, parse_name, parse_uri
from fwdaemon.config.ports import parse_ports
from fwdaemon.config.sets import parse_list_file, parse_member, parse_rate, parse_set_name, place_of, read_list
from fwdaemon.core.admission import SourceSet
from fwdaemon.core.text import GrammarError, is_interface_name, label, printable, shown
from fwdaemon.core.types import Family, Origin
from fwdaemon.errors import ConfigError, PortfwdError
from fwdaemon.explain.arrival import UsageError, parse_request
from fwdaemon.importing import hooks_json, iptables_save, ports_script
from fwdaemon.importing.assembling import assemble
from fwdaemon.importing.findings import BrokenFileError, Findings, Kind, recognise
from tests.fuzz.choices import Choices

_FILE = Path("/etc/portfwd.toml")
_LIST = Path("/etc/portfwd.d/blocklist.txt")
_DROP_IN = Path("/etc/portfwd.d/more.toml")
_GRAMMARS: tuple[Callable[[str], object], ...] = (
    parse_ports,
    parse_listen,
    parse_guest,
    parse_served,
    parse_public,
    parse_source,
    parse_routed,
    parse_name,
    parse_interface,
    parse_mac,
    parse_gate,
    parse_uri,
    parse_member,
    parse_rate,
    parse_set_name,
    parse_list_file,
)


def configuration(data: bytes) -> None:
    """Read a main file; after a NUL, which no TOML has, a drop-in."""
    main, _, more = data.partition(b"\0")
    try:
        config.parse({_FILE: main, _DROP_IN: more})
    except ConfigError as error:
        refuse_loud(problem.text for problem in error.problems)


def set_file(data: bytes) -> None:
    """Read a file of a set: all of it or nothing, and each network is found again where it stands."""
    parts, problems = read_list(_LIST, data)
    refuse_loud(problem.text for problem in problems)
    lines = data.decode(errors="replace").split("\n")
    assert all(1 <= problem.line <= len(lines) for problem in problems)
    item = SourceSet("bad", Origin(_FILE, 1), file=_LIST, parts=parts)
    for network in () if problems else item.networks:
        assert item.holds(network[0])
        assert item.holds(network[-1])
        alone, _ = read_list(_LIST, lines[place_of(network, item, data).line - 1].encode())
        assert str(network.network_address) in alone.get((Family.of(network), network.prefixlen), ())


def words(data: bytes) -> None:
    """Read one value of the configuration, or a name from outside."""
    choices = Choices(data)
    grammar, errors = choices.one_of(_GRAMMARS), choices.one_of(("replace", "surrogateescape"))
    text = choices.rest().decode("utf-8", errors)
    try:
        grammar(text)
    except GrammarError as error:
        refuse_loud([str(error)])
    refuse_loud([label(text), shown(text), printable(text)])
    assert not is_interface_name(text) or text.isascii()


def request(data: bytes) -> None:
    """Read what `explain` is asked, and from where."""
    text, separator, source = data.decode("utf-8", "surrogateescape").partition("\n")
    try:
        str(parse_request(text, source if separator else None))
    except UsageError as error:
        refuse_loud([str(error)])


def imported(data: bytes) -> None:
    """Read a file of an older tool; what is made of it has to be accepted."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return
    try:
        findings = _findings(text)
    except BrokenFileError as error:
        refuse_loud([error.problem.text])
        return
    written = assemble([findings], {})
    config.parse({_FILE: written.text})
    refuse_loud(written.text.splitlines())
    assert written.text.splitlines() == written.text.split("\n")[:-1]


def _findings(text: str) -> Findings:
    file = Path("old")
    kind = recognise(file, text)
    if kind is Kind.HOOKS_JSON:
        return hooks_json.parse(file, text, parse_listen("198.51.100.7"))
    if kind is Kind.PORTS_SCRIPT:
        return ports_script.parse_ports_script(file, text, "web")
    if kind is Kind.IPTABLES_SAVE:
        return iptables_save.parse(file, text)
    return ports_script.parse_routed_ips(file, text)


def refuse_loud(lines: Iterable[str]) -> None:
    """See that each text is one line that a terminal shows as it is."""
    for line in lines:
        assert line.isprintable(), line


def drop_in_errors(data: bytes) -> None:
    """Read a drop-in beside a main file that takes what people take first."""
    with suppress(PortfwdError):
        config.parse({_FILE: '[[forward]]\ndomain = "web"\nports = ["80", "443"]\n', _DROP_IN: data})
