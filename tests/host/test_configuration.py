"""The configuration as its user meets it: reload, errors, drop-ins, what happens at the end."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.conftest import HEAD, Scene, each_backend, each_libvirt, entry, filled, rules_have_no_part
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

pytestmark = pytest.mark.turns_on(LibvirtFirewall.NFTABLES)

THEIRS = """
table inet theirs {
    chain forward {
        type filter hook forward priority 5; policy drop;
    }
}
"""
DROP_INS = "/etc/portfwd.d"
WEB = filled(entry("web", "8000:80", "WEB4"))
FAR = filled(entry("far", "9000", "FAR4"))


def url(port: int) -> str:
    return f"http://{PUBLIC4}:{port}/"


@pytest.mark.in_turn
@each_libvirt
def test_a_wrong_file_changes_nothing_and_a_corrected_one_takes_effect(shared_scene: Scene) -> None:
    scene = shared_scene
    server = scene.far.serve_tcp(9000)
    daemon = scene.daemon(WEB + FAR)
    other = scene.converse(9000)
    before = scene.host.own_rules()

    daemon.reload_with(HEAD + WEB + FAR + '[[forward]]\ndomain = "x"\nports = ["99999"]\n')
    daemon.wait_log(r"^error: /etc/portfwd\.toml:\d+: .*99999")
    daemon.wait_log("the old one stays in force")
    assert scene.host.own_rules() == before
    scene.answers(lambda: scene.host.outside.fetch(url(8000)), f"web {CLIENT4}")

    daemon.reload_with(HEAD + WEB.replace("8000:80", "8001:80") + FAR)
    scene.answers(lambda: scene.host.outside.fetch(url(8001)), f"web {CLIENT4}")
    scene.refused(lambda: scene.host.outside.fetch(url(8000)))
    assert other.goes_on()
    server.stop()


@pytest.mark.in_turn
@each_libvirt
def test_drop_ins_add_entries(shared_scene: Scene) -> None:
    scene = shared_scene
    scene.host.write("/etc/portfwd.d/50-far.toml", filled(entry("far", "9001:80", "FAR4")))
    try:
        scene.daemon(WEB)
        scene.answers(lambda: scene.host.outside.fetch(url(9001)), f"far {CLIENT4}")
        scene.answers(lambda: scene.host.outside.fetch(url(8000)), f"web {CLIENT4}")
    finally:
        scene.host.run("rm", "-r", "/etc/portfwd.d")


@pytest.mark.in_turn
@each_libvirt
def test_a_domain_by_its_uuid(shared_scene: Scene) -> None:
    shared_scene.daemon(WEB.replace('"web"', f'"{shared_scene.web.uuid}"'))
    shared_scene.answers(lambda: shared_scene.host.outside.fetch(url(8000)), f"web {CLIENT4}")


@each_backend
def test_the_rules_stay_when_the_daemon_stops_unless_told_otherwise(shared_scene: Scene) -> None:
    scene = shared_scene
    keeping = scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(url(8000)), f"web {CLIENT4}")
    assert keeping.terminate() == 0
    scene.answers(lambda: scene.host.outside.fetch(url(8000)), f"web {CLIENT4}")
    removing = scene.daemon(WEB, HEAD + 'on_stop = "remove"\n')
    assert removing.terminate() == 0
    assert scene.host.own_rules() == ""
    assert "removed web: tcp *:8000 -> 192.168.122.10:80 (the daemon stops" in removing.process.text()


@pytest.mark.in_turn
@each_backend
def test_an_upgrade_takes_no_rules_away_and_cuts_no_connection(shared_scene: Scene) -> None:
    scene = shared_scene
    server = scene.far.serve_tcp(9000)
    old = scene.daemon(FAR, HEAD + 'on_stop = "remove"\n')
    conversation = scene.converse(9000)
    before = scene.host.own_rules()
    scene.host.write("/run/kvm-portfwd/upgrade", "")
    try:
        assert old.terminate() == 0
        assert scene.host.own_rules() == before
        assert conversation.goes_on()
    finally:
        scene.host.run("rm", "/run/kvm-portfwd/upgrade")
        server.stop()


def command(host: Host, *words: str) -> tuple[int, str, str]:
    done = host.portfwd(*words, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.in_turn
@each_libvirt
def test_check_tells_every_error_with_its_line(shared_scene: Scene) -> None:
    host = shared_scene.host
    host.write("/etc/portfwd.toml", HEAD + WEB + WEB.replace("8000:80", "0") + "nonsense = 1\n")
    status, out, errors = command(host, "check")
    assert (status, out) == (78, "")
    assert [line.split(": ")[0] for line in errors.splitlines()] == ["/etc/portfwd.toml:11", "/etc/portfwd.toml:13"]
    host.write("/etc/portfwd.toml", HEAD + WEB)
    assert command(host, "check") == (0, "/etc/portfwd.toml: fine; 1 forward\n", "")


@pytest.mark.in_turn
@each_libvirt
def test_the_daemon_refuses_to_start_for_the_first_time_on_a_wrong_file(shared_scene: Scene) -> None:
    shared_scene.host.write("/etc/portfwd.toml", "[daemon]\nresync = 5\n")
    shared_scene.host.run("rm", "-rf", "/var/lib/kvm-portfwd")
    status, _, errors = command(shared_scene.host, "run")
    assert status == 78
    assert errors.startswith("/etc/portfwd.toml:2: ")
    assert "Traceback" not in errors


@pytest.fixture
def drop_ins(shared_scene: Scene) -> Iterator[str]:
    """The directory of the drop-ins, which is empty and goes at the end."""
    shared_scene.host.run("mkdir", "-m", "755", DROP_INS)
    yield DROP_INS
    shared_scene.host.run("rm", "-r", DROP_INS)


@pytest.mark.in_turn
@each_libvirt
def test_a_drop_in_that_others_can_write_opens_nothing_until_root_has_mended_that(
    shared_scene: Scene, drop_ins: str
) -> None:
    scene, file = shared_scene, f"{drop_ins}/50-far.toml"
    daemon = scene.daemon(WEB)
    scene.host.write(file, filled(entry("far", "9001:80", "FAR4")))
    scene.host.run("chown", "nobody", file)
    scene.host.run("chmod", "666", file)
    scene.host.run("chmod", "777", drop_ins)
    daemon.reload()
    said = [daemon.wait_log(rf"^error: {re.escape(path)}:1: belongs to user").text for path in (drop_ins, file)]
    assert not scene.host.outside.fetch(url(9001)).answered
    scene.answers(lambda: scene.host.outside.fetch(url(8000)), f"web {CLIENT4}")
    for text in said:
        scene.host.run("sh", "-c", text.rpartition(" run ")[2])
    daemon.reload()
    scene.answers(lambda: scene.host.outside.fetch(url(9001)), f"far {CLIENT4}")


@pytest.mark.in_turn
@each_libvirt
def test_what_is_no_drop_in_is_told_and_what_is_no_file_holds_nobody_up(shared_scene: Scene, drop_ins: str) -> None:
    scene, name = shared_scene, f"{drop_ins}/web.conf"
    scene.host.write(name, filled(entry("far", "9001:80", "FAR4")))
    daemon = scene.daemon(WEB)
    daemon.wait_log(rf"^warning: {re.escape(name)} is not read, as names of drop-ins end in \.toml; rename it to")
    scene.host.run("mkfifo", f"{drop_ins}/x.toml")
    daemon.reload()
    daemon.wait_log(rf"^error: {drop_ins}/x\.toml:1: cannot be read: It is no regular file; put one there")
    scene.answers(lambda: scene.host.outside.fetch(url(8000)), f"web {CLIENT4}")
    assert daemon.terminate() == 0


@pytest.mark.in_turn
@each_libvirt
def test_a_file_that_an_editor_has_just_emptied_closes_nothing(shared_scene: Scene) -> None:
    scene = shared_scene
    server = scene.web.serve_tcp(9000)
    daemon = scene.daemon(WEB + filled(entry("web", "9000", "WEB4")))
    conversation = scene.converse(9000)
    daemon.reload_with("")
    daemon.wait_log(r"^error: /etc/portfwd\.toml:1: is empty, while 2 entries are in force; if none is meant, write")
    assert conversation.goes_on()
    daemon.reload_with(HEAD)
    wait_until(lambda: not conversation.goes_on(), "the connection ends")
    server.stop()


def in_force(host: Host) -> dict[str, Any]:
    configuration: dict[str, Any] = json.loads(command(host, "status", "--json")[1])["configuration"]
    return configuration


@pytest.mark.in_turn
@each_libvirt
def test_a_wrong_file_at_the_start_leaves_the_last_good_one_in_force(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    scene.daemon(WEB).terminate()
    host.write("/etc/portfwd.toml", "[daemon]\nresync = 5\n")
    daemon = host.daemon("[daemon]\nresync = 5\n")
    daemon.wait_log(r"^error: /etc/portfwd\.toml:2: ")
    daemon.wait_log("^error: configuration refused; the last good one stays in force, of ")
    assert in_force(host)["last_good"]
    assert in_force(host)["refused_problems"]
    assert "the last good one" in command(host, "status")[1]
    assert command(host, "check")[0] == 78
    scene.web.stop()
    scene.refused(lambda: host.outside.fetch(url(8000)), "the guest that stopped is followed")
    scene.web.start()
    scene.answers(lambda: host.outside.fetch(url(8000)), f"web {CLIENT4}")
    daemon.reload_with(HEAD + WEB.replace("8000:80", "8001:80"))
    scene.answers(lambda: host.outside.fetch(url(8001)), f"web {CLIENT4}")
    assert not in_force(host)["last_good"]
    assert host.run("stat", "-c", "%a %u", "/var/lib/kvm-portfwd/last-good.json").stdout == "600 0\n"
    assert daemon.terminate() == 0
    daemon.close()


@pytest.mark.in_turn
@each_backend
def test_rules_prints_what_would_be_written_and_touches_nothing(shared_scene: Scene) -> None:
    host = shared_scene.host
    host.write("/etc/portfwd.toml", HEAD + WEB)
    before = host.snapshot_foreign(), host.own_rules()
    status, out, errors = command(host, "rules")
    assert (status, errors) == (0, "")
    assert ("192.168.122.10:80" if host.flavour.firewall is LibvirtFirewall.LEGACY else "192.168.122.10 . 80") in out
    assert (host.snapshot_foreign(), host.own_rules()) == before
    # What it prints is what the system's own program takes.
    if host.flavour.firewall is LibvirtFirewall.LEGACY:
        host.run("iptables-legacy-restore", "--test", "--noflush", stdin=out)
    else:
        host.run("nft", "--check", "-f", "-", stdin=out)


@each_backend
def test_flush_takes_everything_of_ours_and_nothing_else(shared_scene: Scene) -> None:
    scene = shared_scene
    before = scene.host.snapshot_foreign()
    daemon = scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(url(8000)), f"web {CLIENT4}")
    assert scene.host.snapshot_foreign() == before
    daemon.kill()
    assert command(scene.host, "flush") == (0, "", "")
    assert scene.host.own_rules() == ""
    assert scene.host.snapshot_foreign() == before


@rules_have_no_part
def test_a_bridge_port_is_in_hairpin_mode_only_while_that_is_needed(shared_scene: Scene) -> None:
    scene = shared_scene

    def hairpin_ports() -> int:
        modes = scene.host.run("sh", "-c", "cat /sys/class/net/vnet*/brport/hairpin_mode").stdout
        return modes.split().count("1")

    scene.host.run("sysctl", "-w", "net.bridge.bridge-nf-call-iptables=1")
    daemon = scene.daemon(WEB)
    wait_until(lambda: hairpin_ports() == 1, "the port of web is in hairpin mode")
    daemon.reload_with(HEAD + FAR + FAR.replace("9000", "9001"))
    wait_until(lambda: hairpin_ports() == 1, "the port of far is, and that of web is put back")
    daemon.reload_with(HEAD)
    wait_until(lambda: hairpin_ports() == 0, "all are put back")


@each_backend
def test_a_gate_in_a_chain_of_the_administrator(shared_scene: Scene) -> None:
    scene = shared_scene
    scene.host.run("nft", "-f", "-", stdin=THEIRS)
    try:
        daemon = scene.daemon(WEB)
        assert not scene.host.outside.fetch(url(8000)).answered
        daemon.reload_with(HEAD + 'gates = ["inet theirs forward"]\n' + WEB)
        scene.answers(lambda: scene.host.outside.fetch(url(8000)), f"web {CLIENT4}")
        daemon.wait_log("^added gate in inet theirs forward: it was not there")
        daemon.reload_with(HEAD + WEB)
        scene.refused(lambda: scene.host.outside.fetch(url(8000)))
        assert "kvm-portfwd" not in scene.host.run("nft", "list", "table", "inet", "theirs").stdout
    finally:
        scene.host.run("nft", "delete", "table", "inet", "theirs")


# A file system in user space that mounts and then never answers anything.
HANGING = """
import ctypes, os, sys, time
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"hanging", sys.argv[1].encode(), b"fuse", 0, options):
    raise OSError(ctypes.get_errno(), "mount")
print("mounted", flush=True)
time.sleep(3600)
"""


@rules_have_no_part
def test_a_file_system_that_hangs_holds_up_the_reload_and_nothing_else(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    host.run("mkdir", "-p", DROP_INS)
    daemon = scene.daemon(WEB)
    hanging = host.popen(host.python, "-c", HANGING, DROP_INS)
    try:
        hanging.wait_line("^mounted$")
        daemon.sighup()
        daemon.wait_log("^warning: the configuration cannot be read yet")
        host.run("nft", "flush", "ruleset")
        daemon.wait_log(r"^restored web: tcp \*:8000 ")
        assert "the configuration cannot be read yet" in command(host, "status")[1]
        assert daemon.process.running
        assert daemon.terminate() == 0
    finally:
        hanging.stop()
        host.run("umount", "--lazy", DROP_INS, check=False)
