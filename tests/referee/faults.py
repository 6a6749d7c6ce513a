"""What goes wrong: each fault begins at once, and gives what ends it."""

import random
import signal
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, TypeAlias, TypeVar

from tests.lab.etcd import Etcd
from tests.lab.place import wait_until
from tests.referee.stage import ADDRESSES, PUBLIC, WEB, Stage, run_in

End: TypeAlias = Callable[[], None]
Fault: TypeAlias = Callable[[Stage, int, random.Random], End]
T = TypeVar("T")

# How long the disks of members take for each write, in microseconds; etcd's own limit for a leader is a second.
_SLOW_US: Final = 400_000
_HOURS_S: Final = 3 * 3600
# What a hook for packets of a network device is called that the host at the other end of the link sends, and receives.
_SENDS, _RECEIVES = "ingress", "egress"
_WAYS: Final = ((_SENDS,), (_RECEIVES,), (_SENDS, _RECEIVES))


def nothing(_stage: Stage, _host: int, _lot: random.Random) -> End:
    """Let all be well."""
    return lambda: None


# --- etcd ------------------------------------------------------------------------------------------------------------


def two_members_killed(stage: Stage, _host: int, lot: random.Random) -> End:
    """Take the quorum away, and give it back."""
    killed = lot.sample(stage.etcd, 2)
    for member in killed:
        member.stop()
    return lambda: _each(killed, Etcd.start)


def leader_stopped(stage: Stage, _host: int, _lot: random.Random) -> End:
    """Stop the leader where it is, with all its connections."""
    leader = _leader(stage)
    leader.freeze()
    return leader.thaw


