"""What goes wrong: each fault begins at once, and gives what ends it."""

import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from tests.lab.etcd import Etcd
from tests.referee.stage import ADDRESSES, Stage, run_in

End: TypeAlias = Callable[[], None]
T = TypeVar("T")


def nothing(_stage: Stage, _host: int, _lot: random.Random) -> End:
    """Let all be well."""
    return lambda: None


def two_members_killed(stage: Stage, _host: int, lot: random.Random) -> End:
    """Take the quorum away, and give it back."""
    killed = lot.sample(stage.etcd, 2)
    for member in killed:
        member.stop()
    return lambda: _each(killed, Etcd.start)


def leader_frozen(stage: Stage, _host: int, _lot: random.Random) -> End:
    """Stop the leader where it is, with all its connections."""
    leader = _leader(stage)
    leader.freeze()
    return leader.thaw


def slow_members(stage: Stage, _host: int, _lot: random.Random) -> End:
    """Have all members stand still for most of the time, as with a disk that is slow."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            _each(stage.etcd, Etcd.freeze)
            over.wait(0.15)
            _each(stage.etcd, Etcd.thaw)
            over.wait(0.1)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join()

    return end


def _cut(stage: Stage, host: int, *ways: str) -> End:
    """Let nothing pass between a host and etcd, either way or both; no one is notified of what is lost."""
    rules = "".join(
        f"add chain inet cut {way} {{ type filter hook {way} priority 0; }}\n"
        f"add rule inet cut {way} ip {'saddr' if way == 'input' else 'daddr'} {ADDRESSES[host]} drop\n"
        for way in ways
    )
    for net in stage.nets:
        run_in(net.path, "nft", f"add table inet cut\n{rules}")
    return lambda: _each(stage.nets, lambda net: run_in(net.path, "nft", "delete table inet cut"))


def cut_to_etcd(stage: Stage, host: int, _lot: random.Random) -> End:
    """Cut what a host sends to etcd."""
    return _cut(stage, host, "input")


def cut_from_etcd(stage: Stage, host: int, _lot: random.Random) -> End:
    """Cut what etcd sends to a host."""
    return _cut(stage, host, "output")


def cut_off(stage: Stage, host: int, _lot: random.Random) -> End:
    """Cut both, and have etcd forget what changed meanwhile: a watch cannot go on from where it was."""
    end = _cut(stage, host, "input", "output")

    def compact() -> None:
        with suppress(subprocess.CalledProcessError):
            stage.ctl("put", "/portfwd/v1/other", "x")
            told = stage.ctl("get", "/portfwd/v1/other", "--write-out=fields")
            revision = next(line.split(":")[1] for line in told.splitlines() if line.startswith('"Revision"'))
            stage.ctl("compact", revision.strip())
        end()

    return compact


def older_state_restored(stage: Stage, _host: int, _lot: random.Random) -> End:
    """Put all members back to how they were when this began."""
    snapshot = stage.etcd[0].data / "snapshot"
    with suppress(subprocess.CalledProcessError):
        snapshot.unlink(missing_ok=True)
        stage.etcd[0].ctl("snapshot", "save", str(snapshot))

    def end() -> None:
        if not snapshot.exists():
            return
        _each(stage.etcd, Etcd.stop)
        for member in stage.etcd:
            _restore(member, snapshot)
        _each(stage.etcd, Etcd.start)

    return end


def _restore(member: Etcd, snapshot: Path) -> None:
    subprocess.run(["rm", "-rf", str(member.data / "data")], check=True)  # noqa: S603, S607  own words
    peers = ",".join(f"{name}={url}" for name, url in member.peers.items())
    words = [f"--name={member.name}", f"--initial-cluster={peers}", f"--initial-advertise-peer-urls={member.peer_url}"]
    member.ctl("snapshot", "restore", str(snapshot), f"--data-dir={member.data}/data", *words)


def daemon_killed(stage: Stage, host: int, _lot: random.Random) -> End:
    """Kill the daemon of a host, and start it again."""
    daemon = stage.daemons[host]
    if daemon is not None:
        daemon.process.send(signal.SIGKILL)
    return lambda: stage.begin_daemon(host)


def daemon_frozen(stage: Stage, host: int, _lot: random.Random) -> End:
    """Stop the daemon of a host where it is."""
    daemon = stage.daemons[host]
    if daemon is None:
        return lambda: None
    daemon.process.send(signal.SIGSTOP)
    return lambda: daemon.process.send(signal.SIGCONT)


def libvirtd_killed(stage: Stage, host: int, _lot: random.Random) -> End:
    """Kill libvirtd of a host, and start it again."""
    stage.hosts[host].libvirt.kill()
    return stage.hosts[host].libvirt.start


FAULTS: Final = {
    "none": nothing,
    "two members killed": two_members_killed,
    "leader frozen": leader_frozen,
    "members slow": slow_members,
    "cut to etcd": cut_to_etcd,
    "cut from etcd": cut_from_etcd,
    "cut off, compacted": cut_off,
    "older state restored": older_state_restored,
    "daemon killed": daemon_killed,
    "daemon frozen": daemon_frozen,
    "libvirtd killed": libvirtd_killed,
}


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
