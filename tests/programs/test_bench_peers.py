"""What the benchmark asks its peers for is the same of each, and what they took is compared turn by turn."""

import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.forwards import FIRST_PORT, hook_forwards, last_port
from bench.peers import by_hand, docker, firewalld, netavark, ours
from bench.peers.acting import FailedError, ask_docker, do
from bench.peers.compared import ADD, APPLY, MEMORY, RATE, Parts, Told
from bench.peers.peer import added, one_more
from bench.peers.steps import Method, Program, Request, Step, read, written
from fwdaemon.config import parse

SIZE = 23
FORWARDS = hook_forwards(SIZE)
WAYS = {(each.port, each.guest, each.guest_port) for each in FORWARDS}
PORTS = [*range(FIRST_PORT, FIRST_PORT + SIZE)]


def test_steps_reach_the_host_as_they_are() -> None:
    steps: list[Step] = [
        Program(("nft", "-f", "-"), "table ip x"),
        Method("Open", {"seconds": None}),
        Request("POST", "/start"),
    ]
    assert read(written(steps)) == steps


def test_a_table_by_hand_has_the_same_forwards() -> None:
    found = re.findall(r"(\d+) : ([\d.]+) \. (\d+)", by_hand.table(FORWARDS))
    assert {(int(port), guest, int(to)) for port, guest, to in found} == WAYS


def test_a_zone_has_the_same_forwards() -> None:
    zone = ET.fromstring(firewalld.zone(FORWARDS).partition("?>")[2])  # noqa: S314  ours
    found = [each.attrib for each in zone.iter("forward-port")]
    assert {(int(each["port"]), each["to-addr"], int(each["to-port"])) for each in found} == WAYS


def test_containers_have_as_many_ports_each_once() -> None:
    mapped = [each["host_port"] for each in netavark.wanted("many", PORTS)["port_mappings"]]
    (bound,) = docker.container(PORTS)["HostConfig"]["PortBindings"].values()
    assert mapped == [int(each["HostPort"]) for each in bound] == PORTS


def test_one_more_is_a_port_that_was_free_and_leads_to_a_guest() -> None:
    assert one_more(SIZE) == last_port(SIZE) + 1
    config = parse({Path("portfwd.toml"): ours.with_one_more(SIZE)})
    ways = {
        (mapping.host.first, str(entry.address), mapping.guest.first)
        for entry in config.forwards
        for mapping in entry.mappings
    }
    more = added(SIZE)
    assert ways == WAYS | {(more.port, more.guest, more.guest_port)}


def test_a_program_that_fails_is_no_measurement() -> None:
    do(Program(("true",)))
    with pytest.raises(FailedError, match="no such thing"):
        do(Program(("sh", "-c", "echo no such thing; exit 3")))


@contextmanager
def docker_that_refuses(path: Path) -> Iterator[None]:
    """Listen like Docker's daemon, and say no to everything but a ping."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204 if self.path == "/ping" else 409)
            self.end_headers()
            self.wfile.write(b"" if self.path == "/ping" else b"the port is taken")

        def address_string(self) -> str:
            return "a client"

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.UnixStreamServer(str(path), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_a_refusal_of_dockers_is_no_measurement(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with docker_that_refuses(path):
        ask_docker("POST", "/ping", b"", at=str(path))
        with pytest.raises(FailedError, match="the port is taken"):
            ask_docker("POST", "/containers/one/start", b"{}", at=str(path))


def told() -> Told:
    """Two turns of adding, in the second of which the machine was ten times slower; and one of other things."""
    found = Told("ours", frozenset({"limit"}))
    for who, samples in {"ours": [2.0, 20.0], "limit": [1.0, 10.0], "slow": [8.0], "slower": [16.0, 160.0]}.items():
        for sample in samples:
            found.add(ADD, who, 10, sample)
    for who, rate, bytes_ in (("ours", 900.0, 60.0), ("slow", 300.0, 0.0), ("slower", 1000.0, 30.0)):
        found.add(RATE, who, 10, rate)
        found.add(MEMORY, who, 10, bytes_)
    return found


def test_each_peer_is_compared_turn_by_turn_in_what_both_took_part_in() -> None:
    times = {(each.what, each.who): [*each.times_better] for each in told().versus()}
    assert times == {
        (ADD.name, "limit"): [0.5, 0.5],
        (ADD.name, "slow"): [4.0],
        (ADD.name, "slower"): [8.0, 8.0],
        (RATE.name, "slow"): [3.0],
        (RATE.name, "slower"): [0.9],
        (MEMORY.name, "slower"): [0.5],
    }


def test_wanted_is_to_be_ahead_of_the_best_peer_which_the_limit_is_not() -> None:
    wants = list(told().wants())
    assert [(want.text.rpartition(", ")[2], want.met) for want in wants] == [
        ("slow", True),
        ("slower", False),
        ("slower", False),
    ]


def test_where_we_are_behind_the_parts_of_our_own_time_say_why() -> None:
    found = Told("ours", frozenset())
    found.add(ADD, "ours", 10, 0.03)
    found.add(ADD, "hook script", 10, 0.01)
    (want,) = found.wants(Parts({}, {10: {"whole": [0.02], "committed": [0.016], "programs": [0.008]}}))
    assert not want.met
    assert "takes 20.0 ms: 16.0 ms until the rules are in the kernel, of which `nft` takes 8.00 ms" in want.because


def test_a_thing_that_only_one_does_is_told_and_not_compared() -> None:
    found = Told("ours", frozenset())
    found.add(APPLY, "slow", 10, 1.0)
    assert [series.label for series in found.series()] == [f"{APPLY.name}, slow"]
    assert not list(found.versus())
    assert not list(found.wants())
