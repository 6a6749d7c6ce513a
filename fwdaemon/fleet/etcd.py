"""A client of etcd's JSON gateway (etcd 3.4 and later), as much of it as a table and claims take.

Every call is tried at one member after the other, beginning with the one that answered last. etcd's own words for the
gateway are in its api/etcdserverpb/rpc.proto; keys and values are in base64 there, and 64-bit numbers are strings.
"""

import json
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from fwdaemon.config.files import read_secret
from fwdaemon.core.text import GrammarError, printable
from fwdaemon.core.types import FleetSettings
from fwdaemon.errors import STRANGE, PortfwdError
from fwdaemon.fleet.table import Item

Json = Mapping[str, Any]
T = TypeVar("T")

# Without a quorum, etcd answers what it cannot do after seven seconds only.
ANSWER_S: Final = 2.0
_PAGE: Final = 500
MOST_ANSWER: Final = 64 << 20
# Codes of gRPC, as the gateway gives them (google.golang.org/grpc/codes): those of a token that is replaced. One that
# etcd has forgotten is Unauthenticated; a JWT from before a user or role was changed is InvalidArgument, as other
# mistakes are.
_TOKEN_IS_OLD: Final = frozenset({3, 16})
# OutOfRange: of a revision that etcd keeps no more, or does not have yet.
_COMPACTED: Final = 11
# Those that another member may answer better: Unknown, DeadlineExceeded, Aborted, Internal, Unavailable.
_TRY_ANOTHER: Final = frozenset({2, 4, 10, 13, 14})
_NOT_ETCD: Final = "it does not answer as etcd does"
# A dead peer is noticed after about 5 + 3 * 2 seconds (tcp(7)).
_KEEP_ALIVE: Final = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))


class EtcdError(PortfwdError):
    """No member answered, or none could do what was asked."""


class AnsweredError(EtcdError):
    """A member refused what was asked; `code` is that of gRPC."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(f"etcd refuses it: {printable(text)[:200]}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a transaction: whether all that was compared held, the store's revision, and keys that were read."""

    succeeded: bool
    revision: int
    items: tuple[Item, ...] = ()

    @classmethod
    def read(cls, answer: Json) -> "Outcome":
        """Read the form of the gateway."""
        ranges = (found.get("response_range", {}) for found in answer.get("responses", ()))
        items = tuple(Item.read(found) for each in ranges for found in each.get("kvs", ()))
        return cls(bool(answer.get("succeeded")), int(answer["header"]["revision"]), items)


def _page(answer: Json) -> tuple[tuple[int, int], int, list[Item], bool]:
    items, header = [Item.read(found) for found in answer.get("kvs", ())], answer["header"]
    origin = int(header.get("cluster_id", 0)), int(header.get("raft_term", 0))
    return origin, int(header["revision"]), items, bool(answer.get("more"))


def coded(data: bytes) -> str:
    """Write bytes as the gateway wants them."""
    return b64encode(data).decode()


