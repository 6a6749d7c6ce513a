"""Guests that migrate between two hosts: at no moment do both hold their addresses, and their connections go on.

Where a migration fails, guest and addresses stay with the host that goes on with it. All of it on one pair of hosts,
since the guest takes longest to boot.
"""

import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import libvirt
import pytest

from tests.host.conftest import Conversation, each_backend, rules_have_no_part
from tests.host.moving import (
    HELD,
    MAIL4,
    MAIL6,
    VM4,
    Migration,
    Move,
    guest_on_the_first,
    handed_over,
    held_by,
    holds,
    moved_lines,
    runs_on,
    streams,
    two_hosts_alike,
)
from tests.lab.host import PUBLIC4, Host
from tests.lab.pair import SECOND4, Answerers, Holders, Pair
from tests.lab.place import wait_until
from tests.lab.release import Flavour


@pytest.fixture(scope="module")
def pair(lab: None, flavour: Flavour) -> Iterator[Pair]:
    del lab
    with two_hosts_alike(flavour) as pair:
        yield pair


@pytest.fixture
def move(pair: Pair) -> Iterator[Move]:
    with guest_on_the_first(pair) as move:
        yield move


@rules_have_no_part
def test_streams_go_on_and_addresses_are_never_held_twice(move: Move) -> None:
    """There and back again at once, so that what the first host remembers of the guest's connections is fresh."""
    pair = move.pair
    move.answered(pair.first)
    forwarded = Conversation(pair.first.outside, PUBLIC4, 9000)
    with streams(move) as go_on, Holders(pair, *HELD) as holders, Answerers(pair, *HELD) as answerers:
        go_on()
        migration = move.migrate(pair.first, bandwidth=1)
        migration.wait_copying()
        arriving = {("waiting", "it does not run here yet: its memory is being received")}
        wait_until(
            lambda: {(row["state"], row["reason"]) for row in move.status(pair.second)} == arriving,
            "the other host waits for it",
        )
        go_on()
        migration.hurry()
        assert migration.ended() == ""
        go_on()
        move.answered(pair.second)
        away = r"\(.*domain vm (suspended|stopped) \(handed over"
        move.daemon(pair.first).wait_log(rf"^removed vm: all of {MAIL4} -> {VM4} {away}")
        move.daemon(pair.first).wait_log(rf"^removed vm: tcp \*:8000 -> {VM4}:80 {away}")
        move.daemon(pair.second).wait_log(rf"^added vm: all of {MAIL4} -> {VM4} \(")
        wait_until(lambda: handed_over(move), "the status tells which machine has the public addresses now")
        wait_until(lambda: not forwarded.goes_on(), "a forward of the host that was left ends")
        assert move.migrate(pair.second).ended() == ""
        go_on()
        move.answered(pair.first)
        go_on()
    forwarded.close()
    assert not holders.both
    assert set(map(tuple, holders.seen.values())) == {(1, 2, 1)}
    assert set(map(tuple, answerers.seen.values())) == {(1, 2, 1)}


@each_backend
def test_what_a_definition_asks_for_moves_with_the_guest(pair: Pair) -> None:
    """The other host knows nothing of the guest: its configuration is a policy. Its automatic port goes along."""
    policy = f'[[allow]]\ndomains = ["v?"]\nports = ["8000-8009"]\npublic = ["{MAIL4}"]\nassign = "eth0"\n'
    asked = (
        f'<forwards><forward ports="8000:80 9000:80 auto:80" sources="0.0.0.0/0"/><nat public="{MAIL4}"/></forwards>'
    )
    head = '[daemon]\nlibvirt = ["qemu:///system"]\nauto_ports = "8001-8009"\n'
    with guest_on_the_first(pair, head + policy) as move:
        pair.first.run("virsh", "metadata", "vm", "urn:kvm-portfwd:1", "--key", "p", "--set", asked, "--live")
        _is_served(move, pair.first, PUBLIC4, SECOND4)
        wait_until(lambda: len(_ports(pair.first, PUBLIC4)) == 2, "both ports are told")
        ports = _ports(pair.first, PUBLIC4)
        assert move.migrate(pair.first).ended() == ""
        _is_served(move, pair.second, SECOND4, PUBLIC4)
        for port in ports:
            assert pair.first.outside.fetch(f"http://{SECOND4}:{port}/").text.startswith("vm ")
        wait_until(lambda: _ports(pair.second, SECOND4) == ports, "the same ports are told there")


def _ports(host: Host, address: str) -> set[str]:
    """The ports of an address of the host that lead to the guest's page."""
    lines = host.portfwd("port", "vm", "80", check=False).stdout.split()
    return {port for where, _, port in (line.partition(":") for line in lines) if where == address}


