"""The daemon's side of the helpers: starts them when they are first needed, asks, and never leaves one behind.

A helper ends when its standard input does, so it cannot outlive whoever holds a `HelperClient`, however that ends.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fwdaemon.core.types import Family
from fwdaemon.errors import HangingError, KernelError, PortfwdError
from fwdaemon.kernel.process import Companion
from fwdaemon.legacy import model
from fwdaemon.legacy.info import PATH_VARIABLE
from fwdaemon.legacy.model import Change, ObservedTable, TableName

# Others hold iptables' lock for milliseconds. A helper may do nothing for longer than this.
_PATIENCE = 1.5
_HELPER = "fwdaemon.legacy.helper"
# Python's own distutils, for one path that python-iptables asks it for; that of setuptools takes a tenth of a second.
_QUICK = {"SETUPTOOLS_USE_DISTUTILS": "stdlib"}
_INHERITED = (PATH_VARIABLE, "IPTABLES_LIBDIR", "XTABLES_LIBDIR", "LD_LIBRARY_PATH")


class UnusableError(PortfwdError):
    """The legacy tables of a family cannot be used on this host."""


class LateError(KernelError):
    """Somebody holds iptables' lock, or the helper hung."""


class Session(Protocol):
    """The tables of one family, held under iptables' lock."""

    def observe(self, heads: model.Heads, behind: Collection[str]) -> dict[TableName, ObservedTable]:
        """Read tables; `heads` are the rules of ours that are looked for, by table and chain.

        `behind` are patterns of chains: jumps to these stay ahead of our rules.

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
        self._patience = _PATIENCE
        self._helper: Companion | None = None

    @property
    def pid(self) -> int | None:
        """The process number of the helper, while there is one."""
        return self._helper.pid if self._helper else None

    @contextmanager
    def locked(self, patience: float = _PATIENCE) -> Iterator[Session]:
        """Hold iptables' lock from the first look on until the end of the block; it may take `patience` seconds.

        Raises:
            UnusableError: the legacy tables of this family lack something we need; its text says what.
            KernelError: the helper cannot be started.

        """
        self._patience = patience
        if self._helper is None:
            self._start()
        try:
            yield self
        finally:
            if self._helper is not None:
                self._ask({"do": model.RELEASE})

    def observe(self, heads: model.Heads, behind: Collection[str]) -> dict[TableName, ObservedTable]:
        """See `Session.observe`."""
        request = {"do": model.OBSERVE, "heads": model.pack_heads(heads), "behind": tuple(behind)}
        answer = self._ask({**request, "patience": self._patience})
        return {TableName(name): model.unpack_observed(packed) for name, packed in answer.items()}

    def commit(self, table: TableName, change: Change) -> None:
        """See `Session.commit`."""
        self._ask({"do": model.COMMIT, "table": table.value, "change": model.pack_change(change)})

    def close(self) -> None:
        """End the helper, if there is one."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.close()

    def _start(self) -> None:
        try:
            inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
            self._helper = Companion(_HELPER, str(int(self._family)), _QUICK | _beside_library() | inherited)
        except OSError as error:
            raise KernelError(f"cannot start the helper for IPv{self._family}: {error}") from error
        missing = self._ask({"do": model.SELF_TEST})
        if missing:
            self.close()
            raise UnusableError("; ".join(missing))

    def _ask(self, request: Mapping[str, Any]) -> Any:
        answer = self._exchange(json.dumps(request))
        if "error" in answer:
            if answer["final"]:
                self.close()
            kind = UnusableError if answer["unusable"] else LateError if answer["late"] else KernelError
            raise kind(answer["error"])
        return answer["ok"]

    def _exchange(self, line: str) -> Any:
        """Send a line and wait for one; a helper that takes too long, or is gone, is given up."""
        helper = self._helper
        if helper is None:
            raise KernelError(f"the helper for IPv{self._family} has gone")
        try:
            answer = helper.exchange(line)
        except HangingError as error:
            self.close()
            raise LateError(str(error)) from error
        if not answer:
            self._helper = None
            status = helper.close()
            raise KernelError(f"the helper for IPv{self._family} ended unexpectedly, with status {status}")
        return json.loads(answer)


def _beside_library() -> dict[str, str]:
    """Tell python-iptables where its own C part is; it would run a compiler and a linker, as root, to find it."""
    spec = find_spec("iptc")
    return {"IPTABLES_LIBDIR": str(Path(spec.origin).parents[1])} if spec is not None and spec.origin else {}