def disks_slow(stage: Stage, _host: int, _lot: random.Random) -> End:
    """Have the disks of all members take most of a second for each write."""
    calls = "fdatasync,fsync"
    words = ["strace", "-qq", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e"]
    tracers = [
        subprocess.Popen([*words, f"inject={calls}:delay_enter={_SLOW_US}", "-p", str(member.pid)])  # noqa: S603
        for member in stage.etcd
    ]

    def end() -> None:
        for tracer in tracers:
            tracer.terminate()
            tracer.wait()

    return end


def older_state_restored(stage: Stage, host: int, _lot: random.Random) -> End:
    """Put all members back to how they were when this began, and a guest of this host had no claim yet."""
    snapshot = stage.place / "snapshot"
    snapshot.unlink(missing_ok=True)
    runs = stage.runs_on(WEB) == [host]
    if runs:
        stage.web_on(host).stop()
        claim = f"/portfwd/v1/claims/{PUBLIC[WEB][0]}"
        wait_until(lambda: not stage.ctl("get", claim), "the claim is given back")
    with suppress(subprocess.CalledProcessError):
        stage.etcd[0].save(snapshot)
    if runs:
        stage.web_on(host).start()
        wait_until(lambda: stage.answers(WEB), "the guest is reached again")

    def end() -> None:
        if not snapshot.exists():
            return
        _each(stage.etcd, Etcd.stop)
        for member in stage.etcd:
            member.restore(snapshot)
        _each(stage.etcd, Etcd.start)

    return end


# --- links -----------------------------------------------------------------------------------------------------------


def _cut_port(stage: Stage, port: str, *ways: str) -> End:
    """Let nothing pass on the link that ends at a port, one way or both; what is lost is reported to no one."""
    chains = "".join(
        f"add chain netdev cut-{port} {way} {{ type filter hook {way} device {port} priority 0; policy drop; }}\n"
        for way in ways
    )
    run_in(stage.lan, "nft", f"add table netdev cut-{port}\n{chains}")
    return lambda: _delete(stage.lan, f"netdev cut-{port}")


def _delete(namespace: str, table: str) -> None:
    run_in(namespace, "nft", f"delete table {table}")


def host_cut_off(stage: Stage, host: int, _lot: random.Random) -> End:
    """Cut all that a host sends and receives, but copies of guests."""
    return _cut_port(stage, f"port{host}", _SENDS, _RECEIVES)


def host_unheard(stage: Stage, host: int, _lot: random.Random) -> End:
    """Cut what a host sends, but copies of guests."""
    return _cut_port(stage, f"port{host}", _SENDS)


def host_deaf(stage: Stage, host: int, _lot: random.Random) -> End:
    """Cut what a host receives, but copies of guests."""
    return _cut_port(stage, f"port{host}", _RECEIVES)


def copies_cut(stage: Stage, host: int, lot: random.Random) -> End:
    """Cut the link for copies of guests, one way or both."""
    return _cut_port(stage, f"copy{host}", *lot.choice(_WAYS))


def leader_cut_off(stage: Stage, _host: int, lot: random.Random) -> End:
    """Cut the leader's link, one way or both."""
    return _cut_port(stage, f"etcd{stage.etcd.index(_leader(stage))}", *lot.choice(_WAYS))


def member_cut_off(stage: Stage, _host: int, lot: random.Random) -> End:
    """Cut the link of any member, one way or both."""
    return _cut_port(stage, f"etcd{lot.randrange(len(stage.etcd))}", *lot.choice(_WAYS))


def _cut_from_etcd(stage: Stage, host: int, *ways: str) -> End:
    """Let nothing pass between a host and members, one way or both; all else still does."""
    rules = "".join(
        f"add chain inet cut {way} {{ type filter hook {way} priority 0; }}\n"
        f"add rule inet cut {way} ip {'saddr' if way == 'input' else 'daddr'} {ADDRESSES[host]} drop\n"
        for way in ways
    )
    for net in stage.nets:
        run_in(net.path, "nft", f"add table inet cut\n{rules}")
    return lambda: _each(stage.nets, lambda net: _delete(net.path, "inet cut"))


def cut_to_etcd(stage: Stage, host: int, _lot: random.Random) -> End:
    """Cut what a host sends to etcd."""
    return _cut_from_etcd(stage, host, "input")


def cut_from_etcd(stage: Stage, host: int, _lot: random.Random) -> End:
    """Cut what etcd sends to a host."""
    return _cut_from_etcd(stage, host, "output")


def cut_and_compacted(stage: Stage, host: int, _lot: random.Random) -> End:
    """Cut both, and have etcd forget what changed meanwhile: a watch cannot go on from where it was."""
    end = _cut_from_etcd(stage, host, "input", "output")

    def compact() -> None:
        with suppress(subprocess.CalledProcessError):
            stage.ctl("put", "/portfwd/v1/other", "x")
            told = stage.ctl("get", "/portfwd/v1/other", "--write-out=fields")
            revision = next(line.split(":")[1] for line in told.splitlines() if line.startswith('"Revision"'))
            stage.ctl("compact", revision.strip())
        end()

    return compact


# --- hosts -----------------------------------------------------------------------------------------------------------


def daemon_killed(stage: Stage, host: int, _lot: random.Random) -> End:
    """Kill the daemon of a host, and start it again."""
    daemon = stage.daemons[host]
    if daemon is not None:
        daemon.kill()
    return lambda: stage.begin_daemon(host)


def daemon_stopped(stage: Stage, host: int, _lot: random.Random) -> End:
    """Stop the daemon of a host where it is."""
    daemon = stage.daemons[host]
    if daemon is None:
        return lambda: None
    daemon.process.send(signal.SIGSTOP)

    def end() -> None:
        daemon.process.send(signal.SIGCONT)
        stage.wake()

    return end


def libvirtd_killed(stage: Stage, host: int, _lot: random.Random) -> End:
    """Kill libvirtd of a host, and start it again."""
    stage.hosts[host].libvirt.kill()
    return stage.hosts[host].libvirt.start


def host_stopped(stage: Stage, host: int, _lot: random.Random) -> End:
    """Stop all programs of a host, its guests and BIRD included; its kernel goes on."""
    stage.hosts[host].run("sh", "-c", "kill -STOP -1")
    stage.birds[host].send_signal(signal.SIGSTOP)

    def end() -> None:
        stage.birds[host].send_signal(signal.SIGCONT)
        stage.hosts[host].run("sh", "-c", "kill -CONT -1")
        stage.wake()

    return end


def host_dead(stage: Stage, host: int, lot: random.Random) -> End:
    """Have it heard of no more, and end what would let go of anything; its kernel goes on."""
    ends = [fault(stage, host, lot) for fault in (host_cut_off, daemon_killed, libvirtd_killed)]
    stage.birds[host].send_signal(signal.SIGSTOP)

    def end() -> None:
        stage.birds[host].send_signal(signal.SIGCONT)
        for each in ends:
            each()

    return end


def clock_moved(stage: Stage, host: int, _lot: random.Random) -> End:
    """Put the clock of a host forward by some hours, and back."""
    stage.move_clock(host, _HOURS_S)
    return lambda: stage.move_clock(host, 0)


# The host that the guest leaves, and the one that it comes to.
SOURCE_STOPPED: Final = "source stopped"
TARGET_STOPPED: Final = "target stopped"
STOPPED: Final = frozenset({SOURCE_STOPPED, TARGET_STOPPED})

FAULTS: Final[dict[str, Fault]] = {
    "none": nothing,
    "two members killed": two_members_killed,
    "leader stopped": leader_stopped,
    "leader cut off, one way or both": leader_cut_off,
    "member cut off, one way or both": member_cut_off,
    "disks of etcd slow": disks_slow,
    "older state restored": older_state_restored,
    "host cut off": host_cut_off,
    "host cut off, sending": host_unheard,
    "host cut off, receiving": host_deaf,
    "cut to etcd": cut_to_etcd,
    "cut from etcd": cut_from_etcd,
    "cut from etcd both ways, compacted": cut_and_compacted,
    "link for copies cut, one way or both": copies_cut,
    "daemon killed": daemon_killed,
    "daemon stopped": daemon_stopped,
    "libvirtd killed": libvirtd_killed,
    SOURCE_STOPPED: host_stopped,
    TARGET_STOPPED: host_stopped,
    "host dead": host_dead,
    "clock moved": clock_moved,
}

# Those after which another host has to have taken over from one that may be dead.
LOST: Final = frozenset(
    {
        *("host cut off", "host cut off, sending", "host cut off, receiving", SOURCE_STOPPED, "host dead"),
        *("cut to etcd", "cut from etcd", "cut from etcd both ways, compacted", "daemon killed", "daemon stopped"),
    }
)


def _each(items: Iterable[T], do: Callable[[T], object]) -> None:
    for item in items:
        do(item)


def _leader(stage: Stage) -> Etcd:
    """Give the member that leads, or the first where that is not known."""
    for member in stage.etcd:
        with suppress(subprocess.CalledProcessError, IndexError):
            if member.ctl("endpoint", "status").split(", ")[4] == "true":
                return member
    return stage.etcd[0]
