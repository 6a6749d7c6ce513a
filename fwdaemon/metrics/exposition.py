"""Metrics as prometheus_client writes them, and its answers by HTTP; it is also where labels of any text are escaped.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from io import BufferedIOBase, BytesIO
from pathlib import Path
from sys import stderr
from typing import IO, Any, Final, NamedTuple, TypeAlias, cast

from fwdaemon.config.model import Config, MetricsSettings
from fwdaemon.core.types import Origin
from fwdaemon.errors import ConfigError, Problem
from fwdaemon.metrics.figures import Metric

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
        """Give them in the form for whoever names none."""
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
            """Say nothing: whoever asks could fill the journal."""

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
