"""The forwards that the benchmark measures are the same in our configuration and in hook scripts' rules."""

from pathlib import Path

import pytest

from bench.forwards import FIRST_PORT, LAST, PUBLIC, SERVER, STREAM_PORT, config, hook_forwards, last_port
from bench.hook_scripts import HookForward, chains, commands, no_chains, restore_text
from fwdaemon import config as configuration
from fwdaemon.config.model import Config

FORWARD = HookForward("198.51.100.1", 10001, "192.168.122.10", 80)


def loaded(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "portfwd.toml"
    path.write_text(text, encoding="utf-8")
    return configuration.load(path)


def ways(loaded: Config) -> set[tuple[int, str, int]]:
    """Each port of the host, and where it leads."""
    return {
        (mapping.host.first, str(entry.address), mapping.guest.first)
        for entry in loaded.forwards
        for mapping in entry.mappings
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", [1, 10, 11, 137])
def test_hook_scripts_get_the_forwards_of_our_configuration(tmp_path: Path, size: int, *, stream: bool) -> None:
    ours = ways(loaded(tmp_path, config(size, stream=stream)))
    hooks = {(each.port, each.guest, each.guest_port) for each in hook_forwards(size, stream=stream)}
    assert ours == hooks
    assert len(ours) == size + stream


def test_the_last_forward_leads_to_the_server(tmp_path: Path) -> None:
    last = loaded(tmp_path, config(100)).forwards[-1]
    assert last.domain == LAST
    assert (last_port(100), SERVER, 80) in ways(loaded(tmp_path, config(100)))
    assert hook_forwards(100)[-1] == HookForward(PUBLIC, last_port(100), SERVER, 80)


def test_ten_thousand_ports_keep_off_those_of_clients_and_of_the_transfer() -> None:
    ports = {each.port for each in hook_forwards(10000)}
    assert (min(ports), max(ports)) == (FIRST_PORT, 20000)
    assert STREAM_PORT not in ports


def test_a_forward_is_four_processes() -> None:
    to_guest = "-p tcp -d 198.51.100.1 --dport 10001 -j DNAT --to-destination 192.168.122.10:80"
    assert [" ".join(argv) for argv in commands("iptables", [FORWARD])] == [
        f"iptables -t nat -A HOOK_PRE {to_guest}",
        f"iptables -t nat -A HOOK_OUT {to_guest}",
        "iptables -t nat -A HOOK_POST -s 192.168.122.10 -d 192.168.122.10 -p tcp --dport 80 -j MASQUERADE",
        "iptables -t filter -A HOOK_FWD -d 192.168.122.10 -p tcp --dport 80 -j ACCEPT",
    ]


def test_all_at_once_is_the_same_rules_by_table() -> None:
    one_by_one = [" ".join(argv[3:]) for argv in commands("iptables", [FORWARD])]
    text = restore_text([FORWARD])
    assert [line for line in text.splitlines() if line.startswith("-A")] == one_by_one
    assert [line for line in text.splitlines() if not line.startswith("-A")] == ["*nat", "COMMIT", "*filter", "COMMIT"]


def test_what_is_linked_is_unlinked() -> None:
    linked = [line.split()[1::3] for line in chains().splitlines() if line.startswith("-I")]
    unlinked = [line.split()[1::2] for line in no_chains().splitlines() if line.startswith("-D")]
    assert [chain for chain, *_ in linked] == [chain for chain, *_ in unlinked]
    assert len(linked) == 4
