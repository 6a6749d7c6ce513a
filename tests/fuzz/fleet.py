"""What etcd says: the table that many hosts share, answers of the gateway, what a watch tells, and claims of hosts."""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any, Final, cast
from unittest.mock import patch

from fwdaemon import config as configuration
from fwdaemon.core.types import FleetSettings
from fwdaemon.errors import ConfigError
from fwdaemon.fleet import etcd
from fwdaemon.fleet.claims import Holder, claims_in
from fwdaemon.fleet.etcd import Client, EtcdError, Watch
from fwdaemon.fleet.table import Item, Table, with_table
from tests.fuzz.choices import Choices
from tests.fuzz.kept import changed
from tests.fuzz.words import refuse_loud

_PREFIX: Final = "/portfwd/v1"
_URL: Final = "http://192.0.2.11:2379"
_MAIN: Final = Path("/etc/portfwd.toml")
_FILE: Final = '[[forward]]\ndomain = "web"\nports = ["80", "443"]\n[[set]]\nname = "bad"\nexternal = true\n'
_NAMES: Final = ("a", "b.toml", "", "..", "a/b", "A" * 65)


def table(data: bytes) -> None:
    """Read the texts of a table: all of it or nothing, and what the files of the host say goes before it."""
    choices, items = Choices(data), list[Item]()
    for number in range(1 + choices.number(2)):
        name = choices.one_of((*_NAMES, choices.text())).encode("utf-8", "surrogateescape")
        items.append(Item(f"{_PREFIX}/entries/".encode() + name, choices.rest().replace(b"\0", b"")[number:], number))
    own = configuration.parse({_MAIN: _FILE.encode()})
    try:
        shared = Table.of(_PREFIX, items).read(own, _MAIN)
    except ConfigError as error:
        refuse_loud(word for problem in error.problems for word in (problem.text, str(problem.file)))
        return
    merged, gone = with_table(own, shared)
    assert merged.entries[: len(own.entries)] == own.entries
    assert len(merged.entries) + len(gone) == len(own.entries) + len(shared.entries)
    assert len({item.name for item in merged.sets}) == len(merged.sets)


def _kv(key: str, value: bytes) -> dict[str, Any]:
    written = {"key": b64encode(key.encode()).decode(), "value": b64encode(value).decode()}
    return {**written, "mod_revision": "7", "lease": "5", "create_revision": "3", "version": "1"}


_FOUND: Final = _kv(f"{_PREFIX}/entries/a", b"[[forward]]\n")
_HEAD: Final = {"revision": "9", "member_id": "1"}
_ANSWERS: Final[tuple[Any, ...]] = (
    {"header": _HEAD, "kvs": [_FOUND], "count": "1", "more": False},
    {"header": _HEAD, "succeeded": True, "responses": [{"response_range": {"kvs": [_FOUND]}}, {}]},
    {"header": _HEAD, "ID": "5", "TTL": "15"},
    {"result": {"header": _HEAD, "ID": "5", "TTL": "15"}},
    {"error": "etcdserver: no leader", "code": 14, "message": "etcdserver: no leader"},
    {"error": {"grpc_code": 14, "message": "etcdserver: no leader"}},
)
_TOLD: Final[tuple[Any, ...]] = (
    {"result": {"header": _HEAD, "events": [{"kv": _FOUND}, {"type": "DELETE", "kv": _FOUND}]}},
    {"result": {"header": _HEAD, "canceled": True, "compact_revision": "8"}},
    {"error": {"grpc_code": 14, "message": "no leader"}},
    {"result": {"created": True}},
)


class _Response(BytesIO):
    """An answer of HTTP."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(body)
        self.status = status


class _Connection:
    """A connection that gives this answer, and then no other; it is its own socket."""

    def __init__(self, *answers: _Response) -> None:
        self._answers = [*answers]
        self.sock = self

    def request(self, *_words: object) -> None:
        """Take any question."""

    def getresponse(self) -> _Response:
        """Give the answer."""
        if not self._answers:
            raise ConnectionResetError
        return self._answers.pop()

    def settimeout(self, seconds: float | None) -> None:
        """Never wait."""

    def setsockopt(self, *_words: int) -> None:
        """Set nothing."""

    def close(self) -> None:
        """Close nothing."""


def answer(data: bytes) -> None:
    """Ask whatever is asked of etcd, and take any answer for one."""
    choices = Choices(data)
    body = json.dumps(changed(choices.one_of(_ANSWERS), choices)).encode() if choices.number(4) else choices.rest()
    calls: tuple[Callable[[Client], object], ...] = (
        lambda client: client.list(_PREFIX.encode()),
        lambda client: client.newest(_PREFIX.encode()),
        lambda client: client.transact([]),
        lambda client: client.grant(15),
        lambda client: client.keep_alive(5),
        lambda client: client.revoke(5),
        lambda client: client.answering(),
    )
    status = choices.one_of((200, 400, 503))
    for call in calls:
        # A second connection gets no answer.
        given = [_Connection(_Response(status, body)), _Connection()]
        with patch.object(etcd, "HTTPConnection", side_effect=given), suppress(EtcdError):
            call(Client(FleetSettings((_URL,))))


def watch(data: bytes) -> None:
    """Follow a watch of which any line is strange."""
    choices = Choices(data)
    lines = [json.dumps({"result": {"created": True}}).encode()]
    for _ in range(choices.number(5)):
        told = json.dumps(changed(choices.one_of(_TOLD), choices)).encode()
        lines.append(told if choices.number(4) else choices.taken(choices.number(64)))
    connection = _Connection(_Response(200, b"\n".join([*lines, b""])))
    with suppress(EtcdError):
        for batch in Watch(cast(HTTPConnection, connection), {}, _PREFIX.encode(), 1).batches():
            assert all(isinstance(item, Item) for item in batch)


def claims(data: bytes) -> None:
    """Read who claims which addresses: what cannot be read is another host's, and no claim is lost."""
    choices, items = Choices(data), list[Item]()
    for address in ("198.51.100.8", "2001:db8::8", choices.text()):
        key = f"{_PREFIX}/claims/{address}".encode("utf-8", "surrogateescape")
        value = {"host": choices.text(), "run": choices.text()}
        written = json.dumps(changed(value, choices)).encode() if choices.number(4) else choices.taken(32)
        items.append(Item(key, written, 1, 5))
    found = claims_in(_PREFIX, items)
    assert {str(address) for address in found} >= {"198.51.100.8", "2001:db8::8"}
    for item in found.values():
        holder = Holder.read(item.value)
        assert Holder.read(holder.as_value()) == holder


READERS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "fleet-table": table,
    "etcd-answer": answer,
    "etcd-watch": watch,
    "fleet-claims": claims,
}
