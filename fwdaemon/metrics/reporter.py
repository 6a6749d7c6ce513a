"""Metrics as a part of the daemon: counts its reconciles, keeps the file fresh and the listener open.

What takes long, counting connections and writing text, is done by threads that nothing else waits for.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeVar

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.config.model import Config, MetricsSettings
from fwdaemon.control.manager import Feed
from fwdaemon.core.report import ReconcileReport
from fwdaemon.errors import PortfwdError
from fwdaemon.kernel.process import Worker
from fwdaemon.metrics.exposition import Exposition
from fwdaemon.metrics.figures import Tally, metrics_of
from fwdaemon.metrics.listener import Listener, Textfile
from fwdaemon.status.model import Status

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# A file system may hang.
_PATIENCE_S: Final = 2.0


class Reporter:
    """Reports what `status` gives and what was counted; `feed` tells when something changed. On the loop's thread.

    A text is good for `fresh` seconds, for clients and the file, and for so many `times` as long as it took to make: so
    metrics never take more than a tenth of the interpreter's time, however many ask, in however many forms.
    """

    def __init__(
        self, status: Callable[[], Awaitable[Status]], feed: Feed, *, fresh: float = 1.0, times: int = 10
    ) -> None:
        self._status = status
        self._feed = feed
        self._fresh, self._times = fresh, times
        self._tally = Tally()
        self._worker = Worker("metrics")
        self._wanted = MetricsSettings(), 0.0
        self._keeping: asyncio.Task[None] | None = None
        self._made: asyncio.Future[Exposition] | None = None
        self._began = self._took = 0.0
        self._warning = WarnOnce()

    def pass_ended(self, report: ReconcileReport, seconds: float) -> None:
        """Count a reconcile that ended well and took so long."""
        self._tally = self._tally.pass_ended(report, seconds)

    def failed(self, seconds: float) -> None:
        """Count one that did not."""
        self._tally = self._tally.failed(seconds)

    async def set_up(self, config: Config) -> None:
        """Report as this configuration says."""
        wanted = config.metrics, config.daemon.resync.total_seconds()
        if wanted != self._wanted:
            await self._end()
            self._wanted = wanted
            if config.metrics.textfile or config.metrics.listen:
                self._keeping = asyncio.create_task(self._keep(*wanted))

    async def close(self) -> None:
        """Report no more; the file goes."""
        await self._end()
        await self._worker.close(_PATIENCE_S)

    async def _end(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None

    async def _keep(self, settings: MetricsSettings, period: float) -> None:
        """Serve and write until cancelled: whenever something changed, and after `period` seconds at the latest."""
        listener = Listener(settings.listen, self.answer) if settings.listen else None
        textfile = Textfile(settings.textfile) if settings.textfile else None
        changes = self._feed.subscribe()
        try:
            while True:
                changes.take()
                if listener is not None:
                    listener.open()
                if textfile is not None:
                    await self._write(textfile)
                await asyncio.sleep(max(self._fresh, self._good_until - asyncio.get_running_loop().time()))
                with suppress(TimeoutError):
                    async with asyncio.timeout(period):
                        await changes.wait()
        finally:
            self._feed.leave(changes)
            if listener is not None:
                await listener.close()
            if textfile is not None:
                await asyncio.wait({self._worker.submit(textfile.remove)}, timeout=_PATIENCE_S)

    async def _write(self, textfile: Textfile) -> None:
        if self._made is not None:
            # One that was begun before the change would not tell of it.
            await asyncio.wait({self._made})
        try:
            exposition = await self._begin()
            await self._work(lambda: textfile.write(exposition.text()))
        except (PortfwdError, OSError) as error:  # no thread or no descriptor is to be had
            self._warning.warn(f"no metrics are written: {error}")
        except Exception:  # noqa: BLE001 - it is told, and the next time may be better
            _log.exception("no metrics are written: this is a bug in kvm-portfwd")
        else:
            self._warning.settle()

    async def text(self) -> bytes:
        """Give the last metrics while they are good, or those that are being made; others may wait for them too.

        Raises:
            ImportError: the library for metrics is not installed.

        """
        exposition = await self._current()
        return await self._work(exposition.text)

    async def answer(self, request: bytes) -> list[bytes]:
        """Answer a request by HTTP with the same.

        Raises:
            ImportError: the library for metrics is not installed.

        """
        exposition = await self._current()
        return await self._work(partial(exposition.answer, request))

    def _current(self) -> Awaitable[Exposition]:
        is_stale = asyncio.get_running_loop().time() >= self._good_until
        if self._made is None or (self._made.done() and is_stale):
            return self._begin()
        return asyncio.shield(self._made)

    @property
    def _good_until(self) -> float:
        return self._began + self._took + max(self._fresh, self._times * self._took)

    def _begin(self) -> Awaitable[Exposition]:
        self._made = asyncio.ensure_future(self._make())
        return asyncio.shield(self._made)

    async def _make(self) -> Exposition:
        clock = asyncio.get_running_loop().time
        self._began, self._took = clock(), 0.0
        try:
            status, tally, now = await self._status(), self._tally, datetime.now(UTC)
        finally:
            self._took = clock() - self._began
        return await self._work(partial(Exposition, partial(metrics_of, status, tally, now)))

    async def _work(self, work: Callable[[], _Result]) -> _Result:
        """Have it done by the thread, and add how long that took."""
        result, seconds = await self._worker.submit(partial(_timed, work))
        self._took += seconds
        return result


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    began = time.monotonic()
    return work(), time.monotonic() - began
