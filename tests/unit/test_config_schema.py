"""The JSON schema for editors agrees with the parser wherever a schema can say it."""

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import pytest
import tomli
from jsonschema import Draft202012Validator

import fwdaemon.config
from fwdaemon.config import exposures, sections, sets
from fwdaemon.config.model import BackendChoice, DaemonSettings, OnStop
from fwdaemon.core.types import OnPartition
from tests.unit.test_config_support import forward as entry
from tests.unit.test_config_support import nat as nat_entry
from tests.unit.test_config_support import problems_of
from tests.unit.test_config_support import route as route_entry

SCHEMA_FILE: Final = Path(fwdaemon.config.__file__).parent / "schema.json"
SCHEMA: Final[dict[str, Any]] = json.loads(SCHEMA_FILE.read_text())
VALIDATOR: Final = Draft202012Validator(SCHEMA)
DEFAULT: Final = Path(__file__).parents[2] / "etc" / "portfwd.toml"


def test_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_default_file_is_valid_and_holds_the_defaults() -> None:
    values = tomli.loads(DEFAULT.read_text())
    VALIDATOR.validate(values)
    for table in ("daemon", "control"):
        described = SCHEMA["$defs"][table]["properties"]
        assert {key: item["default"] for key, item in described.items() if "default" in item} == values[table]
    assert values["daemon"]["label"] == DaemonSettings().label


def test_knows_the_same_keys_and_describes_each() -> None:
    for name, keys in (
        ("allow", exposures.ALLOW_KEYS),
        ("control", sections.CONTROL_KEYS),
        ("daemon", sections.DAEMON_KEYS),
        ("forward", exposures.FORWARD_KEYS),
        ("metrics", sections.METRICS_KEYS),
        ("nat", exposures.NAT_KEYS),
        ("route", exposures.ROUTE_KEYS),
        ("set", sets.SET_KEYS),
    ):
        described = SCHEMA["$defs"][name]["properties"]
        assert sorted(described) == sorted(keys)
        assert all(item["description"] for item in described.values())


@pytest.mark.parametrize(
    ("table", "key", "choices"),
    [("daemon", "backend", BackendChoice), ("daemon", "on_stop", OnStop), ("fleet", "on_partition", OnPartition)],
)
def test_knows_the_choices_of_the_code(
    request: pytest.FixtureRequest, table: str, key: str, choices: type[StrEnum]
) -> None:
    """`--refresh-golden` writes them anew."""
    if request.config.getoption("refresh_golden"):
        text, written = SCHEMA_FILE.read_text(), json.dumps([*choices])
        SCHEMA_FILE.write_text(re.sub(rf'("{key}": {{[^}}]*"enum": )\[[^]]*]', rf"\g<1>{written}", text))
    known = json.loads(SCHEMA_FILE.read_text())["$defs"][table]["properties"][key]
    assert known["enum"] == [*choices]


SET: Final = '\n[[set]]\nname = "office"\naddresses = ["203.0.113.0/24"]'

