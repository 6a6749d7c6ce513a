"""Forwarding that the daemon turns on reaches no inner network beside the guests, even without its record."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.confinement import (
    ECHO,
    GUEST,
    GUEST6,
    INNER,
    INNER6,
    INNER_GATEWAY,
    INNER_GATEWAY6,
    RECORD,
    RECORD_ETH0,
    SWITCH,
    SWITCH6,
    SWITCH_ETH0,
    WEB,
    WEB6,
    command,
    flush_everything,
    flush_ours,
    is_silent,
    locked,
    plug,
    reached,
    serves,
    tells_of_eth0,
    tells_of_it,
)
from tests.host.conftest import each_backend, entry
from tests.host.test_reach import url
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, CLIENT6, PUBLIC4, PUBLIC6, Host
from tests.lab.place import wait_until
from tests.lab.probe import Outcome
from tests.lab.release import LibvirtFirewall

pytestmark = [each_backend, pytest.mark.turns_on(LibvirtFirewall.NFTABLES)]


@pytest.fixture
def inner(host: Host) -> Iterator[None]:
    """Two machines on a bridge of the host's own; what is outside sends packets for them to the host."""
    with ExitStack() as at_end:
        before = host.run("sysctl", SWITCH, SWITCH6).stdout
        at_end.callback(lambda: host.run("sysctl", "-p", "-", stdin=before))
        host.run("ip", "link", "add", "lan0", "type", "bridge")
        at_end.callback(host.run, "ip", "link", "del", "lan0")
        for address in (f"{INNER_GATEWAY}/24", f"{INNER_GATEWAY6}/64"):
            host.run("ip", "address", "add", address, "dev", "lan0", *(["nodad"] if ":" in address else []))
        host.run("ip", "link", "set", "lan0", "up")
        for number, name in enumerate(("inner", "beside"), 2):
            plug(host, name, number)
            at_end.callback(host.run, "ip", "netns", "del", name)
            # A connection that was ended keeps the namespace for a while, and its link with it.
            at_end.callback(host.run, "ip", "link", "del", name)
        for subnet, gateway in (("192.0.2.0/24", PUBLIC4), ("2001:db8:2::/64", PUBLIC6)):
            host.outside.run(["ip", "route", "replace", subnet, "via", gateway])
            at_end.callback(host.outside.run, ["ip", "route", "del", subnet])
        yield


@pytest.fixture(params=["isolated", pytest.param("nat", marks=pytest.mark.in_turn)])
def mode(request: pytest.FixtureRequest, network: MakeNetwork, lxc_guest: MakeLxcGuest) -> str:
    """A guest on a network for which libvirt needs no forwarding, and on one for which it does."""
    mode: str = request.param
    network("confined", "192.168.140.0/24", "2001:db8:140::/64", mode=mode)
    lxc_guest("confined", Link("confined", (f"{GUEST}/24", f"{GUEST6}/64")))
    return mode


@pytest.mark.usefixtures("inner")
def test_an_inner_network_stays_unreachable(host: Host, mode: str, daemon: StartDaemon) -> None:
    host.run("sysctl", "-w", f"{SWITCH}=0")
    running = daemon(WEB)
    running.wait_log(f"^IPv4 forwarding was off before kvm-portfwd: .*{SWITCH} = 1 in /etc/sysctl.d")
    serves(host)
    assert not reached(host)
    tells_of_it(host)
    host.libvirt.restart()
    running.wait_log("answers again")
    serves(host)
    assert not reached(host)
    running.kill()
    host.run("rm", "-f", RECORD)
    assert not reached(host)
    tells_of_it(host)
    running = daemon(WEB)
    serves(host)
    assert not reached(host)
    assert "4" in host.run("cat", RECORD).stdout
    assert "nothing to change" in host.portfwd("plan").stdout
    host.run("rm", "-f", RECORD)
    running.reload()
    wait_until(lambda: "4" in host.run("sh", "-c", f"cat {RECORD} || true").stdout, "the record is written again")
    running.terminate()
    said = host.portfwd("flush").stdout
    needed = mode == "nat"
    assert ("networks: confined" if needed else f"set {SWITCH} = 0 again") in said
    assert host.run("sysctl", "-n", SWITCH).stdout == f"{int(needed)}\n"
    assert reached(host) is needed


