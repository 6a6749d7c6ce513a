"""The daemon's side of the helpers: starts them when they are first needed, asks, and never leaves one behind.

A helper ends when its standard input does, so it cannot outlive whoever holds a `HelperClient`, however that ends.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from fwdaemon.errors import KernelError, PortfwdError
from fwdaemon.legacy import wire
from fwdaemon.legacy.difference import Change
from fwdaemon.legacy.lock import PATH_VARIABLE
from fwdaemon.legacy.model import ObservedTable, TableName
from fwdaemon.model import Family
from fwdaemon.process import Companion

_TIMEOUT = 60.0
_PATIENCE = 5.0
_HELPER = "fwdaemon.legacy.helper"
_TOLD_VARIABLES = (PATH_VARIABLE, "XTABLES_LIBDIR", "LD_LIBRARY_PATH")


class UnusableError(PortfwdError):
    """The legacy tables of a family cannot be used on this host."""


class Session(Protocol):
    """The tables of one family, held under iptables' lock."""

    def observe(self, heads: wire.Heads) -> dict[TableName, ObservedTable]:
        """Read tables; `heads` are the rules of ours that are looked for, by table and chain.

        Raises:
            UnusableError: one of them is not there, and cannot be.
            KernelError: they cannot be read.

        """
        ...

    def commit(self, table: TableName, change: Change) -> None:
        """Change one table that was observed, at once.

        Raises:
            KernelError: the table or a rule was refused, or somebody without the lock was faster; nothing was changed.

        """
        ...


class HelperClient:
    """One family's helper. For one thread at a time."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._helper: Companion | None = None

    @property
    def pid(self) -> int | None:
        """The process number of the helper, while there is one."""
        return self._helper.pid if self._helper else None

    @contextmanager
    def locked(self) -> Iterator[Session]:
        """Hold iptables' lock from the first look on until the end of the block.

        Raises:
            UnusableError: the legacy tables of this family lack something we need; its text says what.
            KernelError: the helper cannot be started.

        """
        if self._helper is None:
            self._start()
        try:
            yield self
        finally:
            if self._helper is not None:
                self._ask({"do": wire.RELEASE})

    def observe(self, heads: wire.Heads) -> dict[TableName, ObservedTable]:
        """See `Session.observe`."""
        answer = self._ask({"do": wire.OBSERVE, "heads": wire.pack_heads(heads)})
        return {TableName(name): wire.unpack_observed(packed) for name, packed in answer.items()}

    def commit(self, table: TableName, change: Change) -> None:
        """See `Session.commit`."""
        self._ask({"do": wire.COMMIT, "table": table.value, "change": wire.pack_change(change)})

    def close(self) -> None:
        """End the helper, if there is one."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.close(_PATIENCE)

    def _start(self) -> None:
        try:
            told = {name: os.environ[name] for name in _TOLD_VARIABLES if name in os.environ}
            self._helper = Companion(_HELPER, str(int(self._family)), told)
        except OSError as error:
            raise KernelError(f"cannot start the helper for IPv{self._family}: {error}") from error
        missing = self._ask({"do": wire.SELF_TEST})
        if missing:
            self.close()
            raise UnusableError("; ".join(missing))

    def _ask(self, request: Mapping[str, Any]) -> Any:
        answer = self._exchange(json.dumps(request))
        if "error" in answer:
            if answer["final"]:
                self.close()
            raise UnusableError(answer["error"]) if answer["unusable"] else KernelError(answer["error"])
        return answer["ok"]

    def _exchange(self, line: str) -> Any:
        """Send a line and wait for one; a helper that takes too long, or is gone, is given up."""
        helper = self._helper
        if helper is None:
            raise KernelError(f"the helper for IPv{self._family} is not there any more")
        answer = helper.exchange(line, _TIMEOUT)
        if not answer:
            self._helper = None
            status = helper.close(_PATIENCE)
            raise KernelError(f"the helper for IPv{self._family} ended unexpectedly, with status {status}")
        return json.loads(answer)
