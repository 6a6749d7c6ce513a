"""What is open for a while, and a configuration that is to be confirmed, as their user meets them."""

import json

import pytest

from tests.host.conftest import HEAD, Scene, each_backend, entry, filled, rules_have_no_part
from tests.host.test_status import CONTROL, GROUP_NUMBER, as_user, raw
from tests.lab.command import Completed
from tests.lab.daemon import Daemon
from tests.lab.host import CLIENT4, PUBLIC4
from tests.lab.place import wait_until

FAR = filled(entry("far", "9000", "FAR4"))
NEIGHBOUR = filled(entry("neighbour", "9002:80", "NEIGHBOUR4"))
STATE = "/var/lib/kvm-portfwd"


def url(port: int) -> str:
    return f"http://{PUBLIC4}:{port}/"


def opened(scene: Scene, *words: str) -> str:
    return scene.host.portfwd("open", *words).stdout


def started(scene: Scene, entries: str, head: str = HEAD) -> Daemon:
    """Start the daemon on entries; the guests' addresses are learned from the network."""
    scene.host.run("rm", "-rf", STATE)
    return scene.daemon(entries, head)


@each_backend
def test_it_is_open_for_a_while_through_a_wipe_and_a_restart_and_ends_with_the_daemon_killed(
    shared_scene: Scene,
) -> None:
    scene = shared_scene
    daemon = started(scene, NEIGHBOUR)
    said = opened(scene, "web", "8022:80", "--for", "1h", "--from", f"{CLIENT4}/32")
    assert "web: tcp *:8022" in said
    daemon.wait_log(r"^opened 8022:80 to web from .* until .* by uid 0, pid \d+, ")
    scene.answers(lambda: scene.host.outside.fetch(url(8022)), f"web {CLIENT4}")
    (row,) = json.loads(scene.host.portfwd("status", "--json", "web").stdout)["openings"]
    assert (row["origin"], 3000 < row["remaining_seconds"] <= 3600) == ("temporary:1", True)
    assert scene.host.portfwd("explain", f"{PUBLIC4}:8022", "--from", CLIENT4).returncode == 0
    assert scene.host.portfwd("plan", "--exit-code").returncode == 0
    scene.wipe()
    daemon.wait_log(r"^restored web: tcp \*:8022")
    daemon.reload()
    daemon.kill()
    daemon = scene.daemon(NEIGHBOUR)
    scene.answers(lambda: scene.host.outside.fetch(url(8022)), f"web {CLIENT4}")
    # The same once more has another end, which comes without a daemon.
    opened(scene, "web", "8022:80", "--for", "5s", "--from", f"{CLIENT4}/32")
    daemon.kill()
    scene.refused(lambda: scene.host.outside.fetch(url(8022)))
    scene.daemon(NEIGHBOUR)
    wait_until(lambda: "8022" not in scene.host.own_rules(), "the rules have gone")
    assert scene.host.outside.fetch(url(9002)).answered


@rules_have_no_part
def test_what_it_carries_ends_with_it_and_other_connections_go_on(shared_scene: Scene) -> None:
    scene = shared_scene
    server = scene.web.serve_tcp(9000)
    other = scene.far.serve_tcp(9000)
    daemon = started(scene, FAR)
    staying = scene.converse(9000)
    opened(scene, "web", "9001:9000")
    ending = scene.converse(9001)
    assert scene.host.portfwd("close", "web").stdout == "closed 9001:9000 to web\n"
    daemon.wait_log(r"^removed web: tcp \*:9001 .*closed by uid 0")
    wait_until(lambda: not ending.goes_on(), "the connection has ended")
    assert staying.goes_on()
    server.stop()
    other.stop()


@rules_have_no_part
def test_only_root_opens_and_nothing_that_is_taken(shared_scene: Scene) -> None:
    scene = shared_scene
    started(scene, NEIGHBOUR, HEAD + CONTROL)
    # Members of the group may ask, and change nothing.
    wait_until(lambda: _replied(scene, "Status").returncode == 0, "the group may connect")
    for method in ("Open", "Close", "Confirm"):
        assert json.loads(_replied(scene, method).stdout)["error"] == "org.varlink.service.PermissionDenied"
    taken = scene.host.portfwd("open", "web", "9002:80", check=False)
    assert (taken.returncode, "*:9002/tcp: neighbour has it already (/etc/portfwd.toml:" in taken.stderr) == (1, True)
    assert scene.host.portfwd("open", "web", "1", "--for", "8d", check=False).returncode == 2
    assert scene.host.portfwd("close", "web", check=False).returncode == 1
    assert scene.host.portfwd("confirm", check=False).returncode == 1


@pytest.mark.in_turn
@each_backend
def test_who_cuts_off_the_own_way_in_gets_it_back(shared_scene: Scene) -> None:
    scene = shared_scene
    server = scene.far.serve_tcp(9000)
    daemon = started(scene, FAR)
    way_in = scene.converse(9000)
    scene.host.write("/etc/portfwd.toml", HEAD + NEIGHBOUR)
    assert "comes back at" in scene.host.portfwd("reload", "--confirm", "4s").stdout
    wait_until(lambda: not way_in.goes_on(), "the connection has ended")
    daemon.wait_log("was not confirmed; the one before is in force again")
    assert scene.converse(9000).goes_on()
    # Killed in between, it comes back at the start.
    scene.host.portfwd("reload", "--confirm", "3s")
    daemon.kill()
    wait_until(lambda: _is_over(scene), "the time is over")
    daemon = scene.start(HEAD + NEIGHBOUR)
    daemon.wait_log("was not confirmed; the one before is in force again")
    assert scene.converse(9000).goes_on()
    # Confirmed, it stays.
    scene.host.portfwd("reload", "--confirm", "60s")
    assert scene.host.portfwd("confirm").stdout == "/etc/portfwd.toml stays in force\n"
    scene.refused(lambda: scene.host.outside.tcp(PUBLIC4, 9000))
    server.stop()


def _replied(scene: Scene, method: str) -> Completed:
    """Call as a user who is in the group."""
    return scene.host.run(*as_user(raw(method), GROUP_NUMBER), check=False)


def _is_over(scene: Scene) -> bool:
    record = json.loads(scene.host.run("cat", f"{STATE}/unconfirmed.json").stdout)
    return bool(int(scene.host.run("date", "+%s").stdout) > record["until"])