@pytest.mark.in_turn
@pytest.mark.usefixtures("inner", "mode")
@pytest.mark.parametrize("mode", ["isolated"], indirect=True)
def test_what_refuses_is_there_again_once_the_daemon_is_if_rules_were_flushed_meanwhile(
    host: Host, daemon: StartDaemon
) -> None:
    """Until then, nothing does: what SECURITY.md says it does not protect against."""
    host.run("sysctl", "-w", f"{SWITCH}=0")
    running = daemon(WEB)
    serves(host)
    assert not reached(host)
    running.terminate()
    flush_ours(host)
    assert reached(host)
    running = daemon(WEB)
    serves(host)
    assert not reached(host)
    running.terminate()
    assert f"set {SWITCH} = 0 again" in command(host, "flush")


@pytest.mark.usefixtures("inner", "mode")
@pytest.mark.parametrize("mode", ["isolated"], indirect=True)
@pytest.mark.parametrize(
    ("running", "of_host", "of_eth0"),
    [
        pytest.param(True, 0, 1, id="running"),
        pytest.param(False, 0, 1, id="stopped", marks=pytest.mark.in_turn),
        pytest.param(True, 1, 0, id="off on one interface", marks=pytest.mark.in_turn),
    ],
)
def test_what_passed_while_the_rules_were_gone_is_ended(  # noqa: PLR0913  its cases have that many sides
    host: Host, daemon: StartDaemon, request: pytest.FixtureRequest, *, running: bool, of_host: int, of_eth0: int
) -> None:
    request.addfinalizer(lambda: host.run("sysctl", "-w", f"{SWITCH_ETH0}=1"))
    host.run("sysctl", "-w", f"{SWITCH}={of_host}", f"{SWITCH_ETH0}={of_eth0}")
    server = host.popen("ip", "netns", "exec", "inner", host.python, "-uc", ECHO)
    request.addfinalizer(server.stop)
    server.wait_line("^ready$")
    held = daemon(WEB)
    serves(host)
    if running:
        with locked(host):
            held.process.send(signal.SIGSTOP)
            flush_ours(host)
    else:
        held.terminate()
        flush_ours(host)
    with host.outside.connect(INNER, 81) as connection:
        connection.sendall(b"passes")
        assert connection.recv(100) == b"passes"
        # A start may have ended what an earlier test left.
        seen = len(held.log_lines()) if running else 0
        if running:
            held.process.send(signal.SIGCONT)
        else:
            held = daemon(WEB)
        held.wait_log("^ended 1 connections that passed while rules were missing", start=seen)
        # The line may be of what an earlier test still sends.
        wait_until(lambda: is_silent(connection), "it is ended")
    serves(host)


@pytest.fixture
def around(host: Host) -> Iterator[None]:
    """What is outside sends packets for the guest itself to the host, and in the end libvirt has its rules again."""
    before = host.run("sysctl", SWITCH).stdout
    host.outside.run(["ip", "route", "replace", "192.168.140.0/24", "via", PUBLIC4])
    yield
    host.outside.run(["ip", "route", "del", "192.168.140.0/24"])
    host.libvirt.restart()
    host.run("sysctl", "-p", "-", stdin=before)


