"""`kvm-portfwd fleet`: read and change the table that many hosts share in etcd, and show which host does what.

It talks to etcd by itself, with the settings of `[fleet]`, so that it works where no daemon runs.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fwdaemon import config as configuration
from fwdaemon.config.files import read_regular
from fwdaemon.config.model import Config
from fwdaemon.core.text import printable, quote, shown
from fwdaemon.errors import ConfigError, PortfwdError, Problem
from fwdaemon.fleet.claims import Holder, claims_in
from fwdaemon.fleet.etcd import Client, Json, after, coded
from fwdaemon.fleet.table import NAME, Item, Table, changed_key, entry_key, host_key, source_of
from fwdaemon.status.model import SCHEMA_VERSION

_FAILED: Final = 1
_WRONG_USAGE: Final = 2
_TAKES: Final = {"put": ("name", "file"), "get": ("name",), "delete": ("name",)}
# etcd takes requests of 1.5 MiB at most, unless it is set up otherwise; the text is in base64 on its way.
_MOST_BYTES: Final = 1 << 20


def run(options: argparse.Namespace) -> int:
    """Do what the second word says."""
    given = tuple(name for name in ("name", "file") if getattr(options, name) is not None)
    if given != (wanted := _TAKES.get(options.action, ())):
        takes = " and ".join(map(str.upper, wanted)) or "neither NAME nor FILE"
        print(f"kvm-portfwd: fleet {options.action} takes {takes}", file=sys.stderr)
        return _WRONG_USAGE
    config = configuration.load_guarded(options.config).config
    if config.fleet is None:
        raise PortfwdError(f'{options.config} has no [fleet]; write it, with etcd = ["https://…:2379"]')
    if options.name is not None and not NAME.fullmatch(options.name):
        what = "is no name of an entry; use letters, digits, dots, hyphens and underscores, 64 at most"
        raise PortfwdError(f"{quote(options.name)} {what}")
    client = Client(config.fleet, patience=_PATIENCE_S)
    try:
        return _ACTIONS[options.action](_Store(client, config, options.config), options)
    finally:
        client.close()


class _Store:
    """The table in etcd, as it was when this was made."""

    def __init__(self, client: Client, config: Config, main: Path) -> None:
        self._client, self._config, self._main, self.prefix = client, config, main, client.settings.prefix
        self.revision, self.items = client.list(f"{self.prefix}/".encode())
        self.table = Table.of(self.prefix, self.items)

    def problems(self, texts: Mapping[str, bytes]) -> tuple[Problem, ...]:
        """Say what is wrong with a table of these texts."""
        try:
            Table(self.prefix, texts=texts).read(self._config, self._main)
        except ConfigError as error:
            return error.problems
        return ()

    def change(self, name: str, text: bytes | None) -> int:
        """Write or delete an entry, unless another `put` or `delete` came first; return the revision of the change.

        A concurrent `etcdctl del` is not noticed.

        Raises:
            ConfigError: that would make the table wrong.
            PortfwdError: the table changed meanwhile.

        """
        # Last, so that it is reported as wrong, and not what is there.
        texts = {key: value for key, value in self.table.texts.items() if key != name}
        texts |= {name: text} if text is not None else {}
        before = set(self.problems(self.table.texts))
        # One who mends a table with several mistakes mends them one by one.
        new = [item for item in self.problems(texts) if item not in before or item.file == source_of(name)]
        if new:
            raise ConfigError(new)
        key, start, changed = entry_key(self.prefix, name), entry_key(self.prefix, ""), changed_key(self.prefix)
        # That no entry has been written since says nothing of those that were deleted, of which no key is left.
        written = {"key": coded(start), "range_end": coded(after(start)), "target": "MOD", "result": "LESS"}
        unchanged = [{**written, "mod_revision": self.revision + 1}, self._as_it_was(key), self._as_it_was(changed)]
        put = {"request_put": {"key": coded(key), "value": coded(text or b"")}}
        action = put if text is not None else {"request_delete_range": {"key": coded(key)}}
        noted = {"request_put": {"key": coded(changed), "value": coded(name.encode())}}
        outcome = self._client.transact(unchanged, [action, noted])
        if not outcome.succeeded:
            raise PortfwdError("the table changed while this was checked, and nothing was written; run it again")
        return outcome.revision

    def _as_it_was(self, key: bytes) -> Json:
        revision = next((item.revision for item in self.items if item.key == key), 0)
        return {"key": coded(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision}


# A table is read whole, and its writer waits.
_PATIENCE_S: Final = 5.0


def _put(store: _Store, options: argparse.Namespace) -> int:
    try:
        text = sys.stdin.buffer.read(_MOST_BYTES + 1) if options.file == Path("-") else read_regular(options.file)
    except OSError as error:
        raise PortfwdError(f"{options.file} cannot be read: {error.strerror}") from error
    if len(text) > _MOST_BYTES:
        raise PortfwdError(f"{options.file} has more than {_MOST_BYTES >> 20} MiB; split it into several entries")
    _say(options, {"name": options.name, "revision": store.change(options.name, text)}, "written")
    return 0


def _delete(store: _Store, options: argparse.Namespace) -> int:
    _there(store, options.name)
    _say(options, {"name": options.name, "revision": store.change(options.name, None)}, "deleted")
    return 0


def _get(store: _Store, options: argparse.Namespace) -> int:
    text = _there(store, options.name)
    if options.json:
        _print({"name": options.name, "text": text.decode(errors="replace")})
    else:
        sys.stdout.buffer.write(text)
    return 0


def _there(store: _Store, name: str) -> bytes:
    if name not in store.table.texts:
        raise PortfwdError(f"there is no entry {quote(name)}; kvm-portfwd fleet list names those there are")
    return store.table.texts[name]


def _list(store: _Store, options: argparse.Namespace) -> int:
    revisions = {item.key: item.revision for item in store.items}
    entries = [
        {"name": name, "revision": revisions.get(entry_key(store.prefix, name)), "bytes": len(text)}
        for name, text in store.table.texts.items()
    ]
    problems = store.problems(store.table.texts)
    if options.json:
        _print({"revision": store.table.revision, "entries": entries, "problems": [*map(str, problems)]})
    else:
        for entry in entries:
            print(shown(str(entry["name"])))
    return _told(problems, options)


def _told(problems: Iterable[Problem], options: argparse.Namespace) -> int:
    found = [printable(str(problem)) for problem in problems]
    for problem in found if not options.json else ():
        print(problem, file=sys.stderr)
    return _FAILED if found else 0


def _status(store: _Store, options: argparse.Namespace) -> int:
    hosts = sorted(_hosts(store), key=lambda host: (host["host"], host["run"]))
    problems = store.problems(store.table.texts)
    answer = {
        "revision": store.table.revision,
        "entries": len(store.table.texts),
        "hosts": hosts,
        "claims": [
            {"address": str(address), "host": Holder.read(item.value).host}
            for address, item in sorted(claims_in(store.prefix, store.items).items(), key=str)
        ],
        "problems": [*map(str, problems)],
    }
    if options.json:
        _print(answer)
    else:
        print("\n".join(_as_text(answer)))
    return _told(problems, options) or int(any(host["behind"] for host in hosts))


def _hosts(store: _Store) -> Iterator[dict[str, Any]]:
    """Give what each host says of itself; what cannot be read was not written by one."""
    start = host_key(store.prefix, "")
    for item in store.items:
        if item.key.startswith(start):
            said = _said(item)
            yield {
                "host": str(said.get("host", "")),
                "run": item.key.removeprefix(start).decode(errors="backslashreplace"),
                "revision": said.get("revision"),
                "behind": said.get("digest") != store.table.digest,
                "serves": said.get("serves") if isinstance(said.get("serves"), dict) else {},
                "problems": [str(problem) for problem in said.get("problems") or ()],
            }


def _said(item: Item) -> Json:
    try:
        found = json.loads(item.value)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _as_text(answer: Json) -> Iterator[str]:
    yield f"table: {answer['entries']} entries, revision {answer['revision']}"
    for host in answer["hosts"]:
        how = f"behind, at revision {host['revision']}" if host["behind"] else "up to date"
        yield printable(f"{host['host']}: {how}")
        for entry, owners in host["serves"].items():
            yield printable(f"  serves {entry}: {', '.join(map(str, owners))}")
        for problem in host["problems"]:
            yield printable(f"  refuses the table: {problem}")
    for claim in answer["claims"]:
        yield printable(f"{claim['address']} is held by {claim['host']}")


def _say(options: argparse.Namespace, answer: Json, done: str) -> None:
    if options.json:
        _print(answer)
    else:
        print(f"{answer['name']}: {done}, revision {answer['revision']}")


def _print(answer: Json) -> None:
    print(json.dumps({"schema_version": SCHEMA_VERSION, **answer}, indent=2))


_ACTIONS: Final = {"list": _list, "put": _put, "get": _get, "delete": _delete, "status": _status}