def _is_served(move: Move, host: Host, own: str, other: str) -> None:
    """By the host that has the guest, at what is asked for and allowed, and by no other."""
    outside = move.pair.first.outside
    wait_until(lambda: outside.fetch(f"http://{own}:8000/").text.startswith("vm "), f"{own} answers")
    wait_until(lambda: outside.fetch(f"http://{MAIL4}/").text.startswith("vm "), f"{MAIL4} answers")
    wait_until(lambda: not outside.fetch(f"http://{other}:8000/").answered, "the other host has let go")
    where = {f"domain vm, metadata: {element} 1" for element in ("forward", "nat")}
    wait_until(lambda: {row["origin"] for row in move.status(host)} == where, "it says from where")
    assert not outside.fetch(f"http://{own}:9000/").answered


@rules_have_no_part
def test_a_guest_that_runs_there_before_its_memory_does(move: Move) -> None:
    """Post-copy: the other host has the guest while most of its memory is still here."""
    pair = move.pair
    move.answered(pair.first)
    with streams(move) as go_on, Holders(pair, *HELD) as holders:
        migration = move.migrate(pair.first, bandwidth=4, flags=libvirt.VIR_MIGRATE_POSTCOPY)
        migration.wait_copying()
        migration.guest.start_post_copy()
        wait_until(partial(runs_on, move, pair.second), "it runs there", timeout=90, interval=0.01)
        assert migration.thread.is_alive()
        go_on()
        migration.hurry()
        assert migration.ended() == ""
        move.answered(pair.second)
        go_on()
    assert not holders.both
    assert set(map(tuple, holders.seen.values())) == {(1, 2)}


@rules_have_no_part
def test_a_guest_that_moves_paused_is_held_by_the_other_host_once_it_runs_there(move: Move) -> None:
    """Nothing says that a paused guest is handed over, until it has ended here."""
    pair = move.pair
    move.answered(pair.first)
    with Holders(pair, *HELD) as holders:
        move.guest(pair.first).pause()
        assert move.migrate(pair.first).ended() == ""
        move.daemon(pair.first).wait_log(rf"^removed vm: all of {MAIL4} -> {VM4} \(.*domain vm (shutting|stopped)")
        wait_until(
            lambda: {row["reason"] for row in move.status(pair.second)} == {"it is paused and has not run here yet"},
            "the other host waits until the guest runs",
        )
        assert moved_lines(move.daemon(pair.second)) == []
        move.guest(pair.second).resume()
        move.answered(pair.second)
    assert not holders.both
    assert set(map(tuple, holders.seen.values())) == {(1, 2)}


@rules_have_no_part
def test_streams_go_on_where_the_other_host_is_late(move: Move) -> None:
    """What the guest sends there before its addresses are there leaves with them: the daemon had heard of its copy."""
    pair, late = move.pair, move.daemon(move.pair.second).process
    move.answered(pair.first)
    with streams(move) as go_on:
        go_on()
        migration = move.migrate(pair.first, bandwidth=1)
        migration.wait_copying()
        move.daemon(pair.second).wait_log(r"^waiting vm: it does not run here yet")
        late.send(signal.SIGSTOP)
        migration.hurry()
        assert migration.ended() == ""
        # It sends a number on each stream every 50 ms, and tries again what is not taken.
        time.sleep(1)
        late.send(signal.SIGCONT)
        go_on()
        move.answered(pair.second)
        go_on()


# --- migrations that fail ---------------------------------------------------------------------------------------------


@rules_have_no_part
def test_a_post_copy_that_fails_leaves_the_guest_with_the_host_that_goes_on_if_any(move: Move) -> None:
    """Where the receiving end dies, the first host goes on as long as it may, and later no host can."""
    pair = move.pair
    move.answered(pair.first)
    with Holders(pair, *HELD) as holders:
        migration = move.migrate(pair.first, bandwidth=4, flags=libvirt.VIR_MIGRATE_POSTCOPY)
        migration.wait_copying()
        migration.guest.start_post_copy()
        wait_until(partial(runs_on, move, pair.second), "it runs there", timeout=90, interval=0.01)
        wait_until(lambda: {MAIL4, MAIL6} <= held_by(pair.second), "the second host holds what runs there")
        pid = pair.second.read("/run/libvirt/qemu/vm.pid").strip()
        pair.second.run("kill", "-KILL", pid)
        assert migration.ended() != ""
        wait_until(partial(holds, pair.second, set()), "the host where it died holds none")
        kept = set(HELD) if runs_on(move, pair.first) else set[str]()
        wait_until(partial(holds, pair.first, kept), "the first host holds what it goes on with")
    assert not holders.both