@pytest.mark.usefixtures("mode", "around")
def test_a_guest_stays_unreachable_where_libvirts_rules_were_flushed(host: Host, daemon: StartDaemon) -> None:
    """Libvirt does not put them back, and the host forwards since an exposure needs it."""
    host.run("sysctl", "-w", f"{SWITCH}=0")
    running = daemon(WEB)
    serves(host)
    flush_everything(host)
    running.wait_log("^restored ")
    serves(host)
    assert host.run("sysctl", "-n", SWITCH).stdout == "1\n"
    # Nothing listens there: a client that gets in is refused by the guest.
    assert host.outside.tcp(GUEST, 22, timeout=0.5).outcome is Outcome.TIMED_OUT
    assert host.outside.tcp(GUEST, 80, timeout=0.5).outcome is Outcome.TIMED_OUT


@pytest.mark.in_turn
@pytest.mark.usefixtures("inner", "mode")
@pytest.mark.parametrize("mode", ["isolated"], indirect=True)
def test_an_inner_network_stays_unreachable_by_one_interface(
    host: Host, daemon: StartDaemon, request: pytest.FixtureRequest
) -> None:
    host.run("sysctl", "-w", f"{SWITCH}=1", f"{SWITCH_ETH0}=0")
    request.addfinalizer(lambda: host.run("sysctl", "-w", f"{SWITCH_ETH0}=1"))
    running = daemon(WEB)
    serves(host)
    assert not reached(host)
    tells_of_eth0(host)
    running.kill()
    host.run("rm", "-f", RECORD_ETH0)
    assert not reached(host)
    tells_of_eth0(host)
    running = daemon(WEB)
    serves(host)
    assert not reached(host)
    assert "eth0" in host.run("cat", RECORD_ETH0).stdout
    running.kill()
    host.run("rm", "-f", RECORD_ETH0)
    command(host, "flush")
    assert host.run("sysctl", "-n", SWITCH, SWITCH_ETH0).stdout == "1\n0\n"
    assert not reached(host)


@pytest.mark.in_turn
@pytest.mark.usefixtures("inner", "mode")
@pytest.mark.parametrize("mode", ["nat"], indirect=True)
def test_an_inner_network_that_was_reachable_stays_so(host: Host, daemon: StartDaemon) -> None:
    host.run("sysctl", "-w", f"{SWITCH}=1")
    assert reached(host)
    running = daemon(WEB)
    serves(host)
    assert reached(host)
    assert "forwarding" not in command(host, "status")
    assert json.loads(command(host, "explain", f"{INNER}:80", "--from", CLIENT4, "--json"))["cause"] != "confined"
    running.terminate()
    host.portfwd("flush")
    assert reached(host)


@pytest.mark.in_turn
@pytest.mark.usefixtures("inner", "mode")
@pytest.mark.parametrize("mode", ["isolated"], indirect=True)
def test_the_administrator_takes_forwarding_over(host: Host, daemon: StartDaemon) -> None:
    host.run("sysctl", "-w", f"{SWITCH}=0")
    running = daemon(WEB)
    serves(host)
    running.reload_with(WEB.replace("[daemon]\n", "[daemon]\nip_forward = false\n"))
    running.wait_log(f"^set {SWITCH} = 0 again")
    host.run("sysctl", "-w", f"{SWITCH}=1")
    wait_until(lambda: reached(host), "the host is a router")
    serves(host)


@pytest.mark.in_turn
@pytest.mark.usefixtures("inner")
def test_a_stop_that_removes_turns_it_off(host: Host, mode: str, daemon: StartDaemon) -> None:
    host.run("sysctl", "-w", f"{SWITCH}=0")
    running = daemon(WEB.replace("[daemon]\n", '[daemon]\non_stop = "remove"\n'))
    serves(host)
    running.terminate()
    needed = mode == "nat"
    running.wait_log("networks: confined" if needed else f"^set {SWITCH} = 0 again")
    assert host.run("sysctl", "-n", SWITCH).stdout == f"{int(needed)}\n"
    assert reached(host) is needed


