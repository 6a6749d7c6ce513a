"""`[[nat]]`: a public address maps one-to-one to a guest, and is held by the host or routed to it."""

import signal
from collections.abc import Iterator

import pytest

from tests.host.conftest import HEAD, NEIGHBOUR4, WEB4, WEB6, Scene, each_backend, entry
from tests.host.test_reach import url
from tests.lab.host import CLIENT4, CLIENT6, PUBLIC4, PUBLIC6, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

pytestmark = each_backend

MAIL4, MAIL6 = "198.51.100.8", "2001:db8::88"
OWN4 = "198.51.100.9"


def nat(public: str, address: str, more: str = "", domain: str = "web") -> str:
    return f'[[nat]]\ndomain = "{domain}"\npublic = "{public}"\naddress = "{address}"\n{more}\n'


HELD = nat(MAIL4, "WEB4", 'assign = "eth0"') + nat(MAIL6, "WEB6", 'assign = "eth0"')
ROUTED = nat(MAIL4, "WEB4") + nat(MAIL6, "WEB6")


def holds(host: Host, address: str) -> bool:
    return f" {address}/" in host.run("ip", "-brief", "address", "show", "dev", "eth0").stdout


@pytest.fixture(params=["held", "routed"])
def entries(request: pytest.FixtureRequest, host: Host) -> Iterator[str]:
    """The two ways a public address comes to the host: it holds it, or the neighbours send it there."""
    if request.param == "held":
        yield HELD
        return
    host.outside.run(["ip", "route", "replace", MAIL4, "via", PUBLIC4])
    host.outside.run(["ip", "route", "replace", MAIL6, "via", PUBLIC6])
    yield ROUTED
    host.outside.run(["ip", "route", "del", MAIL4])
    host.outside.run(["ip", "route", "del", MAIL6])


@pytest.mark.in_turn
def test_a_public_address_is_the_guest_in_and_out(shared_scene: Scene, entries: str) -> None:
    scene, outside = shared_scene, shared_scene.host.outside
    scene.web.serve_udp(53)
    scene.daemon(entries)
    scene.answers(lambda: outside.fetch(url(MAIL4, 80)), f"web {CLIENT4}")
    scene.answers(lambda: outside.fetch(url(MAIL6, 8080)), f"web {CLIENT6}")
    scene.answers(lambda: outside.udp(MAIL4, 53), f"web {CLIENT4}")
    # Towards an address of its own, the host takes that very address.
    own = MAIL4 if entries == HELD else PUBLIC4
    scene.answers(lambda: scene.host.place.fetch(url(MAIL4, 80)), f"web {own}")
    server = outside.serve("outside", "tcp", 99)
    try:
        assert scene.web.place.tcp(CLIENT4, 99).text == f"outside {MAIL4}"
        assert scene.web.place.tcp(CLIENT6, 99, source=WEB6).text == f"outside {MAIL6}"
        assert scene.neighbour.place.tcp(CLIENT4, 99).text == f"outside {PUBLIC4}"
    finally:
        server.stop()


@pytest.mark.in_turn
def test_guests_reach_it_and_a_guest_keeps_its_public_address(shared_scene: Scene) -> None:
    scene = shared_scene
    scene.daemon(HELD + entry("neighbour", "8000:80", "NEIGHBOUR4"))
    scene.answers(lambda: scene.neighbour.place.fetch(url(MAIL4, 80)), "web 192.168.122.1")
    scene.answers(lambda: scene.web.place.fetch(url(MAIL4, 80)), f"web {MAIL4}")
    scene.answers(lambda: scene.web.place.fetch(url(PUBLIC4, 8000)), f"neighbour {MAIL4}")


@pytest.mark.in_turn
def test_a_forward_goes_before_it(shared_scene: Scene) -> None:
    listen = f'listen = "{MAIL4}"'
    shared_scene.daemon(HELD + entry("neighbour", "8080:80", "NEIGHBOUR4", listen) + entry("far", "443:80", "FAR4"))
    outside = shared_scene.host.outside
    shared_scene.answers(lambda: outside.fetch(url(MAIL4, 8080)), f"neighbour {CLIENT4}")
    shared_scene.answers(lambda: outside.fetch(f"http://{MAIL4}:443/"), f"far {CLIENT4}")
    shared_scene.answers(lambda: outside.fetch(url(MAIL4, 80)), f"web {CLIENT4}")


@pytest.mark.in_turn
def test_neighbours_learn_at_once_who_has_it_now(shared_scene: Scene) -> None:
    """The machine that had the address before is forgotten, though the neighbour believes to know."""
    outside, strange = shared_scene.host.outside, "02:00:00:00:00:99"
    for address in (MAIL4, MAIL6):
        outside.run(["ip", "neighbour", "replace", address, "lladdr", strange, "dev", "eth0", "nud", "reachable"])
    shared_scene.daemon(HELD)

    def known(address: str) -> bool:
        return strange in outside.run(["ip", "neighbour", "show", address, "dev", "eth0"]).stdout

    wait_until(lambda: not known(MAIL4) and not known(MAIL6), "the neighbour knows better")
    shared_scene.answers(lambda: outside.fetch(url(MAIL4, 80)), f"web {CLIENT4}")