@rules_have_no_part
def test_a_migration_that_fails_changes_nothing_until_the_guest_dies(move: Move) -> None:
    """Cancelled, with daemons that start during the copy, and with either side killed; in the end with the guest's."""
    pair = move.pair
    move.answered(pair.first)
    forwarded = Conversation(pair.first.outside, PUBLIC4, 9000)

    def kill_target(migration: Migration) -> None:
        pid = migration.to.read("/run/libvirt/qemu/vm.pid").strip()
        migration.to.run("kill", "-KILL", pid)

    def kill_libvirtd(migration: Migration) -> None:
        pair.first.libvirt.kill()
        migration.ended()
        pair.first.libvirt.start()

    def kill_target_libvirtd(migration: Migration) -> None:
        migration.to.libvirt.kill()
        migration.to.libvirt.start()

    def restart_daemons_and_cancel(migration: Migration) -> None:
        for host in (pair.first, pair.second):
            move.restart_daemon(host)
        migration.guest.abort_job()

    with Holders(pair, *HELD) as holders:
        with streams(move) as go_on:
            for spoil in (restart_daemons_and_cancel, kill_target, kill_libvirtd, kill_target_libvirtd):
                _spoil_one(move, spoil, go_on)
                assert forwarded.goes_on(), spoil.__name__
                move.answered(pair.first)
        assert not [line for line in moved_lines(move.daemon(pair.first)) if line.startswith("removed")]
        _die_during_the_copy(move)
        assert moved_lines(move.daemon(pair.second)) == []
    forwarded.close()
    assert set(map(tuple, holders.seen.values())) == {(1,)}


def _spoil_one(move: Move, spoil: Callable[[Migration], None], go_on: Callable[[], None]) -> None:
    """Have one migration fail, after which the guest goes on here, and no copy is there."""
    migration = move.migrate(move.pair.first, bandwidth=1)
    migration.wait_copying()
    spoil(migration)
    assert migration.ended() != "", spoil.__name__
    wait_until(lambda: not move.guest(move.pair.second).defined, f"{spoil.__name__}: the copy is gone")
    go_on()


def _die_during_the_copy(move: Move) -> None:
    """Then neither host holds its addresses."""
    pair = move.pair
    migration = move.migrate(pair.first, bandwidth=1)
    migration.wait_copying()
    move.guest(pair.first).crash()
    assert migration.ended() != ""
    for address in (MAIL4, MAIL6):
        move.daemon(pair.first).wait_log(rf"^removed vm: all of {address} -> ")
    wait_until(lambda: not move.guest(pair.second).defined, "the copy is gone")


@rules_have_no_part
def test_what_was_handed_over_and_not_taken_comes_back(move: Move) -> None:
    """The other host dies at the last moment, with the guest stopped here already and not yet running there."""
    pair = move.pair
    move.answered(pair.first)
    forwarded = Conversation(pair.first.outside, PUBLIC4, 9000)
    with streams(move) as go_on, Holders(pair, *HELD) as holders:
        migration = move.migrate(pair.first, bandwidth=1)
        migration.wait_copying()
        pid = pair.second.read("/run/libvirt/qemu/vm.pid").strip()
        pair.second.libvirt.process.send(signal.SIGSTOP)
        migration.hurry()
        handed_over = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)
        wait_until(lambda: move.guest(pair.first).state() == handed_over, "it is handed over", timeout=90)
        move.daemon(pair.first).wait_log(
            rf"^removed vm: all of {MAIL4} -> .*\(domain vm suspended \(handed over to another host\)"
        )
        pair.second.run("kill", "-KILL", pid)
        pair.second.libvirt.process.send(signal.SIGCONT)
        assert migration.ended() != ""
        move.daemon(pair.first).wait_log(rf"^added vm: all of {MAIL4} -> .*domain vm resumed")
        go_on()
        assert forwarded.goes_on()
        move.answered(pair.first)
        assert moved_lines(move.daemon(pair.second)) == []
    forwarded.close()
    assert not holders.both


@rules_have_no_part
def test_a_daemon_that_is_killed_at_the_switch_over_leaves_addresses_with_the_target(move: Move) -> None:
    """That of the host the guest leaves, then that of the host it comes to, each as soon as the guest runs there.

    What a daemon has not let go of when it is killed, its host holds until the next one starts.
    """
    pair = move.pair
    move.answered(pair.first)
    for start in (pair.first, pair.second):
        target = pair.other(start)
        migration = move.migrate(start, bandwidth=1)
        migration.wait_copying()
        migration.hurry()
        wait_until(partial(runs_on, move, target), "it runs there", timeout=90, interval=0.01)
        move.restart_daemon(pair.first)
        assert migration.ended() == ""
        move.answered(target)
        wait_until(partial(holds, start, set()), "the host that was left holds none")
        assert held_by(target) == set(HELD)
