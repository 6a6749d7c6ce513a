"""`kvm-portfwd fleet` with a real etcd: what is wrong is never written, and nothing that others wrote is lost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fwdaemon import cli
from fwdaemon.config import load
from fwdaemon.fleet.claims import Holder, claim_key
from fwdaemon.fleet.etcd import Client
from fwdaemon.fleet.table import host_key
from tests.kernel.topology import own_etcd
from tests.lab.etcd import Etcd

PREFIX = "/portfwd/v1"
WEB = '[[forward]]\ndomain = "web"\nports = ["80"]\n'
OTHER = '[[forward]]\ndomain = "other"\nports = ["80"]\n'


@pytest.fixture(scope="module", autouse=True)
def namespace(lab: None) -> Iterator[Etcd]:
    """One network for all of them, since etcd stays."""
    del lab
    with own_etcd() as member:
        yield member


@pytest.fixture
def etcd(namespace: Etcd) -> Etcd:
    """The member there, with nothing below the prefix."""
    namespace.ctl("del", "--prefix", PREFIX)
    return namespace


class Terminal:
    """Runs the commands; gives their status and what they print."""

    def __init__(self, place: Path, etcd: Etcd, printed: pytest.CaptureFixture[str]) -> None:
        self.place, self.etcd, self._printed = place, etcd, printed
        self.main = place / "portfwd.toml"
        self.main.write_text(f'[fleet]\netcd = "{etcd.url}"\n')

    def __call__(self, *words: str) -> tuple[int, str, str]:
        status = cli.main(["fleet", "--config", str(self.main), *words])
        printed = self._printed.readouterr()
        return status, printed.out, printed.err

    def put(self, name: str, text: str) -> tuple[int, str, str]:
        file = self.place / "entry.toml"
        file.write_text(text)
        return self("put", name, str(file))

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json")[1])


@pytest.fixture
def terminal(tmp_path: Path, etcd: Etcd, capsys: pytest.CaptureFixture[str]) -> Terminal:
    tmp_path.chmod(0o700)
    return Terminal(tmp_path, etcd, capsys)


def test_an_entry_is_written_shown_and_deleted(terminal: Terminal) -> None:
    status, printed, errors = terminal.put("web", WEB)
    assert (status, errors) == (0, "")
    revision = int(printed.removeprefix("web: written, revision "))
    assert terminal("list") == (0, "web\n", "")
    assert terminal("get", "web") == (0, WEB, "")
    assert terminal.json("get", "web") == {"schema_version": 1, "name": "web", "text": WEB}
    (entry,) = terminal.json("list")["entries"]
    assert entry == {"name": "web", "revision": revision, "bytes": len(WEB)}
    assert terminal("delete", "web")[:2] == (0, f"web: deleted, revision {revision + 1}\n")
    assert terminal("list") == (0, "", "")


def test_what_would_make_the_table_wrong_is_not_written(terminal: Terminal) -> None:
    terminal.put("web", WEB)
    status, printed, errors = terminal.put("other", OTHER)
    assert (status, printed) == (78, "")
    assert errors.startswith('etcd:other:3: domain "other": *:80/tcp is already claimed at etcd:web:3')
    assert terminal("list")[1] == "web\n"
    terminal.put("set", '[[set]]\nname = "office"\naddresses = "203.0.113.0/24"\n')
    assert terminal.put("web", f'{WEB}sources = "set:office"\n')[0] == 0
    status, _, errors = terminal("delete", "set")
    assert status == 78
    assert 'no set is called "office"' in errors


def test_several_mistakes_of_others_are_mended_one_by_one(terminal: Terminal) -> None:
    for name in ("one", "two", "three"):
        terminal.etcd.ctl("put", f"{PREFIX}/entries/{name}", OTHER)
    status, printed, errors = terminal("list")
    assert (status, printed) == (1, "one\nthree\ntwo\n")
    assert "etcd:three:3: " in errors
    assert terminal.put("two", WEB.replace("80", "81"))[0] == 0
    assert terminal.put("three", WEB)[0] == 78  # it would still be wrong
    assert terminal("delete", "three")[0] == 0
    assert terminal("list") == (0, "one\ntwo\n", "")


def test_nothing_is_written_over_what_came_meanwhile(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    transact = Client.transact

    def late(client: Client, *words: Any) -> Any:
        terminal.etcd.ctl("put", f"{PREFIX}/entries/web", OTHER)
        return transact(client, *words)

    monkeypatch.setattr(Client, "transact", late)
    status, _, errors = terminal.put("mine", WEB)
    assert status == 1
    assert "the table changed while this was checked, and nothing was written; run it again" in errors
    monkeypatch.undo()
    assert terminal("list")[1] == "web\n"
    assert terminal("get", "web")[1] == f"{OTHER}"


def test_an_entry_is_not_written_where_another_was_deleted_meanwhile(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = '[[set]]\nname = "office"\naddresses = ["203.0.113.0/24"]\n'
    terminal.put("office", office)
    transact = Client.transact

    def late(client: Client, *words: Any) -> Any:
        monkeypatch.undo()
        assert terminal("delete", "office")[0] == 0
        return transact(client, *words)

    monkeypatch.setattr(Client, "transact", late)
    status, _, errors = terminal.put("web", WEB + 'sources = ["set:office"]\n')
    assert (status, "the table changed while this was checked" in errors) == (1, True)
    assert terminal("list")[1] == ""
    assert terminal.put("web", WEB)[0] == 0


def test_the_status_says_who_is_behind_and_who_has_which_address(terminal: Terminal) -> None:
    terminal.put("web", WEB)
    table = terminal.json("status")
    assert (table["hosts"], table["claims"], table["entries"]) == ([], [], 1)
    hostile = json.dumps({"host": "h\x1b[31m", "digest": "old", "revision": 3, "serves": {"web": ["w\n"]}})
    terminal.etcd.ctl("put", host_key(PREFIX, "run").decode(), hostile)
    terminal.etcd.ctl("put", host_key(PREFIX, "strange").decode(), "[")
    holder = Holder("h1", "run").as_value().decode()
    terminal.etcd.ctl("put", claim_key(PREFIX, "198.51.100.8").decode(), holder)  # type: ignore[arg-type]  # as text
    status, printed, errors = terminal("status")
    assert (status, errors) == (1, "")
    assert "h\\x1b[31m: behind, at revision 3\n  serves web: w\\n\n" in printed
    assert printed.endswith("198.51.100.8 is held by h1\n")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("get", "none"), 1, 'there is no entry "none"'),
        (("delete", "none"), 1, 'there is no entry "none"'),
        (("get", "a/b"), 1, '"a/b" is no name of an entry'),
        (("put", "web", "/none"), 1, "/none cannot be read: No such file or directory"),
        (("put", "web"), 2, "fleet put takes NAME and FILE"),
        (("list", "web"), 2, "fleet list takes neither NAME nor FILE"),
    ],
)
def test_what_cannot_be_done_is_told(terminal: Terminal, words: tuple[str, ...], status: int, said: str) -> None:
    told = terminal(*words)
    assert told[0] == status
    assert said in told[2]


def test_without_settings_or_an_answer_that_is_told(terminal: Terminal) -> None:
    terminal.main.write_text('[fleet]\netcd = "http://127.0.0.1:1"\n')
    assert load(terminal.main).fleet is not None
    assert terminal("list") == (1, "", "kvm-portfwd: http://127.0.0.1:1: Connection refused\n")
    terminal.main.write_text("[daemon]\n")
    assert terminal("list")[2].startswith(f"kvm-portfwd: {terminal.main} has no [fleet]; write it")
