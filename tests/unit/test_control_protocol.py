"""Varlink's messages: what is a call, what is none, and what is answered."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.control.protocol import (
    Call,
    CallError,
    MalformedError,
    Reply,
    error_reply,
    read_call,
    read_reply,
    reply,
)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (b'{"method": "a.b.C"}', Call("a.b.C")),
        (b'{"method": "a.b.C", "parameters": null, "more": null}', Call("a.b.C")),
        (b'{"method": "a.b.C", "parameters": {"x": 1}, "more": true}', Call("a.b.C", {"x": 1}, more=True)),
        (b'{"method": "a.b.C", "oneway": true, "upgrade": false, "unknown": 1}', Call("a.b.C", oneway=True)),
    ],
)
def test_calls(message: bytes, call: Call) -> None:
    assert read_call(message) == call


@pytest.mark.parametrize("call", [Call("a.B"), Call("a.B", {"x": "\u202e"}, more=True), Call("a.B", oneway=True)])
def test_what_is_written_is_read(call: Call) -> None:
    assert read_call(call.encode().removesuffix(b"\0")) == call


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"method": 1}',
        b'{"method": "a.B", "parameters": []}',
        b'{"method": "a.B", "parameters": "x"}',
        b'{"method": "a.B", "more": 1}',
        b'{"method": "a.B", "upgrade": true}',
        b'{"method": "a.B", "parameters": {"x": NaN}}',
        b'{"method": "a.B", "parameters": {"x": 1e400}}',
        b'{"method": "a.B", "parameters": {"x": [-1e400]}}',
        b'{"method": "a.B"} {}',
        b'{"method": "\xff"}',
        b"[" * 60000,
        b'{"a":' * 10000,
        b"9" * 60000,
    ],
    ids=lambda message: repr(message[:40]),
)
def test_what_is_no_call(message: bytes) -> None:
    with pytest.raises(MalformedError):
        read_call(message)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_call_or_refused(message: bytes) -> None:
    with suppress(MalformedError):
        read_call(message)


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_parameters_come_back(value: object) -> None:
    written = Call("a.B", {"x": value}).encode()
    assert written.count(b"\0") == 1
    assert read_call(written[:-1]).parameters == {"x": value}


def test_replies() -> None:
    assert reply(b'{"x": 1}') == b'{"parameters": {"x": 1}}\0'
    assert read_reply(reply(b'{"x": 1}')[:-1]) == Reply({"x": 1})
    assert read_reply(reply(b'{"x": 1}', continues=True)[:-1]) == Reply({"x": 1}, continues=True)


def test_errors() -> None:
    with pytest.raises(CallError) as raised:
        read_reply(error_reply(CallError("a.B", {"x": 1}))[:-1])
    assert (raised.value.name, raised.value.parameters) == ("a.B", {"x": 1})


@pytest.mark.parametrize("message", [b"", b"[]", b'{"parameters": 1}', b'{"parameters": {"x": 1e400}}'])
def test_what_is_no_reply(message: bytes) -> None:
    with pytest.raises(MalformedError):
        read_reply(message)
