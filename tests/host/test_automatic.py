"""Patterns and automatic ports: answered through, kept over restarts, and found by `kvm-portfwd port`."""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.host.conftest import HEAD, Scene, each_backend
from tests.host.test_conflicts import OFTEN
from tests.host.test_status import status
from tests.host.typed import typed
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import Process, wait_until

pytestmark = each_backend

AUTO: Final = HEAD + 'auto_ports = "20000-20009"\n'
ENTRIES: Final = """
[[forward]]
domain = "[wn]e*"
ports = ["auto:80", "8080:80"]

[[forward]]
domain = "far"
address = "FAR4"
ports = ["auto:80", "auto:22"]
"""
# As many ports as the test has uses for.
FOUR: Final = range(20010, 20014)
PATTERN: Final = '[[forward]]\ndomain = "we*"\nports = ["auto:80"]\n'
# What has been assigned, in the state directory and beside it.
RECORDS: Final = ("/var/lib/kvm-portfwd/auto-ports.json", "/run/kvm-portfwd/auto-ports.json")
GUESTS: Final = ("web", "neighbour", "far")
MANUAL: Final = Path(__file__).parents[2] / "man" / "kvm-portfwd.8"


def port(host: Host, *words: str) -> str:
    return host.portfwd("port", *words, check=False).stdout


def at(port: int) -> str:
    return f"http://{PUBLIC4}:{port}/"


@pytest.mark.in_turn
def test_each_domain_has_a_port_of_its_own_that_outlasts_it_and_the_daemon(scene: Scene) -> None:
    outside = scene.host.outside
    daemon = scene.daemon(ENTRIES, AUTO)
    wait_until(lambda: all(port(scene.host, guest, "80") for guest in GUESTS), "each guest has a port")
    own = {guest: int(port(scene.host, "--port-only", guest, "80/tcp")) for guest in GUESTS}
    assert len(set(own.values())) == len(GUESTS)
    for guest, number in own.items():
        scene.answers(lambda number=number: outside.fetch(at(number)), f"{guest} {CLIENT4}")  # type: ignore[misc]
    daemon.wait_log(rf"^assigned {own['far']} to far: tcp 80 ")
    follow_the_example(scene)
    assert '"[wn]e*" fits 2 domains now, 2 running' in scene.host.portfwd("check").stdout
    told = {(row["owner"], row["listens"]) for row in status(scene.host)["openings"] if row["automatic"]}
    assert {(guest, f"tcp *:{number}") for guest, number in own.items()} <= told
    # The one port that two want has who came first; the other gets it next.
    first = outside.fetch(at(8080)).text.split()[0]
    other = next(guest for guest in GUESTS if guest != first)
    daemon.wait_log(rf"^waiting {other}: port 8080 is claimed by domain {first} ")
    leaving = scene.web if first == "web" else scene.neighbour
    leaving.stop()
    scene.answers(lambda: outside.fetch(at(8080)), f"{other} {CLIENT4}")
    leaving.start()
    scene.answers(lambda: outside.fetch(at(own[first])), f"{first} {CLIENT4}")
    daemon.kill()
    daemon = scene.daemon(ENTRIES, AUTO)
    wait_until(lambda: all(port(scene.host, guest) for guest in (first, other)), "the next daemon knows them")
    assert {guest: int(port(scene.host, "--port-only", guest, "80")) for guest in GUESTS} == own
    assert outside.fetch(at(8080)).text == f"{other} {CLIENT4}"
    daemon.kill()
    # As after a start of the host, which keeps neither rules nor /run; tests/system/test_reboot.py has a real one.
    scene.host.portfwd("flush")
    scene.host.run("rm", "-r", "/run/kvm-portfwd")
    scene.daemon(ENTRIES, AUTO)
    wait_until(lambda: all(port(scene.host, guest, "80") for guest in GUESTS), "the next daemon knows them, too")
    assert {guest: int(port(scene.host, "--port-only", guest, "80")) for guest in GUESTS} == own


