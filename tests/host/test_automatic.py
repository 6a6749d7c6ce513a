"""Patterns and automatic ports: answered through, kept over restarts, and found by `kvm-portfwd port`."""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.host.conftest import HEAD, Scene, each_backend
from tests.host.typed import typed
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until

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
    scene.daemon(ENTRIES, AUTO)
    wait_until(lambda: all(port(scene.host, guest) for guest in (first, other)), "the next daemon knows them")
    assert {guest: int(port(scene.host, "--port-only", guest, "80")) for guest in GUESTS} == own
    assert outside.fetch(at(8080)).text == f"{other} {CLIENT4}"


def follow_the_example(scene: Scene) -> None:
    """Type what the manual prints, with the name of a guest that is there."""
    [example] = re.findall(r"^\.Dl (ssh .+)$", MANUAL.read_text(encoding="utf-8"), re.MULTILINE)
    scene.far.serve_tcp(22)
    assert typed(scene.host, example.replace("ci-7", "far")).startswith("far ")