@pytest.mark.in_turn
def test_the_host_holds_it_while_the_guest_runs(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    daemon = scene.daemon(HELD)
    wait_until(lambda: holds(host, MAIL4) and holds(host, MAIL6), "the host holds the addresses")
    scene.web.stop()
    daemon.wait_log(rf"^removed web: all of {MAIL4} -> {WEB4} \(domain web stopped")
    wait_until(lambda: not holds(host, MAIL4) and not holds(host, MAIL6), "the host holds them no more")
    scene.web.start()
    scene.answers(lambda: host.outside.fetch(url(MAIL4, 80)), f"web {CLIENT4}")


@pytest.mark.in_turn
def test_it_comes_back_when_somebody_takes_it_away(shared_scene: Scene) -> None:
    host = shared_scene.host
    daemon = shared_scene.daemon(HELD)
    shared_scene.answers(lambda: host.outside.fetch(url(MAIL4, 80)), f"web {CLIENT4}")
    host.run("ip", "address", "del", f"{MAIL4}/32", "dev", "eth0")
    daemon.wait_log(f"^restored web: all of {MAIL4}")
    wait_until(lambda: holds(host, MAIL4), "the host holds it again")
    shared_scene.answers(lambda: host.outside.fetch(url(MAIL4, 80)), f"web {CLIENT4}")


@pytest.mark.in_turn
@pytest.mark.parametrize("end", ["flush", "reload", "kill and flush"])
def test_what_the_admin_assigned_himself_stays(shared_scene: Scene, request: pytest.FixtureRequest, end: str) -> None:
    host = shared_scene.host
    host.run("ip", "address", "add", f"{OWN4}/32", "dev", "eth0")
    request.addfinalizer(lambda: host.run("ip", "address", "del", f"{OWN4}/32", "dev", "eth0"))
    daemon = shared_scene.daemon(HELD + nat(OWN4, "NEIGHBOUR4", 'assign = "eth0"', "neighbour"))
    shared_scene.answers(lambda: host.outside.fetch(url(OWN4, 80)), f"neighbour {CLIENT4}")
    if end == "reload":
        daemon.reload_with(HEAD)
    else:
        daemon.process.stop(signal.SIGKILL if end == "kill and flush" else signal.SIGTERM)
        host.portfwd("flush")
    wait_until(lambda: not holds(host, MAIL4), "ours is gone")
    assert holds(host, OWN4)


@pytest.mark.in_turn
def test_the_end_of_it_ends_its_connections_and_no_other(shared_scene: Scene) -> None:
    scene = shared_scene
    scene.web.serve_tcp(7000)
    scene.neighbour.serve_tcp(7000)
    both = HELD + entry("neighbour", "8000:7000", "NEIGHBOUR4")
    daemon = scene.daemon(both)
    through_public, other = scene.converse(7000, MAIL4), scene.converse(8000)
    daemon.reload_with(HEAD + f'[[forward]]\ndomain = "neighbour"\naddress = "{NEIGHBOUR4}"\nports = ["8000:7000"]\n')
    daemon.wait_log("^ended ")
    assert not through_public.goes_on()
    assert other.goes_on()


@pytest.mark.in_turn
def test_a_refusal_of_what_the_guest_opens_holds(shared_scene: Scene, request: pytest.FixtureRequest) -> None:
    """An administrator who keeps guests from sending mail is not outranked by the gate that lets their answers in."""
    scene, host = shared_scene, shared_scene.host
    server, mail = (host.outside.serve("outside", "tcp", port) for port in (99, 25))
    request.addfinalizer(server.stop)
    request.addfinalizer(mail.stop)
    scene.daemon(HELD)
    scene.answers(lambda: scene.web.place.tcp(CLIENT4, 25), f"outside {MAIL4}")
    program = "iptables-legacy" if host.flavour.firewall is LibvirtFirewall.LEGACY else "iptables-nft"
    rule = ["FORWARD", "-i", host.libvirt.bridge("default"), "-o", "eth0", "-p", "tcp", "--dport", "25", "-j", "REJECT"]
    host.run(program, "-w", "-I", *rule)
    request.addfinalizer(lambda: host.run(program, "-w", "-D", *rule))
    scene.refused(lambda: scene.web.place.tcp(CLIENT4, 25))
    wait_until(lambda: gate_is_first(host, program), "no other rule is ahead of the gate")
    scene.refused(lambda: scene.web.place.tcp(CLIENT4, 25))
    assert scene.web.place.tcp(CLIENT4, 99).text == f"outside {MAIL4}"
    scene.answers(lambda: host.outside.fetch(url(MAIL4, 80)), f"web {CLIENT4}")


def gate_is_first(host: Host, program: str) -> bool:
    return "kvm-portfwd" in host.run(program, "-w", "-S", "FORWARD").stdout.splitlines()[1]
