"""One run: domains come at an even pace, each is asked through its own ports, and goes; then nothing may be left."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import libvirt

from bench.processes import cpu_seconds, fine_cpu_seconds, memory, wait_quiet
from tests.chaos.figures import versions
from tests.chaos.resources import held
from tests.endurance.attendant import Attendant
from tests.endurance.figures import Rest
from tests.lab.command import LabError
from tests.lab.host import CLIENT4, PUBLIC4
from tests.lab.place import wait_until
from tests.lab.probe import Outcome
from tests.lab.release import Flavour
from tests.turnover.beside import Beside, asked_beside
from tests.turnover.figures import LATE_AT_MOST_S, Figures, Late, Stay
from tests.turnover.guest import PORTS, Created, PassingGuest
from tests.turnover.scene import NETWORK, PASSING, STAYING, STAYING_PORT, Scene, set_up

Say = Callable[[str], None]
_ASSIGNED = re.compile(rf"assigned (\d+) to ({PASSING}\w+): tcp (\d+) ")
# What refuses what ended connections still send: elements of sets that forget them, or rules of iptables-legacy.
_ENDED_ELEMENTS = re.compile(r"(\n\t\ttimeout \w+)\n\t\telements = \{[^}]*\}")
_ENDED_RULE = re.compile(r'^-A .*"ended ')
_EVERY_S = 0.005
_SAMPLED_EVERY_S = 5.0
_TOLD_EVERY = 50
# So many as a part of all come and go before anything is measured: caches fill, and libraries are loaded.
_WARM_UP, _WARM_UP_AT_LEAST = 10, 3
# As many may be there at the same time as addresses.
_MOST = 200
# A client that waits for a domain that has just stopped is refused once the rules are gone.
_REFUSED_WITHIN_S = 0.3
_GONE_WITHIN_S = 30.0
_UP_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Length:
    """How many domains, how many of them a minute, and how many seconds each stays once it was reached.

    A `thorough` run waits in the end until what was refused to ended connections is forgotten, which takes two minutes.
    """

    domains: int
    a_minute: float
    stay: float
    thorough: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run, and on what it ran."""

    figures: Figures
    versions: str


