"""What the shared table says on one host, beside the files of that host."""

import stat
from ipaddress import ip_address
from pathlib import Path

import pytest

from fwdaemon.config import parse
from fwdaemon.config.model import Config, NatEntry
from fwdaemon.core.types import FleetSettings, OnPartition
from fwdaemon.errors import ConfigError
from fwdaemon.fleet.table import Item, KeptTable, Table, entry_key, with_kept_table, with_table

MAIN = Path("/etc/portfwd.toml")
SETTINGS = FleetSettings(("https://192.0.2.11:2379",))
FLEET = '[fleet]\netcd = ["https://192.0.2.11:2379"]\n'


def table(**texts: str) -> Table:
    return Table.of("/p", [Item(entry_key("/p", name), text.encode(), 5) for name, text in texts.items()])


def host(text: str = "") -> Config:
    return parse({MAIN: FLEET + text})


def together(files: str, **texts: str) -> tuple[Config, dict[str, str]]:
    config = host(files)
    merged, gone = with_table(config, table(**texts).read(config, MAIN))
    return merged, {str(origin): str(taker) for origin, taker in gone.items()}


def forward(domain: str, port: str, more: str = "") -> str:
    return f'[[forward]]\ndomain = "{domain}"\nports = ["{port}"]\n{more}'


def refused(config: Config, **texts: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        table(**texts).read(config, MAIN)
    return [str(problem) for problem in error.value.problems]


def test_entries_of_the_table_come_after_those_of_files() -> None:
    merged, gone = together(
        forward("a", "80"), web=forward("b", "81"), mail='[[nat]]\ndomain="m"\npublic="198.51.100.8"\n'
    )
    assert [str(entry.origin) for entry in merged.entries] == [f"{MAIN}:3", "etcd:web:1", "etcd:mail:3"]
    assert gone == {}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (forward("a", "80"), forward("b", "80")),
        ('[[nat]]\ndomain = "a"\npublic = "198.51.100.8"\n', '[[nat]]\ndomain = "b"\npublic = "198.51.100.8"\n'),
        (
            '[[route]]\nnetwork = "a"\naddresses = "198.51.100.0/28"\n',
            '[[nat]]\ndomain = "b"\npublic = "198.51.100.8"\n',
        ),
        (
            '[[nat]]\ndomain = "a"\npublic = "198.51.100.8"\n',
            '[[route]]\nnetwork = "b"\naddresses = "198.51.100.0/28"\n',
        ),
        (
            '[[route]]\nnetwork = "a"\naddresses = "2001:db8::/64"\n',
            '[[route]]\nnetwork = "b"\naddresses = "2001:db8::/60"\n',
        ),
    ],
)
def test_what_a_file_claims_is_left_out_of_the_table_on_this_host(file: str, text: str) -> None:
    merged, gone = together(file, web=text)
    assert [str(entry.origin.file) for entry in merged.entries] == [str(MAIN)]
    assert {origin.rpartition(":")[0] for origin in gone} == {"etcd:web"}
    assert {taker.rpartition(":")[0] for taker in gone.values()} == {str(MAIN)}


def test_a_set_of_a_file_goes_before_one_of_the_table() -> None:
    office = '[[set]]\nname = "office"\naddresses = "203.0.113.0/24"\n'
    merged, _ = together(
        office, web=office.replace("203.0.113", "192.0.2") + forward("b", "80", 'deny = "set:office"\n')
    )
    assert [(item.name, str(item.origin.file)) for item in merged.sets] == [("office", str(MAIN))]


def test_entries_of_two_texts_must_not_claim_the_same() -> None:
    (problem,) = refused(host(), web=forward("b", "80"), web2=forward("c", "80"))
    assert problem.startswith('etcd:web2:3: domain "c": *:80/tcp is already claimed at etcd:web:3 for domain "b"; ')


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[daemon]\n", "[daemon] does not belong in a drop-in file"),
        (FLEET, "[fleet] does not belong in a drop-in file"),
        (
            '[[allow]]\ndomains = ["ci-*"]\nports = ["20000"]\n',
            "[[forward]], [[nat]], [[route]] and [[set]] only; move this [[allow]] to the file of each host",
        ),
        (
            '[[set]]\nname = "a"\nfile = "/etc/shadow"\n',
            'set "a": a file is on one host alone; write addresses = […] in its place',
        ),
        (forward("b", "auto:22"), 'write auto_ports = "20000-29999" in [daemon] of /etc/portfwd.toml'),
        (forward("b", "80", 'deny = "set:x"\n'), 'no set is called "x"'),
        ("domain = 1\n", "domain is in no table; write"),
    ],
)
def test_what_the_table_cannot_hold(text: str, what: str) -> None:
    problems = refused(host(), web=text)
    assert any(what in problem for problem in problems)
    assert all(problem.startswith("etcd:web:") for problem in problems)


