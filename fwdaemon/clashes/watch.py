"""Looks for clashes: now and then for the daemon, and once for who asks."""

import logging
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias

from fwdaemon.clashes import listening, rivals
from fwdaemon.clashes.foreign import Foreign, ForeignRules
from fwdaemon.clashes.port_index import PortSet
from fwdaemon.clashes.taking import as_if_running, takings
from fwdaemon.config.model import Config
from fwdaemon.desired import Desired
from fwdaemon.errors import KernelError, PortfwdError
from fwdaemon.host import observe_host
from fwdaemon.model import Address, PortRange
from fwdaemon.process import Runner
from fwdaemon.sockets.holders import Holders
from fwdaemon.sockets.listing import listeners
from fwdaemon.sockets.model import Listener

_log = logging.getLogger(__name__)

# Of this thread's network namespace; ip-sysctl.rst.
_CLIENT_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
# A journal is no place for a list.
_MOST: Final = 20

_Compared: TypeAlias = tuple[Desired, Collection[Address], Collection[Listener], Foreign]


class ClashWatch:
    """For the daemon: what clashes with what is open. Its methods block; call them from one thread at a time."""

    def __init__(self, runner: Runner) -> None:
        self._rules = ForeignRules(runner)
        self._holders = Holders()
        self._foreign = Foreign()
        self._state: object = None
        self._desired: Desired | None = None
        self._compared: _Compared | None = None
        self._found: tuple[str, ...] = ()

    def look(
        self, desired: Desired, local: Collection[Address], *, thorough: bool, reloaded: bool = False
    ) -> tuple[str, ...]:
        """Tell of each clash in a sentence, of twenty at most.

        Sockets are listed when something else is desired, and with `thorough`, as nobody tells of a new one. Rules of
        others are read only if `thorough`, and only where they changed, or when the configuration was `reloaded`.
        """
        rules = self._desired is None or thorough or reloaded
        if rules or desired is not self._desired:
            self._desired = desired
            try:
                if rules:
                    self._read_rules(anew=reloaded)
                self._compare(desired, local)
            except Exception:  # noqa: BLE001  what is only worth knowing must not keep openings from being made
                _log.exception("this is a mistake in kvm-portfwd; what clashes with openings is not known")
        return self._found

    def _read_rules(self, *, anew: bool) -> None:
        try:
            state = self._rules.state()
            if anew or state != self._state:
                self._state, self._foreign = state, self._rules.read()
        except PortfwdError as error:
            _log.debug("nothing is compared with the rules of others: %s", error)

    def _compare(self, desired: Desired, local: Collection[Address]) -> None:
        try:
            compared = desired, local, frozenset(listeners()), self._foreign
        except PortfwdError as error:
            _log.debug("nothing is compared with the sockets of the host: %s", error)
            return
        if compared != self._compared:
            self._found = _cut_short(_sentences(*compared, self._holders))
            self._compared = compared


def clashes_if_running(config: Config, runner: Runner) -> tuple[list[str], str]:
    """Tell what would clash if all domains ran, and why something was left out, if it was."""
    if not (config.forwards or config.nats):
        return [], ""
    try:
        host, sockets = observe_host(), listeners()
        foreign, missing = _rules_if_allowed(runner)
        inner = [item.subnet for item in host.addresses if item.device not in host.outer]
        local = frozenset(item.address for item in host.addresses)
        return list(_sentences(as_if_running(config, inner), local, sockets, foreign, Holders())), missing
    except PortfwdError as error:
        return [], f"not compared with this host: {error}"


def _rules_if_allowed(runner: Runner) -> tuple[Foreign, str]:
    try:
        return ForeignRules(runner).read(), ""
    except PortfwdError as error:
        return Foreign(), f"not compared with the rules of other tools: {error}"


def _sentences(
    desired: Desired, local: Collection[Address], sockets: Collection[Listener], foreign: Foreign, holders: Holders
) -> Iterator[str]:
    # Most forwards are on ports that nobody else has anything to do with.
    watched = PortSet(
        chain(
            (PortRange(socket.port, socket.port) for socket in sockets),
            (ports for other in foreign.translations for ports in rivals.ports_of(other.scope)),
        )
    )
    taken = list(takings(desired, local, watched))
    found = listening.overheard(taken, sockets, _client_ports(), desired.guest_subnets)
    names = holders.name({socket for item in found for socket in item.sockets})
    yield from listening.sentences(found, names)
    yield from sorted(rivals.sentences(taken, foreign.translations, foreign.ours, local))


def _client_ports() -> PortRange:
    """Read which ports the kernel gives to sockets that ask for none."""
    try:
        first, last = map(int, _CLIENT_PORTS.read_text(encoding="ascii").split())
    except (OSError, ValueError) as error:
        raise KernelError(f"the kernel does not tell which ports clients get: {error}") from error
    return PortRange(first, last)


def _cut_short(sentences: Iterable[str]) -> tuple[str, ...]:
    found = tuple(sentences)
    if len(found) <= _MOST:
        return found
    more = f"{len(found) - _MOST} more ports clash with processes or rules of the host; `kvm-portfwd check` names all"
    return *found[:_MOST], more
