"""What is reported of a configuration that is wrong, word for word, and what one that is right becomes."""

from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from fwdaemon.config import parse
from fwdaemon.config.exposures import FORWARD_KEYS
from fwdaemon.config.model import (
    BackendChoice,
    Config,
    DaemonSettings,
    ForwardEntry,
    MetricsSettings,
    OnStop,
    PortMapping,
)
from fwdaemon.core.types import Endpoint, Gate, Origin, PortRange, Protocol
from tests.unit.test_config_support import MAIN, forward, problems_of, read


def test_nothing_means_the_defaults() -> None:
    assert parse({}) == read("") == Config(DaemonSettings(), ())


def test_every_daemon_key() -> None:
    text = """
    [daemon]
    libvirt = ["qemu:///session", "lxc:///", "qemu+unix:///system?socket=/run/x", "test:///default"]
    backend = "nftables"
    resync = "1500ms"
    on_stop = "remove"
    ip_forward = false
    localhost = true
    label = 0x7f
    gates = ["inet filter forward", "ip6 _a-b c.d/e"]
    uplinks = ["eth0", "zt0.5"]
    behind = ["BANNED", "f2b-*"]
    """
    assert read(text).daemon == DaemonSettings(
        libvirt=("qemu:///session", "lxc:///", "qemu+unix:///system?socket=/run/x", "test:///default"),
        backend=BackendChoice.NFTABLES,
        resync=timedelta(milliseconds=1500),
        on_stop=OnStop.REMOVE,
        ip_forward=False,
        localhost=True,
        label=127,
        gates=(Gate("inet", "filter", "forward"), Gate("ip6", "_a-b", "c.d/e")),
        uplinks=frozenset({"eth0", "zt0.5"}),
        behind=("BANNED", "f2b-*"),
    )


def test_the_control_table() -> None:
    assert read("").control.group == "libvirt"
    assert read('[control]\ngroup = "virt admins"').control.group == "virt admins"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('group = ""', 'group: "" is empty; write the name of a group, or "root" for root only'),
        ('group = "a:b"', 'group: "a:b" is no name of a group; write one that "getent group" shows'),
        ('group = "a\\nb"', 'group: "a\\nb" is no name of a group; write one that "getent group" shows'),
        ("group = 0", 'group: must be a string, not 0; write a string such as "libvirt"'),
        ("groups = 0", 'unknown key "groups"; did you mean "group"?'),
    ],
)
def test_the_control_table_refused(lines: str, problem: str) -> None:
    assert problems_of(f"[control]\n{lines}") == [f"portfwd.toml:2: control: {problem}"]


ANY_FILE = 'write one such as "/var/lib/prometheus/node-exporter/kvm_portfwd.prom"'
ANY_ADDRESS = 'write an address of this host such as "127.0.0.1", or "0.0.0.0" for every one of IPv4'


def test_the_metrics_table() -> None:
    assert read("").metrics == read("[metrics]").metrics == MetricsSettings()
    found = read('[metrics]\ntextfile = "/run/a.prom"\nlisten = "[::1]:9750"').metrics
    assert found == MetricsSettings(Path("/run/a.prom"), Endpoint(ip_address("::1"), 9750))
    assert (found.origin, str(found.listen)) == (Origin(MAIN, 1), "[::1]:9750")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            'textfile = "a.prom"',
            f'textfile: "a.prom" is no absolute path of plain characters; {ANY_FILE}',
        ),
        (
            'textfile = "/run/a.txt"',
            f'textfile: "/run/a.txt" does not end in .prom, so no node exporter would read it; {ANY_FILE}',
        ),
        ("listen = 9750", 'listen: must be a string, not 9750; write "127.0.0.1:9750"'),
        (
            'listen = "::1:9750"',
            'listen: "::1:9750" is no address and port; write "[::1]:9750"',
        ),
        (
            'listen = "127.0.0.1:65536"',
            'listen: "127.0.0.1:65536" is no address and port; write "127.0.0.1:9750"',
        ),
        (
            'listen = "[127.0.0.1]:9750"',
            'listen: "[127.0.0.1]:9750" has brackets around IPv4, where only IPv6 has them; write "127.0.0.1:9750"',
        ),
        (
            'listen = "localhost:9750"',
            'listen: "localhost:9750" has a name where an address belongs; write "127.0.0.1:9750"',
        ),
        (
            'listen = "224.0.0.1:9750"',
            f'listen: "224.0.0.1" is a multicast address, which belongs to no single host; {ANY_ADDRESS}',
        ),
        ("listens = 0", 'unknown key "listens"; did you mean "listen"?'),
    ],
)
def test_the_metrics_table_refused(lines: str, problem: str) -> None:
    assert problems_of(f"[metrics]\n{lines}") == [f"portfwd.toml:2: metrics: {problem}"]


