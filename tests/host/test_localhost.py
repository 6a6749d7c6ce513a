"""`localhost = true`: forwards answer on 127.0.0.1 of the host, and what is for the host alone stays so."""

import pytest

from tests.host.conftest import HEAD, Scene, entry
from tests.host.test_reach import url
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until

LOCAL = HEAD + "localhost = true\n"


def takes_loopback_addresses(host: Host) -> list[str]:
    """The interfaces on which the kernel would take packets for 127.0.0.0/8."""
    listed = host.run("sysctl", "--all", "--pattern", r"net\.ipv4\.conf\..*\.route_localnet").stdout
    return [line.split(".")[3] for line in listed.splitlines() if line.endswith("= 1")]


def test_forwards_answer_on_127_0_0_1_and_nobody_else_gets_there(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    secret = host.place.serve("secret", "tcp", 7777)
    try:
        scene.start(LOCAL + entry("web", "8000:80", "192.168.122.10"))
        scene.answers(lambda: host.place.fetch(url("127.0.0.1", 8000)), "web 192.168.122.1")
        scene.answers(lambda: host.outside.fetch(url(PUBLIC4, 8000)), f"web {CLIENT4}")
        assert host.place.tcp("127.0.0.1", 7777).text == "secret 127.0.0.1"
        assert takes_loopback_addresses(host) == [host.libvirt.bridge("default")]
        guest = scene.neighbour
        for own in ("127.0.0.1", "127.0.0.0/8"):
            guest.run("ip", "route", "del", "local", own, "dev", "lo", "table", "local")
        guest.run("ip", "route", "add", "127.0.0.1", "via", "192.168.122.1")
        guest.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet")
        assert not guest.place.tcp("127.0.0.1", 7777, source="192.168.122.11", timeout=0.5).answered
    finally:
        # Others share it: started anew, it has its own routes and settings again.
        scene.neighbour.stop()
        scene.neighbour.start()
        secret.stop()


@pytest.mark.parametrize("end", ["reload", "flush"])
def test_it_leaves_no_trace(shared_scene: Scene, end: str) -> None:
    scene, host = shared_scene, shared_scene.host
    forward = entry("web", "8000:80", "192.168.122.10")
    daemon = scene.start(LOCAL + forward)
    scene.answers(lambda: host.place.fetch(url("127.0.0.1", 8000)), "web 192.168.122.1")
    if end == "reload":
        daemon.reload_with(HEAD + forward)
    else:
        daemon.terminate()
        host.run(host.python, "-m", "fwdaemon", "flush")
    wait_until(lambda: takes_loopback_addresses(host) == [], "the bridge is as before")
    assert not host.place.fetch(url("127.0.0.1", 8000)).answered
