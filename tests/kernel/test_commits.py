"""Which commits to nftables are ours, as the monitor hears of them from the kernel."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fwdaemon.core.report import Actor
from fwdaemon.core.types import GateFault
from fwdaemon.errors import ProcessError
from fwdaemon.kernel.process import Finished, SystemRunner, find_program
from fwdaemon.nftables.backend import NftablesBackend
from fwdaemon.nftables.generation import Commits, RulesMonitor, following_generation
from tests.kernel.test_nftables import ALL, LIBVIRT, WEB
from tests.lab.command import run

_WIPE = ("delete", "table", "ip", "kvm_portfwd")
FEWER = replace(ALL, forwards=frozenset({WEB}))


class Recording(SystemRunner):
    """Remembers the number of the last program that changed rules, and lets others commit before one does."""

    def __init__(self) -> None:
        super().__init__()
        self.pid = 0
        self.before: Callable[[], None] = lambda: None

    def run(self, *argv: str, stdin: str = "") -> Finished:
        if stdin:
            self.before()
        finished = super().run(*argv, stdin=stdin)
        if stdin:
            self.pid = finished.pid
        return finished


class Scene:
    """A backend, its listener, and others who commit; each of these is seen under a name of its own."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.runner = Recording()
        self.commits = Commits(self.runner)
        self.backend = NftablesBackend(self.runner, self.commits)

    def foreign(self, name: str, *words: str, pid: int = 0) -> None:
        """Run `nft` as `name`, with the number `pid` in a pid namespace of its own if one is given."""
        program = self._programs / name
        program.symlink_to(str(find_program("nft")))
        before = f"echo {pid - 1} > /proc/sys/kernel/ns_last_pid; " if pid else ""
        run(["unshare", "--pid", "--fork", "sh", "-c", f'{before}"$@"; exit $?', "sh", str(program), *words])

    def heard(self, *acts: Callable[[], object]) -> list[str]:
        """Name who is reported to have changed rules while these were done on a worker."""
        actors: list[str] = []

        async def listen() -> None:
            done = asyncio.Event()

            def changed(actor: Actor, *, full: bool) -> None:
                assert not full
                actors.append(actor.process)
                if actor.process == "last":
                    done.set()

            monitor = RulesMonitor(self.commits, changed)
            monitor.start()
            for act in (*acts, lambda: self.foreign("last", "add", "table", "ip", "last")):
                await asyncio.to_thread(act)
            await asyncio.wait_for(done.wait(), 10)
            monitor.close()

        asyncio.run(listen())
        return actors[:-1]


@pytest.fixture
def scene(namespace: None, tmp_path: Path) -> Scene:
    del namespace
    return Scene(tmp_path)


def test_our_own_commits_are_not_heard(scene: Scene) -> None:
    run(["nft", "-f", "-"], stdin=LIBVIRT)
    run(["iptables-nft", "-A", "FORWARD", "-j", "ACCEPT"])
    changed: list[bool] = []
    states = (ALL, FEWER, ALL)
    acts = [lambda state=state: changed.append(scene.backend.apply(state, full=True).changed) for state in states]
    assert scene.heard(*acts, scene.backend.remove) == []
    assert all(changed)


def test_a_namesake_in_another_pid_namespace_is_not_us(scene: Scene) -> None:
    """In a container, another program has the process number that one of ours had on the host."""
    scene.backend.apply(ALL, full=False)
    assert scene.heard(lambda: scene.foreign("namesake", *_WIPE, pid=scene.runner.pid)) == ["namesake"]
    assert scene.backend.apply(ALL, full=False).damaged


def test_a_commit_beside_ours_is_not_us(scene: Scene) -> None:
    scene.backend.apply(ALL, full=False)

    def wipe_once() -> None:
        scene.runner.before = lambda: None
        scene.foreign("beside", *_WIPE)

    scene.runner.before = wipe_once
    assert "beside" in scene.heard(lambda: scene.backend.apply(FEWER, full=False))