def after(prefix: bytes) -> bytes:
    """Give the end of the range of all keys that begin with `prefix`, which does not end in 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


@dataclass(slots=True)
class Client:
    """Talks to etcd. It is used by one thread; a `Watch` has a client and a connection of its own.

    `origin` is the number of the cluster that was last listed, and the term of its leader, which only grows.
    """

    settings: FleetSettings
    patience: float = ANSWER_S
    origin: tuple[int, int] = (0, 0)
    _token: str = ""
    _first: int = 0
    _open: dict[str, HTTPConnection] = field(default_factory=dict)

    def call(self, method: str, body: Json, read: Callable[[Json], T]) -> T:
        """Call a method, `kv/range`, at the first member that answers, and read its answer. Raises EtcdError."""

        def do(url: str) -> T:
            answer = self._authenticated(url, method, body)
            try:
                return read(answer)
            except STRANGE as error:
                raise EtcdError(_NOT_ETCD) from error

        return self._in_turn(do)

    def list(self, prefix: bytes, revision: int = 0) -> tuple[int, tuple[Item, ...]]:
        """Give all keys that begin with `prefix`, read in pages, and the one revision of the store they are from.

        That is the newest one, or the one that is asked for.
        """
        start, items = prefix, list[Item]()
        while True:
            asked = {"key": coded(start), "range_end": coded(after(prefix)), "limit": _PAGE, "revision": revision}
            self.origin, at, page, more = self.call("kv/range", asked, _page)
            revision, items = revision or at, items + page
            if sum(len(item.value) for item in items) > MOST_ANSWER:
                raise EtcdError(f"there are more than {MOST_ANSWER >> 20} MiB below the prefix")
            if not more or not page:
                return revision, tuple(items)
            start = page[-1].key + b"\0"

    def list_at(self, prefix: bytes, revision: int) -> tuple[Item, ...] | None:
        """Give all keys that there were at a revision; `None` where etcd has forgotten that."""
        try:
            return self.list(prefix, revision)[1]
        except AnsweredError as error:
            if error.code != _COMPACTED:
                raise
            return None

    def newest(self, prefix: bytes) -> tuple[int, int]:
        """Give how many keys begin with `prefix`, and the revision of the one that was written last."""
        asked = {"key": coded(prefix), "range_end": coded(after(prefix)), "limit": 1, "keys_only": True}
        sorting = {"sort_order": "DESCEND", "sort_target": "MOD"}
        number, items = self.call(
            "kv/range", asked | sorting, lambda found: (int(found.get("count", 0)), _page(found)[2])
        )
        return number, max((item.revision for item in items), default=0)

    def transact(self, compare: Iterable[Json], success: Iterable[Json] = (), failure: Iterable[Json] = ()) -> Outcome:
        """Do `success` if all of `compare` holds, or else `failure`."""
        asked = {"compare": [*compare], "success": [*success], "failure": [*failure]}
        return self.call("kv/txn", asked, Outcome.read)

    def grant(self, seconds: int) -> tuple[int, int]:
        """Get a lease; give its number and for how many seconds it is granted."""
        asked = {"TTL": seconds, "ID": 0}
        return self.call("lease/grant", asked, lambda answer: (int(answer["ID"]), int(answer["TTL"])))

    def keep_alive(self, lease: int) -> int:
        """Renew a lease; give for how many seconds from now it holds, 0 where it has ended."""
        return self.call("lease/keepalive", {"ID": lease}, lambda answer: int(answer["result"].get("TTL", 0)))

    def revoke(self, lease: int) -> None:
        """End a lease, and with it all keys that have it."""
        self.call("lease/revoke", {"ID": lease}, dict)

    def answering(self) -> int:
        """Say how many members answer by themselves, with or without the others."""
        asked = {"key": coded(self.settings.prefix.encode() + b"/"), "serializable": True, "count_only": True}
        found = 0
        for url in self.settings.etcd:
            with suppress(EtcdError):
                self._authenticated(url, "kv/range", asked)
                found += 1
        return found

    def close(self) -> None:
        """Close all connections."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    def watch(self, prefix: bytes, revision: int) -> "Watch":
        """Begin to follow all keys that begin with `prefix`, from `revision` on."""

        def begin(url: str) -> Watch:
            if self.settings.user:
                self._authenticate(url)
            return Watch(self._connection(url, self.patience), self._headers(), prefix, revision)

        return self._in_turn(begin)

    def _in_turn(self, do: Callable[[str], T]) -> T:
        """Try the members, the one that answered last ahead, until one has done it."""
        failures: list[str] = []
        for turn in range(len(self.settings.etcd)):
            number = (self._first + turn) % len(self.settings.etcd)
            url = self.settings.etcd[number]
            try:
                done = do(url)
            except EtcdError as error:
                if isinstance(error, AnsweredError) and error.code not in _TRY_ANOTHER:
                    raise
                failures.append(f"{url}: {error}")
            else:
                self._first = number
                return done
        raise EtcdError("; ".join(failures))

    def _authenticated(self, url: str, method: str, body: Json) -> Json:
        """Call with a token where there are users; one that etcd does not take any more is replaced once."""
        if not self.settings.user:
            return self._post(url, method, body)
        had = self._token
        if not had:
            self._authenticate(url)
        try:
            return self._post(url, method, body)
        except AnsweredError as error:
            if not had or error.code not in _TOKEN_IS_OLD:
                raise
        self._authenticate(url)
        return self._post(url, method, body)

    def _authenticate(self, url: str) -> None:
        self._token = ""
        if self.settings.user and self.settings.password_file:
            try:
                password = read_secret(self.settings.password_file)
            except GrammarError as error:
                raise EtcdError(str(error)) from error
            named = {"name": self.settings.user, "password": password}
            self._token = str(self._post(url, "auth/authenticate", named)["token"])

    def _post(self, url: str, method: str, body: Json) -> Json:
        for is_again in (False, True):
            kept = url in self._open
            connection = self._open.pop(url, None) or self._connection(url, self.patience)
            try:
                connection.request("POST", f"/v3/{method}", json.dumps(body), self._headers())
                answer = _answered(connection.getresponse())
            except EtcdError:
                self._open[url] = connection
                raise
            except (OSError, HTTPException, *STRANGE) as error:
                connection.close()
                # One that was kept may have been closed at the other end meanwhile.
                if kept and not is_again and not isinstance(error, TimeoutError):
                    continue
                raise EtcdError(_why(error)) from error
            self._open[url] = connection
            return answer
        raise EtcdError("it does not answer")

    def _headers(self) -> dict[str, str]:
        authorized = {"Authorization": self._token} if self._token else {}
        return {"Content-Type": "application/json", "Grpc-Metadata-hasleader": "true", **authorized}

    def _connection(self, url: str, patience: float) -> HTTPConnection:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return HTTPConnection(host, parts.port, timeout=patience)
        try:
            trusted = ssl.create_default_context(cafile=self.settings.ca)
        except (OSError, ssl.SSLError) as error:
            raise EtcdError(f"{self.settings.ca}: the certificate of the authority cannot be read: {error}") from error
        trusted.minimum_version = ssl.TLSVersion.TLSv1_2
        return HTTPSConnection(host, parts.port, timeout=patience, context=trusted)