def test_every_forward_key() -> None:
    text = """[[forward]]
    domain = "a\\n--comment \\"x"
    listen = "198.51.100.7"
    interface = "eth0.5"
    sources = ["203.0.113.0/24", "192.0.2.1", "2001:db8:9::/48"]
    address = "192.168.122.50"
    mac = "52-54-00-AB-CD-EF"
    ports = ["81",
             "53:5353/tcp+udp"]
    """
    one, dns, port_81 = PortRange(53, 53), PortRange(5353, 5353), PortRange(81, 81)
    assert read(text).forwards == (
        ForwardEntry(
            domain='a\n--comment "x',
            mappings=(
                PortMapping(port_81, port_81, Protocol.TCP, None, Origin(MAIN, 8)),
                PortMapping(one, dns, Protocol.TCP, None, Origin(MAIN, 9)),
                PortMapping(one, dns, Protocol.UDP, None, Origin(MAIN, 9)),
            ),
            origin=Origin(MAIN, 1),
            listen=(ip_address("198.51.100.7"),),
            interface="eth0.5",
            sources=(ip_network("203.0.113.0/24"), ip_network("192.0.2.1/32"), ip_network("2001:db8:9::/48")),
            address=ip_address("192.168.122.50"),
            mac="52:54:00:ab:cd:ef",
        ),
    )


