"""Presses lifecycle events out of libvirt: three threads, one for each kind of life, kept in step with the wipes."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import libvirt

from tests.endurance.pace import Pace
from tests.endurance.scene import IDLE, Scene
from tests.lab.lxc import LxcGuest

# Of a hundred events, so many are starts and stops, the dearest; suspends and resumes; the rest defines and undefines.
_LIVES, _PAUSES = 6, 14
_REFUSED_PAUSE_S = 0.1
# All guests run when none had to be started in so many looks.
_STILL, _STILL_S = 3, 0.3
_SETTLED_WITHIN_S = 120.0


def shares(events: int) -> dict[str, int]:
    """How many events each thread presses, of so many in all."""
    lives, pauses = events * _LIVES // 100, events * _PAUSES // 100
    return {"lives": lives, "pauses": pauses, "definitions": events - lives - pauses}


class Events:
    """The threads. `refused` is what libvirt did not do, as its driver for containers does now and then under load."""

    def __init__(self, scene: Scene, pace: Pace) -> None:
        self._scene, self._pace = scene, pace
        self.refused: list[str] = []
        self._documents = [_document(guest) for guest in scene.idle]

    @contextmanager
    def pressed(self) -> Iterator[None]:
        """Press in the background; the end of the block waits for what is under way."""
        todo = {"lives": self._live, "pauses": self._pause, "definitions": self._define}
        threads = [threading.Thread(target=self._work, args=item, name=f"events-{item[0]}") for item in todo.items()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._pace.stop()
            for thread in threads:
                thread.join()

    def _work(self, worker: str, steps: Callable[[libvirt.virConnect], Iterator[Callable[[], object]]]) -> None:
        with self._scene.host.libvirt.connection() as connection:
            turns = steps(connection)
            while self._pace.next(worker):
                try:
                    next(turns)()
                except libvirt.libvirtError as error:
                    self.refused.append(str(error))
                    time.sleep(_REFUSED_PAUSE_S)
                self._pace.done(worker)

    def _live(self, connection: libvirt.virConnect) -> Iterator[Callable[[], object]]:
        """Start those that are down and stop those that are up, in turn: each is away for longer than the grace."""
        for guest in itertools.cycle(self._scene.passing):
            yield partial(_turn_over, connection, guest.name)

    def _pause(self, connection: libvirt.virConnect) -> Iterator[Callable[[], object]]:
        name = self._scene.pausing.name
        return itertools.cycle(
            (lambda: connection.lookupByName(name).suspend(), lambda: connection.lookupByName(name).resume())
        )

    def _define(self, connection: libvirt.virConnect) -> Iterator[Callable[[], object]]:
        """Define, define again and undefine one domain after the other."""
        for guest, document in itertools.cycle(zip(self._scene.idle, self._documents, strict=True)):
            define = partial(connection.defineXML, document)
            yield from (define, define, partial(_undefine, connection, guest.name))

    def settle(self) -> None:
        """Bring all back as it was: what passes runs, what pauses goes on, what is idle is forgotten.

        libvirt may take the late end of a container that was just stopped for that of its successor, and stop it too.
        """
        with self._scene.host.libvirt.connection() as connection:
            for domain in connection.listAllDomains():
                if domain.name().startswith(IDLE):
                    domain.undefine()
                elif int(domain.state()[0]) == libvirt.VIR_DOMAIN_PAUSED:
                    domain.resume()
            still, deadline = 0, time.monotonic() + _SETTLED_WITHIN_S
            while still < _STILL:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"after {_SETTLED_WITHIN_S:g} s guests still end by themselves")
                time.sleep(_STILL_S)
                still = 0 if _started(connection) else still + 1


def _started(connection: libvirt.virConnect) -> int:
    """Start those that do not run, and give how many that were."""
    ended = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE)
    for domain in ended:
        domain.create()
    return len(ended)


def _turn_over(connection: libvirt.virConnect, name: str) -> None:
    domain = connection.lookupByName(name)
    (domain.destroy if domain.isActive() else domain.create)()


def _undefine(connection: libvirt.virConnect, name: str) -> None:
    connection.lookupByName(name).undefine()


def _document(guest: LxcGuest) -> str:
    """A definition that may be defined again: its UUID is the same each time."""
    with guest.define().domain() as domain:
        document = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        domain.undefine()
    return document
