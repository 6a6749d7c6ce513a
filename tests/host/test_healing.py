"""Whatever wipes or outranks the rules is undone, the audit says who did it, and no other connection notices."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.host.conftest import Scene, each_backend, entry, libvirts_rules_kept
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

URL = f"http://{PUBLIC4}:8000/"
WEB = entry("web", "8000:80", "WEB4") + entry("web", "8000:80", "WEB6")
FAR = entry("far", "9000", "FAR4")


@pytest.fixture(scope="module", autouse=True)
def _server(module_guests: tuple[LxcGuest, LxcGuest, LxcGuest]) -> None:
    module_guests[2].serve_tcp(9000)


@pytest.fixture
def scene(shared_scene: Scene) -> Scene:
    """The guests of the module: a test that stops one starts it again."""
    return shared_scene


def undone(scene: Scene, disturb: Callable[[Host], object], said: str | None = None) -> None:
    """Disturb, and see that both forwards work again while a connection through one of them goes on."""
    daemon = scene.daemon(WEB + FAR)
    other = scene.converse(9000)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    lines = len(daemon.log_lines())
    disturb(scene.host)
    if said is not None:
        daemon.wait_log(said, start=lines)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    assert scene.host.outside.tcp(PUBLIC4, 9000).text == f"far {CLIENT4}"
    assert other.goes_on()
    wait_until(lambda: gates_lead(scene.host), "every gate is at the head of its chain")


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_the_loss_of_libvirts_own_rules_is_told(scene: Scene) -> None:
    daemon = scene.daemon(WEB)
    try:
        scene.host.run("nft", "flush", "ruleset")
        daemon.wait_log("^warning: libvirt's own firewall rules are gone, .*restart libvirtd")
    finally:
        scene.host.libvirt.restart()


def gates_lead(host: Host) -> bool:
    """Whether our rule is the first, and there once, in each forward chain of libvirt and iptables-nft that exists."""
    nft = host.run("nft", "list", "chain", "ip", "libvirt_network", "forward", check=False).stdout
    iptables = host.run("nft", "list", "chain", "ip", "filter", "FORWARD", check=False).stdout
    rules = [line.strip() for line in nft.splitlines() if line.startswith("\t\t") and "type filter" not in line]
    listed = host.run("iptables-nft", "-S", "FORWARD").stdout.splitlines()[1:] if iptables else []
    return all(
        not chain or ("kvm-portfwd" in chain[0] and sum("kvm-portfwd" in rule for rule in chain) == 1)
        for chain in (rules, listed)
    )


@pytest.mark.on(LibvirtFirewall.NFTABLES)
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ("nft", "flush", "ruleset"),
            r"^restored web: tcp \*:8000 -> 192\.168\.122\.10:80 \(changed by nft, pid \d+\)",
        ),
        (("nft", "delete", "table", "ip", "kvm_portfwd"), r"^restored far: tcp .*\(changed by nft, pid \d+\)"),
        (("nft", "delete", "table", "ip6", "kvm_portfwd"), r"^restored web: tcp .*2001:db8:122::10"),
        (("nft", "flush", "chain", "ip", "kvm_portfwd", "forwards"), "^restored web: tcp"),
        (("nft", "flush", "map", "ip", "kvm_portfwd", "every_address"), "^restored web: tcp"),
        (("iptables", "-F"), None),
        (("iptables", "-t", "nat", "-F"), None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wipe(scene: Scene, argv: tuple[str, ...], said: str | None) -> None:
    # Without its own rules, libvirt cannot take its networks down.
    with libvirts_rules_kept(scene.host):
        undone(scene, lambda host: host.run(*argv), said)


@pytest.mark.on(LibvirtFirewall.LEGACY)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-F", "^restored web: tcp"),
        ("-t nat -F", "^restored web: tcp"),
        ("-t nat -F KVMPF_PRE", "^restored web: tcp"),
        ("-t nat -D PREROUTING 1", r"^restored web: tcp"),
        ("-I FORWARD 1 -j DROP", r"^restored gate in ip filter FORWARD: another rule was ahead of it"),
    ],
)
def test_a_wipe_of_the_legacy_tables(scene: Scene, words: str, said: str) -> None:
    with libvirts_rules_kept(scene.host):
        try:
            undone(scene, lambda host: host.run("iptables-legacy", "-w", *words.split()), said)
        finally:
            scene.host.run("iptables-legacy", "-w", "-D", "FORWARD", "-j", "DROP", check=False)


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_a_refusal_ahead_of_the_gate(scene: Scene) -> None:
    """A tool that inserts its own rule first would cut us off; the gate goes back to the head, and the rule stays."""
    libvirt_on_nftables = "libvirt_network" in scene.host.run("nft", "list", "tables").stdout
    refusal, gate = (
        (["nft", "insert", "rule", "ip", "libvirt_network", "forward", "counter", "drop"], "libvirt_network forward")
        if libvirt_on_nftables
        else (["iptables", "-I", "FORWARD", "1", "-j", "DROP"], "filter FORWARD")
    )
    said = rf"^restored gate in ip {gate}: another rule was ahead of it \(changed by (nft|iptables), pid \d+\)"
    undone(scene, lambda host: host.run(*refusal), said)
    # The rule that was put there is still there, and refuses everything else.
    if libvirt_on_nftables:
        scene.host.run("nft", "flush", "chain", "ip", "libvirt_network", "forward")
    else:
        scene.host.run("iptables", "-D", "FORWARD", "-j", "DROP")
    scene.host.libvirt.restart()


def test_libvirtd_restart(scene: Scene) -> None:
    undone(scene, lambda host: host.libvirt.restart())


@pytest.mark.in_turn
def test_libvirtd_killed_and_started(scene: Scene) -> None:
    def disturb(host: Host) -> None:
        host.libvirt.kill()
        host.libvirt.start()

    undone(scene, disturb)


@pytest.mark.in_turn
def test_another_network_is_destroyed_and_started(scene: Scene) -> None:
    """Rewriting all of its rules is what libvirt does then."""

    def disturb(host: Host) -> None:
        host.libvirt.define_network("third", "192.168.124.0/24")
        host.libvirt.destroy_network("third")
        host.libvirt.start_network("third")
        host.libvirt.remove_network("third")

    undone(scene, disturb)


def test_the_guests_own_network_is_destroyed_and_started(scene: Scene) -> None:
    daemon = scene.daemon(WEB + FAR)
    other = scene.converse(9000)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    scene.host.libvirt.destroy_network("default")
    daemon.wait_log("^waiting web: network default is not active")
    daemon.wait_log("^removed web: tcp .*network default is not active")
    assert other.goes_on()
    lines = len(daemon.log_lines())
    scene.host.libvirt.start_network("default")
    daemon.wait_log("^added web: tcp", start=lines)
    # libvirt does not plug running containers back in; a restarted one is on the new bridge.
    scene.web.stop()
    scene.web.start()
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    assert other.goes_on()
    scene.neighbour.stop()
    scene.neighbour.start()


@each_backend
def test_the_daemon_killed_and_started(scene: Scene) -> None:
    first = scene.daemon(WEB + FAR)
    other = scene.converse(9000)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    before = scene.host.own_rules()
    first.kill()
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    second = scene.daemon(WEB + FAR)
    second.wait_log("^adopted 3 forwards")
    assert scene.host.own_rules() == before
    assert "added" not in second.process.text()
    assert other.goes_on()


@pytest.mark.in_turn
@each_backend
def test_the_daemon_killed_while_a_guest_stops(scene: Scene) -> None:
    first = scene.daemon(WEB + FAR)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    first.kill()
    scene.web.stop()
    second = scene.daemon(WEB + FAR)
    second.wait_log("left by an earlier run|^adopted")
    rules = scene.host.own_rules
    wait_until(lambda: "8000" not in rules(), lambda: f"no 8000 in\n{rules()}\nafter\n{second.process.text()}")
    scene.web.start()


@pytest.fixture
def hanging_nft(host: Host) -> Iterator[Callable[[], None]]:
    """Put a program that does nothing in the place of `nft`; calling what is given puts `nft` back."""
    host.write("/run/hanging", "#!/bin/sh\nexec sleep 98765\n")
    host.run("chmod", "+x", "/run/hanging")
    host.run("cp", "/usr/sbin/nft", "/run/nft")
    host.run("mount", "--bind", "/run/hanging", "/usr/sbin/nft")
    with ExitStack() as at_end:
        at_end.callback(host.run, "umount", "/usr/sbin/nft")
        yield at_end.close


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_a_program_that_hangs_is_ended_and_the_wipe_healed_when_it_works_again(
    scene: Scene, request: pytest.FixtureRequest
) -> None:
    daemon = scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    mend = request.getfixturevalue("hanging_nft")
    scene.host.run("/run/nft", "delete", "table", "ip", "kvm_portfwd")
    daemon.wait_log("^error: nft .*: it did nothing for 5 seconds, and was killed; trying again")
    wait_until(lambda: "it did nothing for" in status(scene.host), "the status tells it")
    mend()
    wait_until(lambda: scene.host.outside.fetch(URL).text == f"web {CLIENT4}", "the wipe is healed", timeout=10)
    assert sum("it did nothing" in line.text for line in daemon.log_lines()) == 1


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_a_program_that_hangs_does_not_keep_the_daemon_from_ending(
    scene: Scene, request: pytest.FixtureRequest
) -> None:
    daemon = scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    mend = request.getfixturevalue("hanging_nft")
    scene.host.run("/run/nft", "delete", "table", "ip", "kvm_portfwd")
    wait_until(lambda: "sleep 98765" in scene.host.run("ps", "-eo", "args").stdout, "the daemon waits for nft")
    assert daemon.terminate(timeout=15) == 0
    assert "sleep 98765" not in scene.host.run("ps", "-eo", "args").stdout
    mend()


REMOVING = 'on_stop = "remove"\n'
LEFT = "not all could be removed; restart the daemon or run `kvm-portfwd flush` to remove the rest"


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_what_a_hanging_program_keeps_from_being_removed_at_the_end_is_told_and_flushed(
    scene: Scene, request: pytest.FixtureRequest
) -> None:
    daemon = scene.daemon(REMOVING + WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    mend = request.getfixturevalue("hanging_nft")
    assert daemon.terminate(timeout=60) == 0
    assert LEFT in daemon.process.text()
    assert "removed web:" not in daemon.process.text()
    assert "8000" in scene.host.run("/run/nft", "list", "ruleset").stdout
    mend()
    flush_and_see_all_gone(scene)


@pytest.mark.on(LibvirtFirewall.LEGACY)
def test_what_a_held_lock_keeps_from_being_removed_at_the_end_is_told_and_flushed(scene: Scene) -> None:
    daemon = scene.daemon(REMOVING + WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    with held_lock(scene.host):
        assert daemon.terminate(timeout=60) == 0
        assert LEFT in daemon.process.text()
        assert "removed web:" not in daemon.process.text()
        assert "8000" in scene.host.own_rules()
    flush_and_see_all_gone(scene)


def flush_and_see_all_gone(scene: Scene) -> None:
    """Take away what was left."""
    scene.host.portfwd("flush")
    assert "kvm" not in scene.host.own_rules().lower()
    assert not scene.host.outside.fetch(URL, timeout=1).answered


@pytest.mark.on(LibvirtFirewall.LEGACY)
def test_a_held_lock_is_told_and_holds_up_neither_the_status_nor_the_end(scene: Scene) -> None:
    daemon = scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    scene.host.run("iptables-legacy", "-w", "-t", "nat", "-F")
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    with held_lock(scene.host):
        scene.web.stop()
        daemon.wait_log("^error: another program has held /run/xtables.lock for more than .*; trying again")
        wait_until(lambda: "it is to be removed; the last pass failed" in status(scene.host), "the status tells it")
        openings = json.loads(scene.host.portfwd("status", "--json", check=False).stdout)["openings"]
        assert [(row["state"], row["reason_kinds"]) for row in openings] == [("active", ["not-removed"])] * 2
    daemon.wait_log("^removed web: ")
    scene.web.start()
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    lines = len(daemon.log_lines())
    with held_lock(scene.host):
        scene.web.stop()
        daemon.wait_log("^error: another program has held", start=lines)
        assert daemon.terminate(timeout=15) == 0
    scene.web.start()


@contextmanager
def held_lock(host: Host) -> Iterator[None]:
    """Hold the lock of iptables' programs."""
    holder = host.popen("sh", "-c", "exec 9</run/xtables.lock && flock 9 && echo held && exec sleep 98765")
    try:
        holder.wait_line("^held$")
        yield
    finally:
        holder.stop()


def status(host: Host) -> str:
    """What the command prints."""
    return host.portfwd("status", check=False).stdout
