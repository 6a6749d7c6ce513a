"""What conflicts with an exposure on its own host is reported before it hurts, once, and no longer than it is so."""

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.host.conftest import HEAD, Scene, each_backend, entry
from tests.host.test_status import command, status
from tests.lab.daemon import Daemon
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until

pytestmark = each_backend

PORT = 8022
WEB = entry("web", f"{PORT}:80", "WEB4")
OFTEN = HEAD + 'resync = "1s"\n'
TAKES = r" of the host listens there; connections from outside will reach web instead \(/etc/portfwd\.toml:\d+\)"
NATIVE = f"""
table ip theirs {{
    chain first {{
        type nat hook prerouting priority -110; policy accept;
        tcp dport {PORT} dnat to 192.168.122.11:80
    }}
}}
"""


@pytest.fixture
def at_end() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def told(host: Host) -> list[str]:
    """What the status shows of this port."""
    return [problem for problem in status(host)["problems"] if problem.startswith(f"port {PORT}/")]


def said(daemon: Daemon) -> list[str]:
    """What the journal would tell of it."""
    return [line.text for line in daemon.log_lines() if f"port {PORT}/" in line.text]


def trigger(host: Host) -> None:
    """Have the daemon make a full pass."""
    assert command(host, "reload").returncode == 0


@pytest.mark.in_turn
def test_a_process_that_listens(shared_scene: Scene, at_end: ExitStack) -> None:
    scene, host = shared_scene, shared_scene.host
    daemon = scene.daemon(WEB, OFTEN)
    assert told(host) == []
    server = host.place.serve("host", "tcp", PORT)
    at_end.callback(server.stop)
    daemon.wait_log(rf"port {PORT}/tcp: python\S* \(pid \d+\){TAKES}$")
    scene.answers(lambda: host.outside.fetch(f"http://{PUBLIC4}:{PORT}/"), f"web {CLIENT4}")
    (sentence,) = told(host)
    trigger(host)
    assert said(daemon) == [f"warning: {sentence}"]
    checked = command(host, "check")
    assert (checked.returncode, checked.stderr) == (0, f"warning: {sentence}\n")
    server.stop()
    wait_until(lambda: not told(host), "it is no longer told")
    assert len(said(daemon)) == 1
    assert command(host, "check").stderr == ""


@pytest.mark.in_turn
def test_a_rule_of_another_tool_that_ours_comes_before(shared_scene: Scene, at_end: ExitStack) -> None:
    scene, host = shared_scene, shared_scene.host
    daemon = scene.daemon(WEB)
    rule = ["PREROUTING", "-p", "tcp", "--dport", str(PORT), "-j", "DNAT", "--to-destination", "192.168.122.11:80"]
    host.run("iptables", "-w", "-t", "nat", "-A", *rule)
    at_end.callback(host.run, "iptables", "-w", "-t", "nat", "-D", *rule)
    daemon.reload()
    line = daemon.wait_log(rf"port {PORT}/tcp: another rule forwards it too \(in (legacy )?ip nat PREROUTING\)").text
    assert re.search(
        r", but our rule comes first, so connections from outside reach web \(/etc/portfwd\.toml:\d+\)$", line
    )
    scene.answers(lambda: host.outside.fetch(f"http://{PUBLIC4}:{PORT}/"), f"web {CLIENT4}")
    assert command(host, "check").stderr == f"{line}\n"
    at_end.close()
    daemon.reload()
    wait_until(lambda: not told(host), "it is no longer told")


@pytest.mark.in_turn
def test_a_rule_of_another_tool_that_comes_before_ours(shared_scene: Scene, at_end: ExitStack) -> None:
    scene, host = shared_scene, shared_scene.host
    daemon = scene.daemon(WEB, OFTEN)
    scene.answers(lambda: host.outside.fetch(f"http://{PUBLIC4}:{PORT}/"), f"web {CLIENT4}")
    host.run("nft", "-f", "-", stdin=NATIVE)
    at_end.callback(host.run, "nft", "delete", "table", "ip", "theirs")
    line = daemon.wait_log(rf"port {PORT}/tcp: another rule forwards it too \(in ip theirs first\)").text
    assert ", and that comes first, so connections from outside may not reach web (/etc/portfwd.toml:" in line
    scene.refused(lambda: host.outside.fetch(f"http://{PUBLIC4}:{PORT}/"), "the other tool's rule takes it")
    trigger(host)
    assert len(said(daemon)) == 1
    assert command(host, "check").stderr == f"{line}\n"
    at_end.close()
    wait_until(lambda: not told(host), "it is no longer told")
    scene.answers(lambda: host.outside.fetch(f"http://{PUBLIC4}:{PORT}/"), f"web {CLIENT4}")
