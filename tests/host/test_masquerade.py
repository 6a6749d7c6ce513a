"""`masquerade = true`: a guest whose way back does not lead through the host answers to an address of the host."""

from functools import partial

import pytest

from tests.host.conftest import FAR4, HEAD, Scene, each_backend, entry, filled
from tests.lab.host import CLIENT4, CLIENT4_OTHER_LINK, CLIENT6, OTHER_LINK4, PUBLIC4, PUBLIC4_SECOND, PUBLIC6
from tests.lab.lxc import LxcGuest

pytestmark = each_backend

HIDDEN = "masquerade = true"


def url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


# The host's own addresses on the guest's network.
HOST4, HOST6 = "192.168.122.1", "2001:db8:122::1"


@pytest.fixture
def cut_off(shared_scene: Scene) -> LxcGuest:
    """A guest on an isolated network has no route but to its own subnets."""
    web = shared_scene.web
    web.run("sysctl", "-w", "net.ipv6.conf.eth0.accept_ra=0")
    for family in ("-4", "-6"):
        web.run("ip", family, "route", "flush", "default")
    return web


@pytest.fixture(autouse=True)
def routes_are_restored(shared_scene: Scene) -> None:
    """The guest has its routes at the beginning of each test."""
    shared_scene.web.run("ip", "route", "replace", "default", "via", HOST4)
    shared_scene.web.run("ip", "-6", "route", "replace", "default", "via", HOST6)


@pytest.mark.in_turn
@pytest.mark.usefixtures("cut_off")
@pytest.mark.parametrize(("guest", "public", "own"), [("WEB4", PUBLIC4, HOST4), ("WEB6", PUBLIC6, HOST6)])
def test_a_guest_without_a_default_route_answers(shared_scene: Scene, guest: str, public: str, own: str) -> None:
    scene, outside = shared_scene, shared_scene.host.outside
    scene.web.serve_udp(53)
    ports = "8000:80 5353:53/udp 6000-6009:53-62/udp"
    scene.daemon(entry("web", ports, guest, HIDDEN) + entry("web", "8001:80", guest))
    scene.answers(lambda: outside.fetch(url(public, 8000)), f"web {own}")
    scene.answers(lambda: outside.udp(public, 5353), f"web {own}")
    scene.answers(lambda: outside.udp(public, 6000), f"web {own}")
    assert not outside.fetch(url(public, 8001)).answered
    # From the host and from another network, too.
    scene.answers(lambda: scene.host.place.fetch(url(public, 8000)), f"web {own}")
    scene.answers(lambda: scene.far.place.fetch(url(public, 8000)), f"web {own}")
    scene.answers(lambda: scene.neighbour.place.fetch(url(public, 8000)), f"web {own}")


@pytest.mark.in_turn
def test_other_forwards_to_the_same_port_show_the_client(shared_scene: Scene) -> None:
    shared_scene.daemon(
        entry("web", "8000:80", "WEB4", HIDDEN)
        + entry("web", "8000:80", "WEB6", HIDDEN)
        + entry("web", "8001:80", "WEB4")
        + entry("web", "8001:80", "WEB6")
        + entry("web", "8000:80", "WEB4", f'listen = "{PUBLIC4_SECOND}"')
    )
    outside = shared_scene.host.outside
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4, 8000)), f"web {HOST4}")
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC6, 8000)), f"web {HOST6}")
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4, 8001)), f"web {CLIENT4}")
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC6, 8001)), f"web {CLIENT6}")
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4_SECOND, 8000)), f"web {CLIENT4}")


@pytest.mark.in_turn
def test_one_address_may_masquerade_beside_every_address(shared_scene: Scene) -> None:
    shared_scene.daemon(
        entry("web", "8000:80", "WEB4") + entry("web", "8000:80", "WEB4", f'listen = "{PUBLIC4_SECOND}"\n{HIDDEN}')
    )
    outside = shared_scene.host.outside
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4, 8000)), f"web {CLIENT4}")
    shared_scene.answers(lambda: outside.fetch(url(PUBLIC4_SECOND, 8000)), f"web {HOST4}")


@pytest.mark.in_turn
def test_interfaces_and_sources_tell_which_forward_it_was(shared_scene: Scene) -> None:
    shared_scene.daemon(
        entry("web", "8000:80", "WEB4", f'interface = "eth0"\n{HIDDEN}')
        + entry("web", "8000:80", "WEB4", 'interface = "eth1"')
        + entry("web", "8001:80", "WEB4", f'sources = ["{CLIENT4}/32"]\n{HIDDEN}')
        + entry("web", "8001:80", "WEB4", f'sources = ["{CLIENT4_OTHER_LINK}/32"]')
    )
    outside = shared_scene.host.outside
    for port in (8000, 8001):
        shared_scene.answers(partial(outside.fetch, url(PUBLIC4, port)), f"web {HOST4}")
        shared_scene.answers(partial(outside.fetch, url(OTHER_LINK4, port)), f"web {CLIENT4_OTHER_LINK}")


@pytest.mark.in_turn
@pytest.mark.usefixtures("cut_off")
def test_a_client_that_goes_on_sending_is_answered_once_it_is_masqueraded(shared_scene: Scene) -> None:
    shared_scene.web.serve_udp(53)
    daemon = shared_scene.daemon(entry("web", "5353:53/udp", "WEB4"))
    with shared_scene.host.outside.flow(PUBLIC4, 5353, timeout=0.3) as flow:
        assert not flow.ask().answered
        daemon.reload_with(HEAD + filled(entry("web", "5353:53/udp", "WEB4", HIDDEN)))
        shared_scene.answers(flow.ask, f"web {HOST4}")


@pytest.mark.in_turn
def test_status_and_rules_tell(shared_scene: Scene) -> None:
    shared_scene.daemon(entry("web", "8000:80", "WEB4", HIDDEN) + entry("far", "8001:80", "FAR4"))
    told = shared_scene.host.portfwd("status").stdout
    assert "192.168.122.10:80 masqueraded" in told
    assert f"{FAR4}:80 " in told
    assert f"{FAR4}:80 masqueraded" not in told