URI = 'write a local one such as "qemu:///system"'
LABEL = "write a number from 0 to 127 such as 25, without quotes"
MARK = (
    '"mark" is no longer used: connections of forwards carry a label, and marks are left to other programs;'
    " delete this line (the label is 25 unless you write label = NUMBER)"
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("resnyc = 1", 'unknown key "resnyc"; did you mean "resync"?'),
        ("resync = 30", 'resync: must be a string, not 30; write "30s"'),
        ('resync = "500ms"', 'resync: "500ms" is out of range; write a duration from "1s" to "24h"'),
        (
            'resync = "1h30m"',
            'resync: "1h30m" is not a duration here; write "90m"',
        ),
        ("label = -1", f"label: must be one of the 128 labels of a connection, not -1; {LABEL}"),
        ("label = 0x80", f"label: must be one of the 128 labels of a connection, not 128; {LABEL}"),
        ("mark = 0x04000000", MARK),
        ("label = true", f"label: must be an integer, not true; {LABEL}"),
        ("label = nan", f"label: must be an integer, not a float; {LABEL}"),
        ("label = 1979-05-27", f"label: must be an integer, not a date or time; {LABEL}"),
        ('label = "0x1"', f'label: must be an integer, not "0x1"; {LABEL}'),
        ("ip_forward = 1", "ip_forward: must be true or false, not 1; write true without quotes"),
        ('on_stop = "kep"', 'on_stop: "kep" is not one of its values; did you mean "keep"?'),
        ("libvirt = []", 'libvirt: is empty; write at least one URI, ["qemu:///system"]'),
        ("libvirt = {}", 'libvirt: must be an array, not a table; write one such as ["qemu:///system"]'),
        (
            'libvirt = ["qemu:///system", "qemu:///system"]',
            'libvirt[2]: "qemu:///system" is already named on line 2; remove one of the two',
        ),
        (
            'libvirt = ["qemu+ssh:///system"]',
            f'libvirt[1]: "qemu+ssh:///system" leads to libvirt over a network; {URI}',
        ),
        ('libvirt = "qemu://h/system"', f'libvirt: "qemu://h/system" names the remote host "h"; {URI}'),
        ('libvirt = "vbox:///x"', f'libvirt: "vbox:///x" has a scheme other than qemu, lxc, xen, test; {URI}'),
        ('libvirt = "qemu:/system"', f'libvirt: "qemu:/system" is not a libvirt URI; {URI}'),
        ('libvirt = "qemu:///a b"', f'libvirt: "qemu:///a b" has white space or control characters in it; {URI}'),
        (
            'gates = ["bridge a b"]',
            'gates[1]: "bridge a b": "bridge" is no family of a gate; write ip, ip6 or inet',
        ),
        (
            'gates = ["inet filter"]',
            'gates[1]: "inet filter" is not "FAMILY TABLE CHAIN"; write for example "inet filter forward"',
        ),
        (
            'gates = ["ip a;b c"]',
            (
                'gates[1]: "ip a;b c": "a;b" is no nftables name;'
                ' write a letter or "_", then letters, digits, "_", "-", "/" or "."'
            ),
        ),
        (
            'gates = ["ip kvm_portfwd x"]',
            "gates[1]: \"ip kvm_portfwd x\" is a chain of this program's own table; write another program's, or none",
        ),
        ('localhost = "true"', 'localhost: must be true or false, not "true"; write true without quotes'),
        (
            'behind = ["f2b *"]',
            (
                'behind[1]: "f2b *" is no pattern of a chain\'s name; write 1 to 255 printable ASCII characters without'
                ' a blank, as in "f2b-*"'
            ),
        ),
        (
            'behind = ["LIBVIRT_*"]',
            (
                'behind[1]: "LIBVIRT_*" also names libvirt\'s own chain LIBVIRT_FWI, which refuses what forwards lead'
                ' to guests; write the chains that hold bans, as in "f2b-*"'
            ),
        ),
        ('behind = "f2b-*"', 'behind: must be an array, not "f2b-*"; write ["f2b-*"]'),
    ],
)
def test_daemon_refused(line: str, message: str) -> None:
    assert problems_of(f"[daemon]\n{line}") == [f"portfwd.toml:2: daemon: {message}"]


