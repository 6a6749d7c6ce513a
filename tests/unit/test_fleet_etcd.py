"""What the client of etcd makes of answers that a real etcd gives in bad moments only: cut off, silent, no JSON."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fwdaemon.config.files import read_secret
from fwdaemon.core.text import GrammarError
from fwdaemon.core.types import FleetSettings
from fwdaemon.fleet.etcd import AnsweredError, Client, EtcdError, after, coded

HEADER = {"revision": "7"}
CREATED = {"result": {"header": HEADER, "created": True}}
PUT = {"result": {"header": HEADER, "events": [{"kv": {"key": coded(b"/p/a"), "mod_revision": "7"}}]}}
DELETED = {"result": {"header": HEADER, "events": [{"type": "DELETE", "kv": {"key": coded(b"/p/a")}}]}}
RANGE = {"header": HEADER, "kvs": [{"key": coded(b"/p/a"), "value": coded(b"x"), "mod_revision": "7"}]}

Answer = Callable[[socket.socket], None]


def said(*parts: object, status: str = "200 OK", cut: int = 0) -> Answer:
    """Answer with lines of JSON, in one chunk each, without the last `cut` bytes of what they are on the wire."""

    def answer(client: socket.socket) -> None:
        chunks = [part if isinstance(part, bytes) else json.dumps(part).encode() + b"\n" for part in parts]
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        head = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        client.sendall((head + body)[: len(head + body) - cut])

    return answer


def silent(client: socket.socket) -> None:
    while client.recv(1 << 16):  # until the other side hangs up
        pass


@contextmanager
def serving(*answers: Answer) -> Iterator[str]:
    """Answer one connection after the other, each once."""
    with ExitStack() as at_end:
        server = at_end.enter_context(socket.create_server(("127.0.0.1", 0)))

        def serve() -> None:
            for answer in answers:
                client, _ = server.accept()
                with client:
                    client.recv(1 << 16)
                    answer(client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def client(*urls: str) -> Client:
    return Client(FleetSettings(urls, "/p"), patience=0.3)


def watch(*answers: Answer) -> tuple[list[object], str]:
    """Give what a watch reported, and why it ended."""
    found: list[object] = []
    with serving(*answers) as url, pytest.raises(EtcdError) as ended:
        read(url, found)
    return found, str(ended.value)


def read(url: str, found: list[object]) -> None:
    """Read a watch to its end."""
    for items in client(url).watch(b"/p/", 1).batches():
        found += [(item.key, item.is_deleted) for item in items]


def test_a_watch_tells_what_changed_until_it_ends() -> None:
    found, why = watch(said(CREATED, PUT, DELETED))
    assert found == [(b"/p/a", False), (b"/p/a", True)]
    assert why == "the watch was cut off"


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ({"result": {"canceled": True, "cancel_reason": "no\x1b leader"}}, "the watch was cancelled: no\\x1b leader"),
        (
            {"result": {"header": {}, "canceled": True, "compact_revision": "9"}},
            "the watch was cancelled: compacted at 9",
        ),
        ({"error": {"grpc_code": 14, "message": "etcdserver: no leader"}}, "etcd refuses it: etcdserver: no leader"),
        (b"{]\n", "it does not answer as etcd does"),
        ({"result": []}, "it does not answer as etcd does"),
        ({"result": {"events": [{}]}}, "it does not answer as etcd does"),
        (b"[]\n", "it does not answer as etcd does"),
    ],
)
def test_a_watch_ends_in_every_way_that_it_can(last: object, why: str) -> None:
    assert watch(said(CREATED, last)) == ([], why)


@pytest.mark.parametrize("cut", [1, 8, 30, 60])
def test_a_watch_that_is_cut_in_the_middle_of_a_line_tells_nothing_of_that(cut: int) -> None:
    found, _ = watch(said(CREATED, PUT, cut=cut + len(b"0\r\n\r\n")))
    assert found in ([], [(b"/p/a", False)])


@pytest.mark.parametrize("first", [b"", b"[]\n", {"result": {"header": HEADER, "canceled": True}}, {"error": "x"}])
def test_a_watch_that_is_not_begun_is_an_error(first: object) -> None:
    found, why = watch(said(first))
    assert found == []
    assert why


def test_a_silent_member_is_left_for_the_next_and_asked_last_from_then_on() -> None:
    with serving(silent) as first, serving(said(RANGE), said(RANGE)) as second:
        asking = client(first, second)
        assert asking.list(b"/p/") == asking.list(b"/p/")
        asking.close()


@pytest.mark.parametrize(
    "answer", [said(b"", cut=5), said(b"{]"), said([]), said({}), said({"header": {}}), said(RANGE, cut=20)]
)
def test_no_answer_is_taken_for_an_empty_table(answer: Answer) -> None:
    with serving(answer) as url, pytest.raises(EtcdError):
        client(url).list(b"/p/")


def test_all_that_failed_is_told() -> None:
    busy = {"error": "x", "code": 14, "message": "etcdserver: request timed out"}
    with serving(silent) as first, serving(said(busy, status="503 no")) as second, pytest.raises(EtcdError) as failed:
        client(first, second).list(b"/p/")
    assert str(failed.value) == (
        f"{first}: it does not answer in time; {second}: etcd refuses it: etcdserver: request timed out"
    )


@pytest.mark.parametrize("key", ["error", "message"])  # of etcd 3.4 and 3.5
def test_a_refusal_is_the_same_at_every_member(key: str) -> None:
    denied = {key: "etcdserver: permission denied", "code": 7}
    with serving(said(denied, status="403 no")) as first, pytest.raises(AnsweredError) as failed:
        client(first, "http://127.0.0.1:1").list(b"/p/")
    assert failed.value.code == 7
    assert str(failed.value) == "etcd refuses it: etcdserver: permission denied"


def test_a_connection_that_was_closed_meanwhile_is_made_again() -> None:
    with serving(said(RANGE), said(RANGE)) as url:
        asking = client(url)
        assert [len(asking.list(b"/p/")[1]) for _ in range(2)] == [1, 1]
        asking.close()


def test_keys_of_a_prefix_end_before_those_of_the_next() -> None:
    assert after(b"/p/") == b"/p0"


def test_a_password_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("pass word\n")
    file.chmod(0o640)
    with pytest.raises(GrammarError, match="run chmod 600"):
        read_secret(file)
    file.chmod(0o600)
    assert read_secret(file) == "pass word"
    with pytest.raises(GrammarError, match="cannot be read: No such file"):
        read_secret(tmp_path / "none")