def test_a_commit_beside_one_of_ours_that_was_refused_is_not_us(scene: Scene) -> None:
    def refused() -> None:
        with pytest.raises(ProcessError):
            scene.commits.commit("nft", "-f", "-", stdin="delete table ip none\n")

    scene.runner.before = lambda: scene.foreign("beside", "add", "table", "ip", "beside")
    assert scene.heard(refused) == ["beside"]


@pytest.mark.parametrize(("number", "following"), [(1, 2), (0xFFFFFFFE, 0xFFFFFFFF), (0xFFFFFFFF, 1)])
def test_numbers_of_commits_leave_out_0(number: int, following: int) -> None:
    assert following_generation(number) == following


SET = "add table ip theirs; add set ip theirs banned { type ipv4_addr; }; add element ip theirs banned { 192.0.2.1 }"


def test_elements_of_others_sets_alone_are_not_told(scene: Scene) -> None:
    run(["nft", SET])
    heard = scene.heard(
        lambda: scene.foreign("banning", "add", "element", "ip", "theirs", "banned", "{ 192.0.2.2 }"),
        lambda: scene.foreign("unbanning", "delete", "element", "ip", "theirs", "banned", "{ 192.0.2.1 }"),
        lambda: scene.foreign("clearing", "flush", "set", "ip", "theirs", "banned"),
    )
    assert heard == []


@pytest.mark.parametrize(
    "words",
    [
        ("flush", "map", "ip", "kvm_portfwd", "every_address"),
        ("add element ip theirs banned { 192.0.2.2 }; delete table ip kvm_portfwd",),
        ("add element ip theirs banned { 192.0.2.2 }; add chain ip theirs more",),
        ("add", "chain", "ip", "theirs", "more"),
    ],
    ids=["elements of ours", "a wipe with elements of others", "a chain with elements", "a chain"],
)
def test_whatever_else_others_change_is_told(scene: Scene, words: tuple[str, ...]) -> None:
    run(["nft", SET])
    scene.backend.apply(ALL, full=True)
    heard = scene.heard(
        lambda: scene.foreign("banning", "add", "element", "ip", "theirs", "banned", "{ 192.0.2.3 }"),
        lambda: scene.foreign("changing", *words),
        lambda: scene.foreign("unbanning", "delete", "element", "ip", "theirs", "banned", "{ 192.0.2.3 }"),
    )
    assert heard == ["changing"]


JUDGED = """
table ip libvirt_network {
    set banned { type ipv4_addr; }
    map bans { type ipv4_addr : verdict; elements = { 203.0.113.9 : drop }; }
    map further { type ipv4_addr : verdict; elements = { 203.0.113.8 : drop }; }
    map aside { type ipv4_addr : verdict; }
    chain black { ip saddr vmap @further; ip saddr @banned drop; }
    chain aside { ip saddr vmap @aside; }
    chain forward { type filter hook forward priority filter; ip saddr vmap @bans; jump black; drop; }
}
"""


@pytest.mark.parametrize("name", ["bans", "further"])
def test_elements_of_maps_ahead_of_a_gate_are_told_and_no_others(scene: Scene, name: str) -> None:
    """With an element that accepts, a map of bans is none any more, and the gate has to go ahead of it."""
    run(["nft", "-f", "-"], stdin=JUDGED)
    scene.backend.apply(ALL, full=True)

    def foreign(actor: str, verb: str, where: str, element: str) -> Callable[[], None]:
        return lambda: scene.foreign(actor, verb, "element", "ip", "libvirt_network", where, f"{{ {element} }}")

    heard = scene.heard(
        foreign("aside", "add", "aside", "192.0.2.1 : accept"),
        foreign("banning", "add", "banned", "192.0.2.1"),
        foreign("deciding", "add", name, "192.0.2.1 : accept"),
    )
    assert heard == ["deciding"]
    (change,) = scene.backend.apply(ALL, full=False).gates
    assert change.fault is GateFault.BEHIND_RULE