GUEST = 'write the guest\'s own address such as "192.168.122.50", or leave it out to ask libvirt'
RULE_SYNTAX = (
    "has a quote, backslash, wildcard or sign that is syntax in a firewall rule; write the plain name of one interface"
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('prots = ["80"]', 'unknown key "prots"; did you mean "ports"?'),
        (
            '"a\\nb" = 1',
            f'unknown key "a\\nb"; write one of {", ".join(FORWARD_KEYS)}',
        ),
        ("listen = []", "listen: is empty, so nothing would match; name at least one, or remove the whole entry"),
        ("listen = [1]", 'listen[1]: must be a string, not 1; write a string such as "198.51.100.7"'),
        (
            'sources = ["192.0.2.1/24"]',
            'sources[1]: "192.0.2.1/24" is one address with a network\'s prefix; write "192.0.2.1/32"',
        ),
        (
            'sources = ["192.0.2.1", "192.0.2.1/32"]',
            'sources[2]: "192.0.2.1/32" is already named on line 4; remove one of the two',
        ),
        (
            'sources = "192.0.2.0/٢٤"',
            'sources: "192.0.2.0/٢٤" has no valid prefix length; write a number from 0 to 32 after "/"',
        ),
        (
            'sources = "0.0.0.0"',
            'sources: "0.0.0.0" is no client\'s address; write the clients\' network such as "203.0.113.0/24"',
        ),
        (
            'address = "127.0.0.1"',
            f'address: "127.0.0.1" is a loopback address, which leads to the host itself; {GUEST}',
        ),
        ('address = "192.0.2.0/24"', f'address: "192.0.2.0/24" is a network; {GUEST}'),
        ('address = "web1"', f'address: "web1" is not an IP address; {GUEST}'),
        (
            'address = "2001:db8::1"\nlisten = "198.51.100.7"',
            "address: is IPv6 only, but listen is IPv4 only, so nothing could match; write both in one family",
        ),
        (
            'sources = "2001:db8::/32"\nlisten = "198.51.100.7"',
            "sources: is IPv6 only, but listen is IPv4 only, so nothing could match; write both in one family",
        ),
        (
            'sources = "2001:db8::/32"\naddress = "192.168.122.2"',
            (
                "sources: is IPv6 only, but the guest's address is IPv4 only, so nothing could match;"
                " write both in one family"
            ),
        ),
        (
            'mac = "52:54:00:12:34:56"\nnetwork = "default"',
            "mac: picks the guest's interface, as network already does; remove one of the two",
        ),
        (
            'mac = "01:54:00:12:34:56"',
            "mac: \"01:54:00:12:34:56\" is no single interface's MAC address; write the one in the domain's XML",
        ),
        (
            'mac = "52:54"',
            'mac: "52:54" is not a MAC address; write six pairs of hex digits, "52:54:00:12:34:56"',
        ),
        ('interface = "eth*"', f'interface: "eth*" {RULE_SYNTAX}'),
        ('interface = "eth+"', f'interface: "eth+" {RULE_SYNTAX}'),
        ("interface = 'e\"'", f'interface: "e\\"" {RULE_SYNTAX}'),
        ('interface = "e\\\\"', f'interface: "e\\\\" {RULE_SYNTAX}'),
        (
            'interface = "äääääääää"',
            'interface: "äääääääää" has 18 bytes; write an interface name of 1 to 15',
        ),
        ('interface = ".."', 'interface: ".." is no name the kernel accepts; write one that "ip link" shows'),
        ('network = ""', 'network: "" is empty; write the name that virsh shows'),
    ],
)
def test_forward_refused(line: str, message: str) -> None:
    assert problems_of(forward(line)) == [f"portfwd.toml:4: forward 1: {message}"]


NAME_PORTS = 'name the ports that are to be open, ["HOST:GUEST"], or remove the whole entry'


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ("[]", f"ports: is empty; {NAME_PORTS}"),
        ("{}", f"ports: must be an array of strings, not a table; {NAME_PORTS}"),
        ("80", 'ports: must be an array of strings, not 80; write ["80"]'),
        ('"80"', 'ports: must be an array of strings, not "80"; write ["80"]'),
        ("[80]", 'ports[1]: must be a string, not 80; write "80"'),
        ('["1", 1.5]', 'ports[2]: must be a string, not a float; write a string such as "HOST:GUEST"'),
        (
            "[0x" + "f" * 9000 + "]",
            'ports[1]: must be a string, not a huge integer; write a string such as "HOST:GUEST"',
        ),
        (
            '["198.51.100.7:80"]\nlisten = "198.51.100.8"',
            "ports[1]: names an address, as listen does for the whole entry; move it to a [[forward]] of its own",
        ),
        (
            '["198.51.100.7:80/tcp+udp"]\naddress = "2001:db8::1"',
            (
                "ports[1]: is IPv4 only, but the guest's address is IPv6 only, so nothing could match;"
                " write both in one family"
            ),
        ),
        (
            '["198.51.100.7:80"]\nsources = ["2001:db8::/32"]',
            "ports[1]: is IPv4 only, but sources are IPv6 only, so nothing could match; write both in one family",
        ),
    ],
)
def test_ports_refused(ports: str, message: str) -> None:
    assert problems_of(forward(ports=ports)) == [f"portfwd.toml:3: forward 1: {message}"]


def test_missing_keys() -> None:
    assert problems_of("\n[[forward]]") == [
        'portfwd.toml:2: forward 1: has no domain; write domain = "…" with the name or UUID that virsh shows',
        'portfwd.toml:2: forward 1: has no ports; write ports = ["…"] with those that are to be open',
    ]


@pytest.mark.parametrize("name", ["", "a\\u0000", "a" * 256])
def test_impossible_names(name: str) -> None:
    (problem,) = problems_of(f'[[forward]]\ndomain = "{name}"\nports = ["80"]')
    assert problem.isprintable()