@pytest.mark.in_turn
@pytest.mark.usefixtures("inner", "mode")
@pytest.mark.parametrize("mode", ["isolated"], indirect=True)
def test_an_inner_network_of_ipv6_stays_unreachable(host: Host, daemon: StartDaemon) -> None:
    host.run("sysctl", "-w", f"{SWITCH6}=1")
    wait_until(lambda: reached(host, INNER6), "a router leads there")
    host.run("sysctl", "-w", f"{SWITCH6}=0")
    running = daemon(WEB6)
    wait_until(lambda: host.outside.fetch(url(PUBLIC6, 8000)).text == f"confined {CLIENT6}", "the guest answers")
    assert not reached(host, INNER6)
    assert json.loads(command(host, "explain", f"[{INNER6}]:80", "--from", CLIENT6, "--json"))["cause"] == "confined"
    running.terminate()
    assert f"set {SWITCH6} = 0 again" in command(host, "flush")
    assert not reached(host, INNER6)


@pytest.mark.in_turn
@pytest.mark.usefixtures("inner", "mode")
@pytest.mark.parametrize("mode", ["isolated"], indirect=True)
def test_where_no_record_can_be_written_the_rules_are_one(
    host: Host, daemon: StartDaemon, request: pytest.FixtureRequest
) -> None:
    host.run("mkdir", "-p", "/run/kvm-portfwd")
    host.run("mount", "-t", "tmpfs", "-o", "size=4k", "full", "/run/kvm-portfwd")
    request.addfinalizer(lambda: host.run("umount", "/run/kvm-portfwd"))
    host.run("sh", "-c", "head -c 4096 /dev/zero > /run/kvm-portfwd/full")
    host.run("sysctl", "-w", f"{SWITCH}=0")
    running = daemon(WEB)
    running.wait_log(f"cannot write {RECORD} .No space left")
    serves(host)
    assert not reached(host)
    running.kill()
    running = daemon(WEB)
    serves(host)
    assert not reached(host)
    running.terminate()
    assert f"set {SWITCH} = 0 again" in command(host, "flush")


@pytest.mark.on(LibvirtFirewall.LEGACY)
@pytest.mark.usefixtures("inner", "mode")
@pytest.mark.parametrize("mode", ["isolated"], indirect=True)
def test_forwarding_stays_off_where_the_rules_that_refuse_cannot_be_made(
    host: Host, daemon: StartDaemon, request: pytest.FixtureRequest
) -> None:
    """The legacy tables of IPv6 lack a target that the rules need; IPv4 does not."""
    extension = host.run("sh", "-c", "ls /usr/lib/*/xtables/libip6t_REJECT.so").stdout.strip()
    host.run("mount", "--bind", "/dev/null", extension)
    request.addfinalizer(lambda: host.run("umount", extension))
    host.run("sysctl", "-w", f"{SWITCH}=0", f"{SWITCH6}=0")
    running = daemon(WEB + entry("confined", "8006:80", GUEST6))
    running.wait_log("IPv6 forwarding stays off: the rules .* are not there")
    serves(host)
    assert host.run("sysctl", "-n", SWITCH6).stdout == "0\n"
    assert not reached(host, INNER6)
    assert not reached(host)


@pytest.mark.in_turn
@pytest.mark.usefixtures("inner", "mode")
@pytest.mark.parametrize("mode", ["isolated"], indirect=True)
def test_frames_within_one_bridge_pass(host: Host, daemon: StartDaemon, request: pytest.FixtureRequest) -> None:
    """With br_netfilter they pass the forward chains, as if the host routed them."""
    host.run("sysctl", "-w", f"{SWITCH}=0", "net.bridge.bridge-nf-call-iptables=1")
    request.addfinalizer(lambda: host.run("sysctl", "-w", "net.bridge.bridge-nf-call-iptables=0"))
    daemon(WEB)
    serves(host)
    assert not reached(host)
    host.run("ip", "netns", "exec", "beside", "busybox", "ping", "-c", "1", "-W", "5", INNER)