class Journal(Attendant):
    """Knows which ports the daemon said it assigned: those of each domain, and to which domain each was."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.daemon, _EVERY_S)
        self.ports: dict[tuple[str, int], int] = {}
        self.times: dict[int, int] = {}

    def take_note(self, text: str) -> None:
        """Note an assignment."""
        super().take_note(text)
        if found := _ASSIGNED.match(text):
            port = int(found[1])
            self.ports[found[2], int(found[3])] = port
            self.times[port] = self.times.get(port, 0) + 1


def turned_over(flavour: Flavour, length: Length, say: Say) -> Result:
    """Set up a host and run."""
    with set_up(flavour) as scene, Journal(scene) as journal, asked_beside(scene) as beside:
        run, on = _Run(scene, journal, beside, say), versions(scene.host)
        try:
            run.all(length)
        except (LabError, OSError, libvirt.libvirtError) as error:
            run.figures.failures.append(f"{type(error).__name__}: {error}\nthe daemon said last:\n{journal.last}")
        run.figures.failures += [journal.mistakes] if journal.mistakes else []
        return Result(run.figures, on)


class _Run:
    def __init__(self, scene: Scene, journal: Journal, beside: Beside, say: Say) -> None:
        self._scene, self._journal, self._beside, self._say = scene, journal, beside, say
        self._numbers = iter(range(10**6))
        self.figures = Figures()

    def all(self, length: Length) -> None:
        PassingGuest(self._scene.host, PASSING, NETWORK).prepare()
        self._staying_answers()
        self._turn_over(Length(max(length.domains // _WARM_UP, _WARM_UP_AT_LEAST), length.a_minute, length.stay))
        self.figures = Figures(asked=length.domains, a_minute=length.a_minute, stay=length.stay)
        rules = self._at_rest()
        with self._sampled():
            began, cpu = time.monotonic(), cpu_seconds(self._scene.daemon.pid)
            self._turn_over(length)
            self.figures.cpu = cpu_seconds(self._scene.daemon.pid) - cpu
            self.figures.seconds = time.monotonic() - began
            self.figures.beside = {
                "page": self._beside.page.seconds(began),
                "locked": self._beside.libvirt.seconds(began),
            }
        if length.thorough:
            wait_until(lambda: self._rules() == self._scene.host.own_rules().splitlines(), "all is forgotten", 180, 1)
        self._look_for_leftovers(rules)

    def _turn_over(self, length: Length) -> None:
        """Start each domain at its time, and return when the last of them is gone."""
        began, lives = time.monotonic(), list[Future[None]]()
        with ThreadPoolExecutor(_MOST) as threads:
            for turn in range(length.domains):
                time.sleep(max(0.0, began + turn * 60 / length.a_minute - time.monotonic()))
                lives.append(threads.submit(self._live, f"{PASSING}{next(self._numbers)}", length.stay))
        for life in lives:
            life.result()

    def _live(self, name: str, stay: float) -> None:
        """One domain's life; what goes wrong in it is noted, and the others go on."""
        guest = PassingGuest(self._scene.host, name, NETWORK)
        try:
            self._come_and_go(guest, stay)
        except (LabError, OSError, libvirt.libvirtError) as error:
            self.figures.failures.append(f"{name}: {type(error).__name__}: {error}")
            guest.remove()

    def _come_and_go(self, guest: PassingGuest, stay: float) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(1) as creator:
            up, told = self._first_answer(guest, creator.submit(guest.create))
        both, used = max(up, told), fine_cpu_seconds(self._scene.daemon.pid)
        wait_until(lambda: self._is_open(guest.name), f"the ports of {guest.name} answer", interval=_EVERY_S)
        reached, used = time.monotonic(), fine_cpu_seconds(self._scene.daemon.pid) - used
        silent, page = self._beside.libvirt.silence(both, reached), self._beside.page.longest(up, reached)
        own = max(0.0, reached - both - silent)
        time.sleep(stay)
        there = Stay(up - began, told - up, reached - up, own, self._closed_after_stop(guest))
        if there.late > LATE_AT_MOST_S:
            self.figures.each_late.append(Late(guest.name, there, silent, page, used, self._ending(up, reached)))
        self._note(there)

    def _closed_after_stop(self, guest: PassingGuest) -> float:
        guest.stop()
        stopped = time.monotonic()
        wait_until(lambda: self._is_closed(guest.name), f"the ports of {guest.name} are closed", _GONE_WITHIN_S)
        return time.monotonic() - stopped

    def _ending(self, begin: float, end: float) -> int:
        """Count the containers that libvirt had lost, and ended, between two times."""
        return sum(since < end and until > begin for since, until in self.figures.lost)

    def _first_answer(self, guest: PassingGuest, creating: Future[Created]) -> tuple[float, float]:
        """Give when a guest answered first on its own address, and when libvirt told that it runs: maybe later."""
        answered: dict[int, float] = {}  # by PID 1, as libvirt may have to start another one

        def is_up() -> bool:
            init = guest.started()
            if init is not None and init not in answered and self._answers_itself(guest, init):
                answered[init] = time.monotonic()
            return creating.done() and creating.result().init in answered

        wait_until(is_up, f"{guest.name} answers", _UP_WITHIN_S, _EVERY_S)
        created = creating.result()
        self.figures.lost += created.lost
        return answered[created.init], created.told

    def _answers_itself(self, guest: PassingGuest, init: int) -> bool:
        address = guest.address(init)
        if address is None:
            return False
        return self._scene.host.guest_place(init).fetch(f"http://{address}:{PORTS[0]}/").answered

    def _is_open(self, name: str) -> bool:
        return all(self._answers(name, port) for port in PORTS)

    def _answers(self, name: str, port: int) -> bool:
        """Whether a client outside gets the page of this guest; the page of another one is a failure."""
        assigned = self._journal.ports.get((name, port))
        if assigned is None:
            return False
        answer = self._scene.host.outside.fetch(f"http://{PUBLIC4}:{assigned}/")
        if answer.answered and answer.text != f"{name} {CLIENT4}":
            self.figures.failures.append(f"{name}: {answer.text} answered at port {assigned}")
        return answer.text == f"{name} {CLIENT4}"

    def _is_closed(self, name: str) -> bool:
        ports = [self._journal.ports[name, port] for port in PORTS]
        fetch = self._scene.host.outside.fetch
        answers = [fetch(f"http://{PUBLIC4}:{port}/", timeout=_REFUSED_WITHIN_S) for port in ports]
        return all(answer.outcome is Outcome.REFUSED for answer in answers)

    def _note(self, stay: Stay) -> None:
        self.figures.stays.append(stay)
        if len(self.figures.stays) % _TOLD_EVERY == 0:
            self._say(f"{len(self.figures.stays)} came and went: {self.figures.said()}")

    def _at_rest(self) -> list[str]:
        """Note what the daemon holds when it does nothing; gives our rules."""
        pid = self._scene.daemon.pid
        wait_until(lambda: PASSING not in self._scene.host.own_rules(), "the rules of domains that are gone go")
        wait_quiet(pid)
        taken = memory(pid)
        self.figures.rest.append(Rest(taken.rss, taken.pss, dict(held(self._scene.host, pid)), taken.private))
        return self._rules()

    def _rules(self) -> list[str]:
        """Give our rules without ended connections, which are forgotten after a while."""
        rules = _ENDED_ELEMENTS.sub(r"\1", self._scene.host.own_rules()).splitlines()
        return [rule for rule in rules if not _ENDED_RULE.match(rule)]

    def _look_for_leftovers(self, rules: list[str]) -> None:
        left = [f"rule: {line.strip()}" for line in self._at_rest() if line not in rules]
        left += [f"domain: {name}" for name in self._scene.host.libvirt.domains() if name != STAYING]
        told = self._scene.host.portfwd("status", "--json").stdout
        left += [f"in the status: {name}" for name in sorted(set(re.findall(rf'"({PASSING}\w+)"', told)))]
        self.figures.left = left
        self.figures.assigned = len(self._journal.times)
        self.figures.twice = sum(times > 1 for times in self._journal.times.values())
        self._staying_answers()

    def _staying_answers(self) -> None:
        url = f"http://{PUBLIC4}:{STAYING_PORT}/"
        wait_until(lambda: self._scene.host.outside.fetch(url).text == f"{STAYING} {CLIENT4}", "the guest that stays")

    @contextmanager
    def _sampled(self) -> Iterator[None]:
        """Note how busy the machine is, and the daemon's memory, every few seconds."""
        over = threading.Event()

        def sample() -> None:
            while not over.wait(_SAMPLED_EVERY_S):
                self.figures.loads.append(os.getloadavg()[0])
                taken = memory(self._scene.daemon.pid)
                self.figures.rss.append(taken.rss)
                self.figures.private.append(taken.private)

        thread = threading.Thread(target=sample, name="samples")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