ACCEPTED: Final = (
    "",
    '[daemon]\nlibvirt = "lxc:///"\nresync = "5m"\nlabel = 1\ngates = ["inet filter forward"]',
    '[control]\ngroup = "virt admins"',
    "[metrics]",
    '[metrics]\ntextfile = "/var/lib/prometheus/node exporter/kvm_portfwd.prom"\nlisten = "127.0.0.1:9750"',
    *(f'[metrics]\nlisten = "{listen}"' for listen in ("0.0.0.0:1", "[::]:65535", "192.0.2.1:9750", "[::1]:9750")),
    '[daemon]\nbackend = "nftables"\non_stop = "remove"\nip_forward = false\nlocalhost = true',
    "[daemon]\nkeep_guests_online = true",
    '[[forward]]\ndomain = "web1"\nports = ["80", "443", "2222:22", "5353:53/udp", "198.51.100.7:8443:443"]',
    entry(
        'listen = ["198.51.100.7", "2001:db8::1"]\ninterface = "eth0"\nsources = ["203.0.113.0/24", "2001:db8::/32"]',
        ports='["27015-27030/udp", "30000-30099:40000-40099", "53:53/tcp+udp", "7/sctp"]',
    ),
    entry('address = "192.168.122.50"\nnetwork = "default"', ports='["[2001:db8::1]:1"]').replace(
        "192.168.122.50", "2001:db8::50"
    ),
    entry('mac = "52-54-00-AB-CD-EF"\nsources = "192.0.2.1"'),
    entry('sources = ["set:office"]\ndeny = "192.0.2.1"\nrate = "30/minute"\nmax_open = 20') + SET,
    nat_entry(lines='deny = ["set:office", "2001:db8::/32"]') + SET,
    '[[set]]\nname = "banned"\nexternal = true',
    nat_entry(),
    nat_entry("2001:db8::8", 'assign = "eth0"\naddress = "2001:db8:1::2"\nmac = "52:54:00:12:34:56"'),
    nat_entry(lines='address = "192.168.122.51"\nnetwork = "default"'),
    route_entry(),
    route_entry('["203.0.113.64/29", "203.0.113.80", "2001:db8:1::/64"]', 'proxy = "eth0"'),
    route_entry('"203.0.113.64/29"'),
    '[[allow]]\ndomains = ["ci-*", "we[bB]?"]\nports = ["20000-29999", "80"]\nnetworks = ["default"]\nmax = 1',
    '[[allow]]\ndomains = "*"\nlisten = ["198.51.100.7"]\npublic = ["198.51.100.64/27"]\nassign = "eth0"',
)

REFUSED_BY_BOTH: Final = (
    "x = 1",
    "[[metrics]]",
    "[metrics]\nx = 1",
    '[metrics]\ntextfile = "kvm_portfwd.prom"',
    '[metrics]\ntextfile = "/var/lib/kvm_portfwd.txt"',
    '[metrics]\ntextfile = "/var/lib/.prom"',
    '[metrics]\ntextfile = "/a\\nb.prom"',
    *(f"[metrics]\nlisten = '{listen}'" for listen in ("", ":9750", "127.0.0.1", "::1:9750", "[127.0.0.1]:9750")),
    *(f"[metrics]\nlisten = '{listen}'" for listen in ("localhost:9750", "127.0.0.1:0", "127.0.0.1:09", "[::1]9750")),
    "[metrics]\nlisten = 9750",
    "[forward]",
    "[nat]",
    "[route]",
    "[[nat]]",
    "[[route]]",
    "[[allow]]",
    "[allow]",
    '[[allow]]\ndomains = ["*"]',
    '[[allow]]\ndomains = []\nports = ["80"]',
    '[[allow]]\nports = ["80"]',
    *(f'[[allow]]\ndomains = "*"\nports = ["{ports}"]' for ports in ("80:80", "80/tcp", "*", "1-2-3", "", "080")),
    *(f'[[allow]]\ndomains = "*"\nports = "80"\nmax = {most}' for most in ("0", "65536", "true", '"20"', "1.5")),
    '[[allow]]\ndomains = "*"\nports = "80"\nassign = "eth0"',
    '[[allow]]\ndomains = "*"\nports = "80"\nsources = ["0.0.0.0/0"]',
    "[[set]]",
    '[[set]]\nname = "a"',
    '[[set]]\nname = "a b"\nexternal = true',
    '[[set]]\nname = "a"\nexternal = false',
    '[[set]]\nname = "a"\nexternal = true\nfile = "/a"',
    entry('rate = "30"'),
    entry('rate = "0/day"'),
    entry("max_open = 0"),
    "[[forward]]",
    '[[forward]]\ndomain = "a"',
    '[[forward]]\nports = ["80"]',
    '[[forward]]\ndomain = ""\nports = ["80"]',
    "[control]\nx = 1",
    '[control]\ngroup = ""',
    '[control]\ngroup = "a:b"',
    "[control]\ngroup = 7",
    "[daemon]\nx = 1",
    '[daemon]\nlocalhost = "true"',
    "[daemon]\nkeep_guests_online = 1",
    '[daemon]\nbackend = "legacy"',
    "[daemon]\nlabel = -1",
    "[daemon]\nmark = 67108864",
    "[daemon]\nlabel = 128",
    '[daemon]\nlabel = "1"',
    "[daemon]\nlabel = true",
    "[daemon]\nresync = 30",
    '[daemon]\nresync = "1h30m"',
    "[daemon]\nlibvirt = []",
    '[daemon]\nlibvirt = ["qemu+ssh:///system"]',
    '[daemon]\nlibvirt = ["qemu://host/system"]',
    '[daemon]\nlibvirt = ["qemu:///system", "qemu:///system"]',
    '[daemon]\ngates = ["bridge a b"]',
    '[daemon]\ngates = ["ip kvm_portfwd a"]',
    '[daemon]\ngates = "ip a b"',
    "[daemon]\nip_forward = 1",
    entry(ports='"80"'),
    entry(ports="[80]"),
    entry(ports="[]"),
    *(entry(ports=f'["{port}"]') for port in ("", "80:", ":80", "+80", "080", "0", "80/TCP", "80/tcp,udp", "80-")),
    *(entry(ports=f'["{port}"]') for port in ("٨٠", "[2001:db8::1:80", "2001:db8::1:80", "100000", "80 ", "80/icmp")),
    entry("listen = []"),
    entry('listen = "eth0"'),
    entry('listen = "fe80::1%eth0"'),
    entry("sources = []"),
    entry('sources = "192.0.2.0/255.255.255.0"'),
    entry('address = "web1"'),
    entry('mac = "52:54"'),
    entry('mac = "52:54:00:12:34:56"\nnetwork = "a"'),
    *(entry(f"interface = '{name}'") for name in ("", "eth*", "eth+", "a b", "a/b", "..", 'e"', "e\\", "a" * 16, "-i")),
    '[[nat]]\ndomain = "a"',
    '[[nat]]\npublic = "198.51.100.8"',
    nat_entry("eth0"),
    nat_entry("198.51.100.0/24"),
    nat_entry(lines='assign = "eth*"'),
    nat_entry(lines='ports = ["80"]'),
    nat_entry(lines='mac = "52:54:00:12:34:56"\nnetwork = "a"'),
    '[[route]]\nnetwork = "a"',
    '[[route]]\naddresses = ["203.0.113.64/29"]',
    route_entry("[]"),
    route_entry("[1]"),
    route_entry('["203.0.113.64/255.255.255.248"]'),
    route_entry('["203.0.113.64/29", "203.0.113.64/29"]'),
    route_entry(lines='proxy = "a/b"'),
    route_entry(lines='domain = "a"'),
)

