"""`hooks.json`: what libvirt-hook-qemu made of it is imported; what iptables refused, or is not understood, is not."""

import json
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.importing.findings import BrokenFileError, Findings
from fwdaemon.importing.hooks_json import parse
from tests.unit.imports import FILE, accepted, forwards, warnings

DEFAULT = IPv4Address("198.51.100.1")

SAMPLE = """\
{
    "admin": {
        "interface": "virbr1",            // of the guest's side
        "private_ip": "192.168.124.10",   /* both styles
                                             of comments */
        "source_ip": "203.0.113.9",
        "port_map": {
            "tcp": [[1100, 3000], 443]
        },
    },
    "node": {
        "private_ip": "192.168.126.2",
        "public_ip": "198.51.100.7",
        "port_map": {
            "udp": [[1101, 80],
                    [1102, 443]]
        }
    },
}
"""


def found(text: str) -> Findings:
    return parse(FILE, text, DEFAULT)


def section(more: str) -> str:
    return f'{{"web": {{"private_ip": "192.168.122.10", "public_ip": "198.51.100.1", {more}}}}}'


def test_the_form_of_the_old_sample_with_its_comments_and_trailing_commas() -> None:
    assert forwards(found(SAMPLE)) == [
        "admin 198.51.100.1:1100/tcp -> 192.168.124.10:3000 from 203.0.113.9/32 at 8",
        "admin 198.51.100.1:443/tcp -> 192.168.124.10:443 from 203.0.113.9/32 at 8",
        "node 198.51.100.7:1101/udp -> 192.168.126.2:80 at 15",
        "node 198.51.100.7:1102/udp -> 192.168.126.2:443 at 16",
    ]
    assert warnings(found(SAMPLE)) == [
        "2: where there is no public_ip, 198.51.100.1 is written: the old tool asked at each start"
    ]
    assert [remark.text for remark in found(SAMPLE).remarks] == [
        'domain "admin": has no public_ip: listens on 198.51.100.1, the address of the default route\'s interface',
        'domain "admin": interface left out: it named the guest\'s side, which is found by itself',
        "where there is no public_ip, 198.51.100.1 is written: the old tool asked at each start",
    ]


@pytest.mark.parametrize(
    "text", ['{"name": "web", "version": 1}', '{"web": {"image": "nginx", "ports": [80]}}', '{"a": [1]}', '{"a": [[]]}']
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(BrokenFileError, match=r"^FILE:1: is JSON, but no domain in it has a private_ip or ports"):
        found(text)


def test_a_domain_with_several_objects() -> None:
    text = """{"web": [
        {"private_ip": "192.168.122.10", "port_map": {"tcp": [80]}},
        {"private_ip": "192.168.122.11", "public_ip": "198.51.100.7", "port_map": {"tcp": [80]}}
    ]}"""
    assert forwards(found(text)) == [
        "web 198.51.100.1:80/tcp -> 192.168.122.10:80 at 2",
        "web 198.51.100.7:80/tcp -> 192.168.122.11:80 at 3",
    ]


def test_a_range_ends_before_the_number_of_its_ports_is_added() -> None:
    text = section('"port_range": [{"init_port": 5000, "ports_num": 10, "protocol": "udp"}]')
    assert forwards(found(text)) == ["web 198.51.100.1:5000-5009/udp -> 192.168.122.10:5000-5009 at 1"]


def test_the_source_held_for_the_port_map_only() -> None:
    text = section(
        '\n"source_ip": "203.0.113.0/24", "port_map": {"tcp": [80]},'
        '\n"port_range": [{"init_port": 5000, "ports_num": 1, "protocol": "tcp"}]'
    )
    assert forwards(found(text)) == [
        "web 198.51.100.1:80/tcp -> 192.168.122.10:80 from 203.0.113.0/24 at 2",
        "web 198.51.100.1:5000/tcp -> 192.168.122.10:5000 at 3",
    ]
    (warning,) = warnings(found(text))
    assert warning == '2: domain "web": source_ip never held for port_range: anyone may still connect there'


@pytest.mark.parametrize(
    ("written", "sources"),
    [
        ('"203.0.113.9, 203.0.113.64/29"', "203.0.113.9/32,203.0.113.64/29"),
        ('"203.0.113.9/24"', "203.0.113.0/24"),
        ('"203.0.113.0/255.255.255.0"', "203.0.113.0/24"),
    ],
)
def test_sources_as_iptables_takes_them(written: str, sources: str) -> None:
    text = section(f'"source_ip": {written}, "port_map": {{"tcp": [80]}}')
    assert forwards(found(text)) == [f"web 198.51.100.1:80/tcp -> 192.168.122.10:80 from {sources} at 1"]


@pytest.mark.parametrize("written", ['""', "null"])
def test_an_empty_source_is_anyone(written: str) -> None:
    text = section(f'"source_ip": {written}, "port_map": {{"tcp": [80]}}')
    assert forwards(found(text)) == ["web 198.51.100.1:80/tcp -> 192.168.122.10:80 at 1"]


def test_without_a_default_route_the_forward_is_on_every_address_and_says_so() -> None:
    text = section('"port_map": {"tcp": [80]}').replace('"public_ip": "198.51.100.1", ', "")
    findings = parse(FILE, text, None)
    assert forwards(findings) == ["web *:80/tcp -> 192.168.122.10:80 at 1"]
    assert "this host has no default route" in warnings(findings)[0]


def test_of_two_keys_of_one_name_the_later_counts_with_its_line() -> None:
    text = (
        '{"web": {"private_ip": "192.168.122.9"},\n'
        ' "w\\u0065b": {"private_ip": "192.168.122.10",\n'
        '"port_map": {"tcp": [80]}}}'
    )
    assert forwards(found(text)) == ["web 198.51.100.1:80/tcp -> 192.168.122.10:80 at 3"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('"port_map": {"tcp": [true]}', "left out: true is no port; write a number"),
        ('"port_map": {"tcp": [NaN]}', "left out: a float is no port; write a number"),
        ('"port_map": {"tcp": [80.0]}', "left out: a float is no port; write a number"),
        ('"port_map": {"tcp": ["http"]}', 'left out: "http" is no port; write a number from 1 to 65535'),
        ('"port_map": {"tcp": [0]}', 'left out: "0" is no port; write a number from 1 to 65535'),
        ('"port_map": {"tcp": [65536]}', 'left out: "65536" is no port; write a number from 1 to 65535'),
        ('"port_map": {"tcp": [-1]}', 'left out: "-1" is no port; write a number from 1 to 65535'),
        ('"port_map": {"tcp": [[1, 2, 3]]}', "left out: 3 ports in one bracket; write one port, or [host, guest]"),
        ('"port_map": {"tcp": 80}', "left out: must be an array of ports, not 80"),
        ('"port_map": {"gre": [80]}', 'left out: "gre" is no protocol with ports; write tcp, udp or sctp'),
        (
            '"port_map": {"icmp": [8]}',
            "icmp left out: it has no ports, so iptables refused the rule and it never worked",
        ),
        ('"port_map": [80]', 'port_map left out: must be an object, not an array; write {"tcp": [80]}'),
        ('"port_range": {"init_port": 1}', "port_range left out: must be an array of objects, not a table"),
        ('"port_range": [{"init_port": 1}]', "left out: must be an object with init_port, ports_num, protocol"),
        (
            '"port_range": [{"init_port": 65530, "ports_num": 10, "protocol": "tcp"}]',
            "left out: 65530 to 65539 is no range of ports; write numbers from 1 to 65535",
        ),
        ('"interface": "virbr0", "port_map": {}', "has no ports; write port_map or port_range"),
        ('"ports": [80], "port_map": {"tcp": []}', '"ports" left out: libvirt-hook-qemu knew no such key'),
        ('"public_ip": "the.host", "port_map": {"tcp": [80]}', 'left out: "the.host" is not an IP address'),
        ('"public_ip": null, "port_map": {"tcp": [80]}', "left out: public_ip must be a string, not null"),
        (
            '"source_ip": "office", "port_map": {"tcp": [80]}',
            'port_map left out, as it is not known who may connect: "office" is not an IP address',
        ),
    ],
)
def test_what_never_worked_or_is_not_understood_is_left_out_with_a_warning(more: str, said: str) -> None:
    findings = found(section(more))
    assert forwards(findings) == []
    assert len(warnings(findings)) == 1
    assert warnings(findings)[0].startswith(f'1: domain "web": {said}')


