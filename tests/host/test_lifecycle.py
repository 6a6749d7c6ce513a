"""A forward is live exactly while its domain runs."""

import re
import time

import pytest

from tests.host.conftest import HEAD, WEB4, Scene, each_backend, entry
from tests.lab.host import CLIENT4, PUBLIC4
from tests.lab.place import wait_until

URL = f"http://{PUBLIC4}:8000/"
WEB = entry("web", "8000:80", "WEB4")
FAR = entry("far", "9000", "FAR4")


@pytest.fixture
def scene(mended_scene: Scene) -> Scene:
    """The guests of the module, which are put back after each test."""
    return mended_scene


def opens(scene: Scene, port: int) -> bool:
    """Whether our rules name a port. Ports of clients, which they remember for a while, are higher."""
    return re.search(rf"\b{port}\b", scene.host.own_rules()) is not None


def follows(scene: Scene, guest: str) -> bool:
    """Whether the kernel would lead packets of a connection to or from this guest."""
    return guest in scene.host.run("conntrack", "-L", "-p", "tcp").stdout


def test_a_stop_closes_the_port_and_a_start_opens_it(scene: Scene) -> None:
    scene.web.serve_tcp(8001)
    scene.far.serve_tcp(9000)
    daemon = scene.daemon(entry("web", "8000:80 8001", "WEB4") + FAR)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    mine, other = scene.converse(8001), scene.converse(9000)
    assert mine.goes_on()
    assert follows(scene, WEB4)
    scene.web.stop()
    daemon.wait_log(r"^removed web: tcp \*:8000 -> 192\.168\.122\.10:80 \(domain web stopped")
    wait_until(lambda: not follows(scene, WEB4), "the connections of the guest are ended")
    assert not mine.goes_on()
    assert other.goes_on()
    scene.refused(lambda: scene.host.outside.fetch(URL))
    assert not opens(scene, 8000)
    scene.web.start()
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    daemon.wait_log(r"^added web: tcp \*:8000 -> 192\.168\.122\.10:80 \(domain web started")


@pytest.mark.in_turn
def test_a_crash_closes_the_port(scene: Scene) -> None:
    daemon = scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    scene.web.crash()
    daemon.wait_log("^removed web: tcp")
    assert not opens(scene, 8000)


@pytest.mark.in_turn
def test_paused_counts_as_running(scene: Scene) -> None:
    daemon = scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    scene.web.pause()
    time.sleep(1.5)
    assert opens(scene, 8000)
    scene.web.resume()
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    assert "removed" not in daemon.process.text()


@pytest.mark.in_turn
def test_a_reboot_leaves_the_forward(scene: Scene) -> None:
    scene.far.serve_tcp(9000)
    daemon = scene.daemon(WEB + FAR)
    other = scene.converse(9000)
    scene.web.reboot()
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    assert other.goes_on()
    assert "removed" not in daemon.process.text()


@each_backend
def test_open_connections_end_with_their_forward_and_others_go_on(scene: Scene) -> None:
    scene.web.serve_tcp(8001)
    scene.far.serve_tcp(9000)
    daemon = scene.daemon(entry("web", "8001", "WEB4") + FAR)
    mine, other = scene.converse(8001), scene.converse(9000)
    assert mine.greeting == f"web {CLIENT4}"
    daemon.reload_with(HEAD + FAR.replace("FAR4", "192.168.123.10"))
    daemon.wait_log("^removed web: tcp .*loaded again")
    wait_until(lambda: not mine.goes_on(), "the connection of the removed forward ends")
    assert other.goes_on()


@pytest.mark.in_turn
def test_a_udp_flow_follows_when_a_forward_appears(scene: Scene) -> None:
    scene.host.place.serve("host", "udp", 5000)
    scene.web.serve_udp(5000)
    with scene.host.outside.flow(PUBLIC4, 5000) as flow:
        assert flow.ask().text == f"host {CLIENT4}"
        scene.daemon(entry("web", "5000/udp", "WEB4"))
        scene.answers(flow.ask, f"web {CLIENT4}")


@pytest.mark.in_turn
def test_while_libvirt_is_away_everything_stays_and_is_still_healed(scene: Scene) -> None:
    daemon = scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    scene.host.libvirt.kill()
    time.sleep(1)
    assert opens(scene, 8000)
    scene.wipe()
    daemon.wait_log("^restored web: tcp")
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    scene.host.libvirt.start()
    scene.web.stop()
    daemon.wait_log("^removed web: tcp")


@pytest.mark.in_turn
def test_no_answer_from_libvirt_at_start_is_not_no_domains(scene: Scene) -> None:
    first = scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    first.kill()
    scene.host.libvirt.kill()
    second = scene.daemon(WEB)
    second.wait_log("libvirt has not answered yet")
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    scene.host.libvirt.start()
    second.wait_log("^adopted 1 forwards")
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