def _answered(response: HTTPResponse) -> Json:
    """Read an answer; raise AnsweredError where it is a refusal."""
    text = response.read(MOST_ANSWER)
    answer = json.loads(text or b"{}")
    if not isinstance(answer, dict):
        raise EtcdError(_NOT_ETCD)
    _raise_refusal(answer, is_one=response.status >= 400)  # noqa: PLR2004  where HTTP's errors begin
    return answer


def _raise_refusal(answer: Json, *, is_one: bool = False) -> None:
    error = answer.get("error")
    if error is None and not is_one:
        return
    # A stream has an object there, a single answer `code` and `message` beside it; etcd 3.5 leaves it out then.
    about = error if isinstance(error, dict) else answer
    text = about.get("message") or error or "it does not say why"
    raise AnsweredError(int(about.get("grpc_code") or about.get("code") or 2), str(text))


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    return printable(str(getattr(error, "strerror", None) or error) or type(error).__name__)[:200]


class Watch:
    """Follows keys. `batches` waits, so it has a thread of its own; `close` ends that from any other.

    etcd is asked to end it where the member loses its leader, which it would not do by itself.
    """

    def __init__(self, connection: HTTPConnection, headers: Mapping[str, str], prefix: bytes, revision: int) -> None:
        asked = {"key": coded(prefix), "range_end": coded(after(prefix)), "start_revision": revision}
        self._connection = connection
        try:
            connection.request("POST", "/v3/watch", json.dumps({"create_request": asked}), dict(headers))
            self._socket: socket.socket = connection.sock
            self._response = connection.getresponse()
            created = self._line()
        except (OSError, HTTPException, EtcdError, *STRANGE) as error:
            connection.close()
            raise error if isinstance(error, EtcdError) else EtcdError(_why(error)) from error
        if not created.get("created") or created.get("canceled"):
            connection.close()
            raise EtcdError(f"the watch was not begun: {printable(str(created.get('cancel_reason')))[:200]}")
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)

    def batches(self) -> Iterator[tuple[Item, ...]]:
        """Give what changed, as it does; raise EtcdError where it has ended, and what changed since is not known."""
        try:
            while True:
                found = self._line()
                if found.get("canceled"):
                    reason = found.get("cancel_reason") or f"compacted at {found.get('compact_revision')}"
                    raise EtcdError(f"the watch was cancelled: {printable(str(reason))[:200]}")
                yield tuple(Item.read(event["kv"], event.get("type")) for event in found.get("events", ()))
        except (OSError, HTTPException) as error:
            raise EtcdError(_why(error)) from error
        except STRANGE as error:
            raise EtcdError(_NOT_ETCD) from error
        finally:
            self._connection.close()

    def close(self) -> None:
        """End it: a thread that waits for a batch gets an error."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _line(self) -> Json:
        line = self._response.readline(MOST_ANSWER)
        if not line.endswith(b"\n"):
            raise EtcdError("the watch was cut off")
        answer = json.loads(line)
        _raise_refusal(answer)
        result: Json = answer["result"]
        return result