def test_without_the_guests_address_nothing_is_imported() -> None:
    findings = found('{"web": {"port_map": {"tcp": [80]}}, "b": 7}')
    assert forwards(findings) == []
    assert warnings(findings) == [
        '1: domain "web": left out: has no private_ip; write the guest\'s address',
        '1: domain "b": left out: must be an object, not 7; write private_ip and port_map in braces',
    ]


def test_digits_in_quotes_are_a_port_as_they_were_to_iptables() -> None:
    text = section('"port_map": {"tcp": [["8080", 80]]}')
    assert forwards(found(text)) == ["web 198.51.100.1:8080/tcp -> 192.168.122.10:80 at 1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"web": {\n"private_ip": }}', "FILE:2: is not valid JSON: Unexpected"),
        ('{"web": {\n', "FILE:2: is not valid JSON: Unexpected end of input"),
        ("[1, 2]", "FILE:1: is JSON, but no object of domains"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "FILE:1: nests brackets too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "FILE:1: has a number with too many digits"),
    ],
)
def test_what_is_not_json_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(BrokenFileError, match="FILE") as refused:
        found(text)
    assert str(refused.value).startswith(said)


def test_hostile_names() -> None:
    names = ['a"b', "a\nb", "x\u001b[31m", "# [[forward]]", "a*", "\u0000", "\ud800", "x" * 300, "", "k" * 20_000]
    section = {"private_ip": "192.168.122.10", "port_map": {"tcp": [1]}}
    text = json.dumps({name: dict(section, port_map={"tcp": [n]}) for n, name in enumerate(names, 1)})
    findings = found(text)
    config = accepted([findings])
    assert [entry.domain for entry in config.forwards] == names[:5]
    assert not any(entry.is_pattern for entry in config.forwards)
    assert len(warnings(findings)) == 6


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
VALUE = JSON | st.sampled_from(
    ["192.168.122.10", "198.51.100.1", "2001:db8::1", [80], [[1, 2]], {"tcp": [80, [81, 2]]}]
)
KEY = st.sampled_from(["private_ip", "public_ip", "source_ip", "port_map", "port_range", "interface", "x"])
SECTION = st.dictionaries(KEY, VALUE, max_size=5) | JSON


@given(st.dictionaries(st.text(max_size=9), SECTION | st.lists(SECTION, max_size=2), max_size=3))
def test_any_structure_gives_a_configuration_that_is_accepted(values: dict[str, object]) -> None:
    known = {"web": {"private_ip": "192.168.122.10"}}
    accepted([found(json.dumps(known | values))])


@given(st.text(alphabet='{}[]:,"\\/*ab1 \n', max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        findings = found(text)
    except BrokenFileError:
        return
    accepted([findings])