REFUSED_BY_THE_PARSER_ALONE: Final = (
    entry(ports='["443-80"]'),
    entry(ports='["80-90:1-2"]'),
    entry(ports='["65536"]'),
    entry(ports='["80", "80"]'),
    entry('listen = "0.0.0.0"'),
    entry('sources = "192.0.2.1/24"'),
    entry('listen = "198.51.100.7"\naddress = "2001:db8::1"'),
    entry('listen = "198.51.100.7"', ports='["198.51.100.8:80"]'),
    '[daemon]\nresync = "500ms"',
    nat_entry("127.0.0.1"),
    nat_entry(lines='address = "2001:db8::1"'),
    nat_entry() + nat_entry(),
    route_entry('["0.0.0.0/0"]'),
    route_entry('["203.0.113.65/29"]'),
    route_entry('["203.0.64.0/21"]', 'proxy = "eth0"'),
    route_entry('["203.0.113.64/29", "203.0.113.65"]'),
)


@pytest.mark.parametrize(
    ("text", "parser_accepts", "schema_accepts"),
    [
        *((text, True, True) for text in ACCEPTED),
        *((text, False, False) for text in REFUSED_BY_BOTH),
        *((text, False, True) for text in REFUSED_BY_THE_PARSER_ALONE),
        ("[daemon]\nmark = 33554432", True, False),  # as 0.1.0 installed it
    ],
)
def test_verdicts(text: str, parser_accepts: bool, schema_accepts: bool) -> None:  # noqa: FBT001 - a table's columns
    assert (not problems_of(text)) is parser_accepts
    assert VALIDATOR.is_valid(tomli.loads(text)) is schema_accepts
