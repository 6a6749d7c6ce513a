"""Metrics as a part of the daemon, as prometheus_client writes and answers them; it escapes labels of any text.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from importlib.util import find_spec
from io import BufferedIOBase, BytesIO
from pathlib import Path
from sys import stderr
from typing import IO, Any, Final, NamedTuple, TypeAlias, TypeVar, cast

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.config.model import Config, MetricsSettings
from fwdaemon.core.report import ReconcileReport
from fwdaemon.core.types import Job, Origin
from fwdaemon.errors import ConfigError, PortfwdError, Problem
from fwdaemon.kernel.process import Worker
from fwdaemon.metrics.figures import Metric, Tally, metrics_of
from fwdaemon.metrics.listener import Listener, Textfile
from fwdaemon.status.model import Status
from fwdaemon.status.records import Feed

# A client that names versions can ask for any number of forms; beyond these it gets the one of those that name none.
_MOST_FORMS: Final = 8

_PLAIN: Final = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}

_App: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Head(NamedTuple):
    """What comes ahead of an answer; it says in which form that is."""

    status: str
    headers: tuple[tuple[str, str], ...]


class Exposition:
    """The metrics of one moment, in each form that is asked for, which is made once.

    `metrics` gives them, once for each form. To make one takes a while where there are many, and the first time, when
    the library is loaded. The methods block; call them from one thread at a time.
    """

    def __init__(self, metrics: Callable[[], Iterable[Metric]]) -> None:
        from prometheus_client import CollectorRegistry, make_wsgi_app  # noqa: PLC0415  an extra, 60 ms

        self._registry = CollectorRegistry()
        self._registry.register(_collector(metrics))
        self._app: _App = make_wsgi_app(self._registry)
        # Without metrics it says at once in which form it would answer.
        self._empty: _App = make_wsgi_app(CollectorRegistry())
        self._bodies: dict[_Head, bytes] = {}

    def text(self) -> bytes:
        """Give them in the form for clients that name none."""
        return self._answered(dict(_PLAIN), lambda *_: None)[0]

    def answer(self, request: bytes) -> list[bytes]:
        """Give the answer to the head of a request, in pieces, since what many ask for is not to be copied for each."""
        return _handler()(request, self._answered)

    def _answered(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """Answer as a WSGI application (PEP 3333)."""
        asked, head = self._negotiated(environ)
        if head not in self._bodies:
            self._bodies[head] = b"".join(self._app(asked, lambda *_: None))
        start_response(head.status, list(head.headers))
        return [self._bodies[head]]

    def _negotiated(self, environ: Mapping[str, Any]) -> tuple[dict[str, Any], _Head]:
        """Give what is answered, and how it begins."""
        try:
            asked = dict(environ)
            head = _head(self._empty, asked)
        except Exception:  # noqa: BLE001 - prometheus_client 0.26 raises TypeError where a version is no number
            head = None
        if head is None or (head not in self._bodies and len(self._bodies) >= _MOST_FORMS):
            asked = dict(_PLAIN)
            head = _head(self._empty, asked)
        return asked, head


@cache
def _handler() -> Callable[[bytes, _App], list[bytes]]:
    """Give what answers a request in memory, by an application for GET, and otherwise by the standard library."""
    from http.server import BaseHTTPRequestHandler  # noqa: PLC0415 - with it 20 ms, and most hosts have no metrics
    from wsgiref.handlers import SimpleHandler  # noqa: PLC0415  as above

    class Request(BaseHTTPRequestHandler):
        def __init__(self, request: bytes, app: _App) -> None:
            self._app = app
            self.answer: list[bytes] = []
            self.rfile, self.wfile = BytesIO(request), _Writer(self.answer)
            self.handle()

        def do_GET(self) -> None:
            """Answer with all metrics, whatever the path and the query are: each choice would be one more form."""
            environ = {
                **_PLAIN,
                "SERVER_PROTOCOL": self.request_version,
                "HTTP_ACCEPT": self.headers.get("Accept", ""),
                "HTTP_ACCEPT_ENCODING": self.headers.get("Accept-Encoding", ""),
            }
            SimpleHandler(self.rfile, cast(IO[bytes], self.wfile), stderr, environ, multithread=False).run(self._app)

        def log_message(self, *_: object) -> None:
            """Say nothing: any client could fill the journal."""

    return lambda request, app: Request(request, app).answer


class _Writer(BufferedIOBase):
    """Keeps what is written as it is."""

    def __init__(self, written: list[bytes]) -> None:
        self._written = written

    def write(self, data: Any) -> int:
        """Keep a piece."""
        self._written.append(data)
        return len(data)


def _head(app: _App, environ: dict[str, Any]) -> _Head:
    begun: list[_Head] = []
    app(environ, lambda status, headers: begun.append(_Head(status, tuple(headers))))
    return begun[0]


def _collector(metrics: Callable[[], Iterable[Metric]]) -> Any:
    from prometheus_client.core import Metric as Exposed  # noqa: PLC0415  as above
    from prometheus_client.registry import Collector  # noqa: PLC0415  as above

    class Found(Collector):
        def collect(self) -> Iterable[Exposed]:
            for metric in metrics():
                exposed = Exposed(metric.name, metric.help, metric.type)
                for sample in metric.samples:
                    exposed.add_sample(metric.name + sample.suffix, dict(sample.labels), sample.value)
                yield exposed

    return Found()


# The library that metrics need, and others do not have to have.
_LIBRARY: Final = "prometheus_client"
_MISSING: Final = (
    "metrics: needs the Python library prometheus-client, which is not installed; install it, on Debian with"
    ' "apt install python3-prometheus-client", elsewhere with "pip install kvm-portfwd[metrics]", or remove the table'
)


def satisfied(config: Config) -> Config:
    """Give the configuration back, if what it asks for is installed.

    Raises:
        ConfigError: it asks for metrics, and their library is not there.

    """
    if _is_short(config):
        origin = config.metrics.origin or Origin(Path(), 1)
        raise ConfigError([Problem(origin.file, origin.line, _MISSING)])
    return config


def without_what_is_missing(config: Config) -> Config:
    """Give a configuration that must do, without metrics where their library is not there."""
    return replace(config, metrics=MetricsSettings()) if _is_short(config) else config


def _is_short(config: Config) -> bool:
    wanted = config.metrics.textfile or config.metrics.listen
    return bool(wanted) and find_spec(_LIBRARY) is None


# Counts the daemon's reconciles, keeps the file fresh and the listener open.
#
# What takes long, counting connections and writing text, is done by threads that nothing else waits for.
_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# A file system may hang.
_PATIENCE_S: Final = 2.0


class Reporter:
    """Reports what `status` gives and what was counted; `feed` says when something changed. On the loop's thread.

    A text is good for `fresh` seconds, for clients and the file, and for so many `times` as long as it took to make: so
    metrics never take more than a tenth of the interpreter's time, however many ask, in however many forms.
    """

    def __init__(
        self,
        status: Callable[[], Awaitable[Status]],
        feed: Feed,
        *,
        fresh: float = 1.0,
        times: int = 10,
    ) -> None:
        self._status = status
        self._feed = feed
        self._fresh, self._times = fresh, times
        self._tally = Tally()
        self._worker = Worker("metrics", Job.METRICS)
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
            # One that was begun before the change would not include it.
            await asyncio.wait({self._made})
        try:
            exposition = await self._begin()
            await self._work(lambda: textfile.write(exposition.text()))
        except (PortfwdError, OSError) as error:  # no thread or descriptor is available
            self._warning.warn(f"no metrics are written: {error}")
        except Exception:  # noqa: BLE001 - it is logged, and the next time may be better
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
            status, now = await self._status(), datetime.now(UTC)
        finally:
            self._took = clock() - self._began
        return await self._work(partial(Exposition, partial(metrics_of, status, self._tally, now)))

    async def _work(self, work: Callable[[], _Result]) -> _Result:
        """Have it done by the thread, and add how long that took."""
        result, seconds = await self._worker.submit(partial(_timed, work))
        self._took += seconds
        return result


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    began = time.monotonic()
    return work(), time.monotonic() - began
