"""What is asked for by HTTP is prometheus_client's to answer: here it is asked in many ways, and made seldom."""

import gzip
from collections.abc import Iterable
from email.message import Message
from email.parser import BytesParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fwdaemon.metrics.exposition import Exposition
from fwdaemon.metrics.figures import Metric, Sample, Type

PLAIN = b"# HELP x X\n# TYPE x gauge\nx 1.0\n"
OPENMETRICS = "application/openmetrics-text"


class Bench:
    """An exposition, and how often its metrics were asked for."""

    def __init__(self) -> None:
        self.made = 0
        self.exposition = Exposition(self._metrics)

    def _metrics(self) -> Iterable[Metric]:
        self.made += 1
        return [Metric("x", Type.GAUGE, "X", (Sample(1.0, {}),))]

    def ask(self, *headers: str, request: str = "GET /metrics HTTP/1.1") -> tuple[str, Message, bytes]:
        """Give the first line of an answer, its headers, and its body."""
        asked = "".join(f"{line}\r\n" for line in (request, *headers, "")).encode()
        head, _, body = b"".join(self.exposition.answer(asked)).partition(b"\r\n\r\n")
        first, _, rest = head.partition(b"\r\n")
        return first.decode(), BytesParser().parsebytes(rest), body


def test_the_text_of_prometheus_is_given_to_whoever_names_nothing_else() -> None:
    status, headers, body = Bench().ask()
    assert (status, body) == ("HTTP/1.0 200 OK", PLAIN)
    assert str(headers["Content-Type"]).startswith("text/plain; version=0.0.4; charset=utf-8")
    assert headers["Content-Length"] == str(len(PLAIN))


def test_openmetrics_and_compression_are_given_to_those_who_take_them() -> None:
    bench = Bench()
    _, headers, body = bench.ask(f"Accept: {OPENMETRICS};version=1.0.0,text/plain;q=0.5", "Accept-Encoding: gzip")
    assert str(headers["Content-Type"]).startswith(OPENMETRICS)
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body).endswith(b"\nx 1.0\n# EOF\n")
    assert bench.exposition.text() == PLAIN


def test_each_form_is_made_once_and_not_copied() -> None:
    bench = Bench()
    request = b"GET /metrics HTTP/1.1\r\n\r\n"
    (*_, first), (*_, second) = bench.exposition.answer(request), bench.exposition.answer(request)
    assert first is second
    bench.ask("Accept-Encoding: gzip")
    bench.ask("Accept-Encoding: br, gzip;q=0.5", request="GET /metrics?name[]=x HTTP/1.1")
    assert bench.made == 2


def test_a_client_that_invents_forms_has_few_made() -> None:
    bench = Bench()
    for number in range(100):
        status, _, body = bench.ask(f"Accept: {OPENMETRICS};version={number + 1}.0.0")
        assert (status, b"\nx 1.0\n" in body) == ("HTTP/1.0 200 OK", True)
    assert bench.ask()[2] == PLAIN
    assert bench.made <= 9


@pytest.mark.parametrize("version", ["x", "", "1.x", "\xff"])
def test_a_version_that_is_none_gets_an_answer(version: str) -> None:
    status, _, body = Bench().ask(f"Accept: {OPENMETRICS};version={version}")
    assert (status, b"\nx 1.0\n" in body) == ("HTTP/1.0 200 OK", True)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ("POST /metrics HTTP/1.1", 501),
        ("HEAD /metrics HTTP/1.1", 501),
        ("GET /metrics HTTP/2.0", 505),
        ("GET /metrics XTP/1.1", 400),
        ("\x16\x03\x01", 400),
    ],
)
def test_nothing_but_get_is_answered_with_metrics(request_: str, code: int) -> None:
    bench = Bench()
    answer = b"".join(bench.exposition.answer(f"{request_}\r\n\r\n".encode()))
    assert str(code).encode() in answer
    assert bench.made == 0


@given(st.binary(max_size=1 << 13))
@example(b"GET /metrics\r\n\r\n")
@example(b"GET /metrics HTTP/1.1\r\nAccept: x\r\n y\r\n\r\n")
@example(b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n")
@example(b"\r\n\r\n")
def test_anything_may_be_asked(request_: bytes) -> None:
    assert isinstance(b"".join(Bench().exposition.answer(request_)), bytes)