@pytest.mark.parametrize("name", ["a/b", "..", "-x", "a b\n", "é", "x" * 65, ""])
def test_a_name_that_is_none_is_told_and_harmless(name: str) -> None:
    (problem,) = refused(host(), **{name: forward("b", "80")})
    assert problem.isprintable()
    assert ":1: is no name of an entry" in problem


def test_other_keys_and_revisions_count() -> None:
    key = entry_key("/p", "web")
    first = Table.of("/p", [Item(key, b"", 5), Item(b"/p/hosts/x", b"", 6), Item(b"/p2/entries/y", b"", 7)])
    assert (first.revision, [*first.texts]) == (5, ["web"])
    assert Table.of("/p", [Item(key, b"", 5)]) == first
    assert Table.of("/p", [Item(key, b"", 8)]).digest != first.digest
    assert Table.of("/p", [Item(key + b"b", b"", 5)]).digest != first.digest


def test_the_last_good_table_is_kept_for_root_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    state, shared = tmp_path / "state", Table.of(SETTINGS.prefix, [Item(entry_key(SETTINGS.prefix, "web"), b"#", 5)])
    kept = KeptTable(state)
    assert kept.kept(SETTINGS) is None
    kept.keep(shared)
    assert kept.kept(SETTINGS) == shared
    assert kept.kept(FleetSettings(SETTINGS.etcd, "/other")) is None
    file = state / "fleet-table.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("{")
    assert kept.kept(SETTINGS) is None


def test_commands_without_a_daemon_read_the_kept_table(tmp_path: Path) -> None:
    text = b'[[nat]]\ndomain = "mail"\npublic = "198.51.100.8"\n'
    KeptTable(tmp_path).keep(Table.of(SETTINGS.prefix, [Item(entry_key(SETTINGS.prefix, "mail"), text, 5)]))
    (entry,) = with_kept_table(host(), MAIN, tmp_path).entries
    assert isinstance(entry, NatEntry)
    assert (entry.public, str(entry.origin)) == (ip_address("198.51.100.8"), "etcd:mail:3")
    assert with_kept_table(parse({MAIN: ""}), MAIN, tmp_path).entries == ()


def test_the_settings_of_a_fleet() -> None:
    text = f"""{FLEET}prefix = "/a/b"
on_partition = "keep"
ca = "/etc/ca.pem"
user = "host"
password_file = "/etc/secret"
"""
    wanted = FleetSettings(SETTINGS.etcd, "/a/b", OnPartition.KEEP, Path("/etc/ca.pem"), "host", Path("/etc/secret"))
    assert parse({MAIN: text}).fleet == wanted
    assert parse({MAIN: FLEET}).fleet == SETTINGS
    assert parse({MAIN: ""}).fleet is None
    for local in ("http://127.0.0.1:2379", "http://[::1]:2379", "http://localhost:2379"):
        assert parse({MAIN: f'[fleet]\netcd = "{local}"\n'}).fleet == FleetSettings((local,))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("", 'does not say where etcd is; write etcd = ["https://192.0.2.11:2379"]'),
        ("etcd = []", 'etcd: is empty; write at least one URL, ["https://192.0.2.11:2379"]'),
        (
            'etcd = ["http://192.0.2.11:2379"]',
            'would let anyone on the way open ports; have etcd use TLS, and write "https://192.0.2.11:2379"',
        ),
        ('etcd = ["192.0.2.11"]', '"192.0.2.11" is no URL of a member of etcd; write "https://192.0.2.11:2379"'),
        ('etcd = ["etcd1:2380"]', '"etcd1:2380" is no URL of a member of etcd; write "https://etcd1:2380"'),
        ('etcd = ["https://a:99999"]', 'no URL of a member of etcd; write "https://192.0.2.11:2379"'),
        ('etcd = ["https://a:1"]\nprefix = "portfwd/"', '"portfwd/" is no prefix of keys; write "/portfwd"'),
        ('etcd = ["https://a:1"]\non_partition = "leave"', 'write "keep"'),
        ('etcd = ["https://a:1"]\nuser = "x"', 'user: goes with password_file; write password_file = "/etc/'),
        ('etcd = ["https://a:1"]\npassword_file = "/x"', 'password_file: goes with user; write user = "portfwd"'),
        ('etcd = ["https://a:1"]\nca = "ca.pem"', '"ca.pem" is no absolute path of plain characters'),
        ('etcd = ["https://a:1"]\npassword = "x"', 'unknown key "password"'),
    ],
)
def test_settings_that_are_wrong(keys: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({MAIN: f"[fleet]\n{keys}\n"})
    assert problem in str(error.value)
