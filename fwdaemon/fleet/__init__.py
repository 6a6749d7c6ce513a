"""One table for many hosts, in etcd: read, kept for a start without it, and public addresses that one host holds each.

`etcd` talks to etcd, `table` is what is in force, `claims` says which addresses this host may have and until when, and
`member` does all of that in a thread of its own. What the daemon sees of them is here.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fwdaemon.audit import lines
from fwdaemon.config.model import Config
from fwdaemon.core.report import Fault, FaultKind, Reason, ReasonKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import FleetState
from fwdaemon.errors import ConfigError
from fwdaemon.fleet.claims import Claims, Timing
from fwdaemon.fleet.table import KeptTable, Site, Table, with_table
from fwdaemon.hostnet.owned_state import DIRECTORY, OwnedStateFile
from fwdaemon.status.reloads import STATE

if TYPE_CHECKING:
    from fwdaemon.fleet.member import Member

__all__ = ["Fleet", "Timing"]

_TIMING = Timing()


class Fleet:
    """What the daemon knows of the fleet. Without `[fleet]`, there is none, and no thread.

    `main` is the file with the settings, and `notify` is called from any thread when something is to be looked at.
    """

    def __init__(
        self, main: Path = Path(), state: Path = STATE, directory: Path = DIRECTORY, timing: Timing = _TIMING
    ) -> None:
        self.claims = Claims(OwnedStateFile("fleet", directory))
        self._main, self._kept, self._timing = main, KeptTable(state), timing
        self._config: Config | None = None
        self._notify: Callable[[], None] = lambda: None
        self._member: Member | None = None
        self._table: Config | None = None
        self._left_out: tuple[Fault, ...] = ()

    def begin(self, config: Config, notify: Callable[[], None]) -> None:
        """Go on with the table that is kept, and begin to follow the one in etcd."""
        self._notify = notify
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Follow another configuration: what the table means may depend on it."""
        before, self._config = self._config, config
        if before is not None and (before.fleet, before.daemon) == (config.fleet, config.daemon):
            return
        self._end()
        if config.fleet is None:
            self._table = None
            return
        self.claims.follow(config.fleet.on_partition)
        table, self._table = Table.of(config.fleet.prefix, ()), None
        if (known := self._kept.kept(config.fleet)) is not None:
            try:
                table, self._table = known, known.read(config, self._main)
            except ConfigError as error:
                lines.configuration_refused(error.problems, "the table that was kept is not used")
        from fwdaemon.fleet.member import Member  # noqa: PLC0415  most hosts have no fleet

        self._member = Member(Site(config, config.fleet, self._main), self.claims, self._kept, table, self._notify)
        self._member.start(self._timing)

    def merged(self, config: Config) -> Config:
        """Add what the table says to what the files do."""
        if self._table is None:
            self._left_out = ()
            return config
        merged, gone = with_table(config, self._table)
        self._left_out = tuple(
            Fault(FaultKind.TABLE_LEFT_OUT, (str(origin), str(taker))) for origin, taker in gone.items()
        )
        return merged

    def take_reasons(self) -> list[Reason]:
        """Put a newer table in force; report that, and addresses that were taken and lost, since the last call."""
        reasons = self.claims.take_reasons()
        if self._member is not None and (news := self._member.take()) is not None:
            self._table = news[1]
            reasons.append(Reason(ReasonKind.TABLE, str(news[0].revision)))
        return reasons

    def applied(self, desired: Desired) -> None:
        """Note what the kernel holds now."""
        self.claims.applied(desired)
        if self._member is not None:
            self._member.serve(desired)

    @property
    def problems(self) -> tuple[Fault, ...]:
        """What is wrong, for the status."""
        return (*(self._member.problems if self._member is not None else ()), *self._left_out)

    @property
    def state(self) -> FleetState | None:
        """How it is with etcd."""
        return None if self._member is None else self._member.state

    async def close(self, patience: float, *, remove: bool = False) -> None:
        """End the threads; with `remove`, give back what this host has claimed, as nothing of it is held any more."""
        if (member := self._end(remove=remove)) is None:
            return
        clock = asyncio.get_running_loop().time
        deadline = clock() + patience
        while member.is_alive and clock() < deadline:  # noqa: ASYNC110 - its last instruction can signal nothing
            await asyncio.sleep(0.01)

    def _end(self, *, remove: bool = False) -> "Member | None":
        ended, self._member = self._member, None
        if ended is not None:
            ended.end(remove=remove)
        return ended