@pytest.mark.in_turn
def test_a_pattern_takes_no_port_on_which_a_process_waited_first(scene: Scene) -> None:
    host, outside = scene.host, scene.host.outside
    servers = [host.place.serve("host", "tcp", 8081), on_loopback(host, 8082)]
    try:
        daemon = scene.daemon('[[forward]]\ndomain = "we*"\nports = ["8080:80", "8081:80", "8082:80"]\n', OFTEN)
        daemon.wait_log(r"^waiting web: a process of the host has port 8081 \(\S+:\d+\)$")
        for port in (8080, 8082):
            scene.answers(lambda port=port: outside.fetch(at(port)), f"web {CLIENT4}")  # type: ignore[misc]
        assert outside.tcp(PUBLIC4, 8081).text == f"host {CLIENT4}"
        servers.append(host.place.serve("host", "tcp", 8080))
        daemon.wait_log(r"port 8080/tcp: python\S* \(pid \d+\) of the host listens there; .* will reach web instead")
        assert outside.fetch(at(8080)).text == f"web {CLIENT4}"
        servers.pop(0).stop()
        scene.answers(lambda: outside.fetch(at(8081)), f"web {CLIENT4}")
    finally:
        for server in servers:
            server.stop()


def test_no_port_is_assigned_on_which_a_process_waits_and_one_that_a_file_names_later_moves(scene: Scene) -> None:
    host, outside = scene.host, scene.host.outside
    head = HEAD + f'auto_ports = "{FOUR[0]}-{FOUR[-1]}"\n'

    def assigned() -> int:
        wait_until(lambda: port(host, "--port-only", "web", "80") != "", "web has a port")
        return int(port(host, "--port-only", "web", "80"))

    for guest in (scene.web, scene.neighbour):
        guest.speak("192.168.122.1")
    host.run("rm", "-f", *RECORDS)
    first = scene.daemon(PATTERN, head)
    own = assigned()
    first.terminate()
    # As if it had never been assigned: it is the first that is tried again.
    host.run("rm", "-f", *RECORDS)
    quiet, *_ = (number for number in FOUR if number != own)
    servers = [host.place.serve("host", "tcp", own), on_loopback(host, quiet)]
    try:
        daemon = scene.daemon(PATTERN, head)
        scene.answers(lambda: outside.fetch(at(assigned())), f"web {CLIENT4}")
        another = assigned()
        assert another not in {own, quiet}
        assert outside.tcp(PUBLIC4, own).text == f"host {CLIENT4}"
        daemon.reload_with(f'{head}{PATTERN}[[forward]]\ndomain = "neighbour"\nports = ["{another}:80"]\n')
        (last,) = set(FOUR) - {own, quiet, another}
        line = rf"^assigned {last} to web: tcp 80 \(\S+:4\), since {another} is claimed at /etc/portfwd\.toml:9$"
        daemon.wait_log(line)
        wait_until(lambda: assigned() == last, "it is told")
        scene.answers(lambda: outside.fetch(at(last)), f"web {CLIENT4}")
        scene.answers(lambda: outside.fetch(at(another)), f"neighbour {CLIENT4}")
    finally:
        for server in servers:
            server.stop()


def on_loopback(host: Host, port: int) -> Process:
    """Have a process of the host listen where no one else asks."""
    program = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); print('ready'); time.sleep(3600)"
    process = host.place.popen([host.place.python, "-uc", program])
    process.wait_line("^ready$")
    return process


def follow_the_example(scene: Scene) -> None:
    """Type what the manual prints, with the name of a guest that is there."""
    [example] = re.findall(r"^\.Dl (ssh .+)$", MANUAL.read_text(encoding="utf-8"), re.MULTILINE)
    scene.far.serve_tcp(22)
    assert typed(scene.host, example.replace("ci-7", "far")).startswith("far ")
