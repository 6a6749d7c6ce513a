"""The whole configuration: the main file and its drop-ins, checked together.

All errors are reported at once, so that no user fixes a file error by error.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar

import tomli

from fwdaemon.config.exposures import READERS, read_allow
from fwdaemon.config.files import Draft, about_unread, read_files, read_regular, unguarded, weak_points
from fwdaemon.config.lines import toml_lines
from fwdaemon.config.model import (
    KEYS,
    TABLES,
    AllowEntry,
    Config,
    ControlSettings,
    DaemonSettings,
    Entry,
    MetricsSettings,
    SetEntry,
)
from fwdaemon.config.node import Document, Node, header
from fwdaemon.config.overlap import find_conflicts, find_public_conflicts
from fwdaemon.config.sections import read_control, read_daemon, read_fleet, read_metrics
from fwdaemon.config.sets import MOST_LIST_BYTES, Lists, read_set, settle
from fwdaemon.config.syntax import syntax_problems
from fwdaemon.core.text import GrammarError, quote, show, suggest
from fwdaemon.core.types import FleetSettings
from fwdaemon.errors import ConfigError, Problem

# One configuration file: from what was read to its settings and entries.
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Contents:
    """What one file says: its settings, `None` where it has no such table, and the entries fit to be compared."""

    daemon: DaemonSettings | None = None
    control: ControlSettings | None = None
    metrics: MetricsSettings | None = None
    fleet: FleetSettings | None = None
    entries: tuple[Entry, ...] = ()
    allows: tuple[AllowEntry, ...] = ()
    sets: tuple[SetEntry, ...] = ()


def read_document(file: Path, source: bytes | str, problems: list[Problem], *, is_main: bool) -> Contents:
    """Read one file, adding what is wrong to `problems`."""
    parsed = _parse_toml(file, source)
    if isinstance(parsed, list):
        problems += parsed
        return Contents()
    values, text = parsed
    document = Document(file, toml_lines(text), problems)
    tables = {key: Node(value, (key,), document) for key, value in values.items()}
    _refuse_strange_tables(tables)
    read_all = (_read_entries(tables, table, read) for table, read in READERS.items())
    return Contents(
        daemon=_read_settings(tables, "daemon", read_daemon, is_main=is_main),
        control=_read_settings(tables, "control", read_control, is_main=is_main),
        metrics=_read_settings(tables, "metrics", read_metrics, is_main=is_main),
        fleet=_read_settings(tables, "fleet", read_fleet, is_main=is_main),
        entries=tuple(chain.from_iterable(chain.from_iterable(read_all))),
        allows=tuple(chain.from_iterable(_read_entries(tables, "allow", read_allow))),
        sets=tuple(chain.from_iterable(_read_entries(tables, "set", read_set))),
    )


def _refuse_strange_tables(tables: dict[str, Node]) -> None:
    strange = {key: node for key, node in tables.items() if key not in TABLES}
    lost = [key for key in strange if any(key in keys for keys in KEYS.values())]
    if lost:
        table = max(KEYS, key=lambda table: sum(key in KEYS[table] for key in lost))
        what = f"{lost[0]} is in no table" if len(lost) == 1 else f"{lost[0]} and the keys below it are in no table"
        strange[lost[0]].refuse_key(f"{what}; write {header(table)} on a line above")
    for key in strange.keys() - set(lost):
        what = "table" if isinstance(strange[key].value, dict | list) else "key"
        strange[key].refuse_key(f"unknown {what} {quote(key)}; {suggest(key, TABLES)}")


def _read_settings(tables: Mapping[str, Node], key: str, read: Callable[[Node], T], *, is_main: bool) -> T | None:
    if key not in tables:
        return None
    if is_main:
        return read(tables[key])
    tables[key].refuse_key(f"[{key}] does not belong in a drop-in file; move its keys to the main file")
    return None


def _read_entries(tables: Mapping[str, Node], key: str, read: Callable[[Node], T]) -> Iterable[T]:
    if key not in tables:
        return ()
    node = tables[key]
    if isinstance(node.value, dict) and _refuse_named(key, node.value, node):
        return ()
    if not isinstance(node.value, list):
        node.refuse(f"must be entries, not {show(node.value)}; write [[{key}]] in double brackets")
        return ()
    return map(read, node.elements(f"[[{key}]]"))


def _refuse_named(table: str, named: dict[str, object], node: Node) -> bool:
    """Refuse entries whose headers name what they are about, such as [forward.web1]; return whether all of them do."""
    key = next(key for key in ("domain", "domains", "network", "name") if key in KEYS[table])
    are_named = bool(named) and all(
        isinstance(value, dict | list) and name not in KEYS[table] for name, value in named.items()
    )
    for name, value in named.items() if are_named else ():
        remedy = f"write {header(table)} in its place, and {key} = {quote(name)} below"
        Node(value, (*node.path, name), node.document).refuse_key(f"a header names no {key}; {remedy}")
    return are_named


def _parse_toml(file: Path, source: bytes | str) -> tuple[dict[str, object], str] | list[Problem]:
    try:
        text = source if isinstance(source, str) else source.decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return [Problem(file, line, "is not UTF-8 text; save the file as UTF-8")]
    if text.startswith("\ufeff"):
        return [Problem(file, 1, "starts with a byte order mark; save the file as UTF-8 without one")]
    try:
        return tomli.loads(text), text
    except RecursionError:
        return [Problem(file, 1, "nests brackets too deeply; write plain arrays of strings")]
    except ValueError as error:
        return syntax_problems(file, text, str(error))


MOST_PROBLEMS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and the texts that say it, the main file's first, and `lists`, those of its sets' files."""

    config: Config
    sources: Mapping[Path, bytes]
    lists: Mapping[Path, bytes] = field(default_factory=dict)

    @property
    def has_blank_file(self) -> bool:
        """Whether one of the texts says nothing at all."""
        return not all(text.strip() for text in (*self.sources.values(), *self.lists.values()))


def load(path: Path, draft: Draft | None = None) -> Config:
    """Read the configuration whose main file is `path`; raise `ConfigError` with every problem in it."""
    files = read_files(path, draft)
    return _with_ignored(_build(path, files.sources, files.problems, Lists(read_list_file)), files.ignored)


def load_guarded(path: Path, live: Config | None = None, draft: Draft | None = None) -> Loaded:
    """Read it as the daemon does: what others than root could change is refused too.

    So is a file without a word in it while entries or networks of sets of `live` are in force: editors empty a file
    before they write it.
    """
    files, lists = read_files(path, draft), dict[Path, bytes]()
    problems = [*files.problems, *unguarded(files), *_emptied(path, files.sources, live)]

    def read(file: Path) -> bytes:
        lists[file] = read_list_file(file, guarded=True)
        return lists[file]

    config = _build(path, files.sources, problems, Lists(read, live.sets if live is not None else ()))
    config = _with_ignored(config, files.ignored)
    return Loaded(config, files.sources, lists)


def read_list_file(file: Path, *, guarded: bool = False) -> bytes:
    """Read a file of networks; with `guarded`, one that others than root could change is refused.

    Raises:
        GrammarError: it cannot be read.

    """
    try:
        text = read_regular(file, MOST_LIST_BYTES)
    except OSError as error:
        raise GrammarError(about_unread(file, error)) from error
    for weak in weak_points(file) if guarded else ():
        raise GrammarError(f"{weak.file} {weak.text}")
    return text


def _with_ignored(config: Config, ignored: Iterable[Path]) -> Config:
    used = {item.file for item in config.sets}
    return replace(config, ignored=tuple(file for file in ignored if file not in used))


def parse(sources: Mapping[Path, bytes | str], lists: Mapping[Path, bytes] | None = None) -> Config:
    """Check texts as `load` checks files: the first is the main file, the others drop-ins; none means the defaults.

    `lists` are what the files of sets hold.
    """
    known = lists or {}

    def read(file: Path) -> bytes:
        if file not in known:
            raise GrammarError(f"{file} is not there")
        return known[file]

    return _build(next(iter(sources), Path()), sources, [], Lists(read))


def _build(main: Path, sources: Mapping[Path, bytes | str], problems: list[Problem], lists: Lists) -> Config:
    files = [read_document(file, source, problems, is_main=file == main) for file, source in sources.items()]
    daemon = next((contents.daemon for contents in files if contents.daemon), DaemonSettings())
    return _joined(main, daemon, files, problems, lists)


def _joined(
    main: Path,
    daemon: DaemonSettings,
    files: list[Contents],
    problems: list[Problem],
    lists: Lists,
) -> Config:
    """Join what files say, and check it together; `main` is the file that has `daemon`."""
    config = Config.of(
        daemon,
        (entry for contents in files for entry in contents.entries),
        next((contents.control for contents in files if contents.control), ControlSettings()),
        next((contents.metrics for contents in files if contents.metrics), MetricsSettings()),
        (allowed for contents in files for allowed in contents.allows),
    )
    config = replace(config, fleet=next((contents.fleet for contents in files if contents.fleet), None))
    config = settle(config, (item for contents in files for item in contents.sets), lists, problems)
    problems += find_conflicts(config.forwards)
    problems += _without_pool(main, config, problems)
    problems += find_public_conflicts([entry for contents in files for entry in _in_order(contents)])
    if problems:
        raise ConfigError(_bounded(sorted(problems, key=lambda found: (found.file != main, found.file, found.line))))
    return config


# Texts of the table that many hosts share.
TABLE: Final = "etcd:"
_TABLE_TABLES: Final = "[[forward]], [[nat]], [[route]] and [[set]]"


def read_table(texts: Mapping[str, bytes], daemon: DaemonSettings, main: Path) -> Config:
    """Check the texts of the shared table together, by their names, for a host with the settings of `main`.

    Of two that claim the same, the later one is wrong.

    Whether something of it is claimed by the host's own files is left aside: each host has others.

    Raises:
        ConfigError: they are wrong, at `etcd:NAME:LINE`.

    """
    problems: list[Problem] = []
    sources = {Path(f"{TABLE}{name}"): text for name, text in texts.items()}
    files = [read_document(file, source, problems, is_main=False) for file, source in sources.items()]
    for contents in files:
        problems += _misplaced(contents)
    # Sets that [daemon] names are those of files.
    return _joined(main, replace(daemon, barred=None, named=()), files, problems, Lists(_unread))


def _misplaced(contents: Contents) -> Iterable[Problem]:
    for allowed in contents.allows:
        what = f"the table holds {_TABLE_TABLES} only; move this [[allow]] to the file of each host"
        yield Problem(allowed.origin.file, allowed.origin.line, what)


def _unread(_file: Path) -> bytes:
    raise GrammarError("a file is on one host alone", "write addresses = […] in its place")


def _bounded(problems: list[Problem]) -> list[Problem]:
    """Cut a list that is too long to be read to its end."""
    if len(problems) <= MOST_PROBLEMS:
        return problems
    more = f"there are {len(problems) - MOST_PROBLEMS:,} more problems; fix those above, and the others will be shown"
    return [*problems[:MOST_PROBLEMS], problems[MOST_PROBLEMS]._replace(text=more)]


def _emptied(main: Path, sources: Mapping[Path, bytes], live: Config | None) -> list[Problem]:
    """Report files that are blank, and would end entries that are in force."""
    if live is None:
        return []
    origins = [entry.origin for entry in live.entries]
    problems = []
    for file in (file for file, source in sources.items() if not source.strip()):
        lost = len(origins) if file == main else sum(origin.file == file for origin in origins)
        if lost:
            remedy = 'write a line "[daemon]" into it' if file == main else "remove the file"
            what = f"is empty, while {lost} {'entry is' if lost == 1 else 'entries are'} in force"
            problems.append(Problem(file, 1, f"{what}; if none is meant, {remedy}"))
    return problems


def _without_pool(main: Path, config: Config, known: Iterable[Problem]) -> list[Problem]:
    """Report automatic ports that there is nothing to take from, unless the main file could not be read whole."""
    if config.daemon.auto_ports is not None or any(problem.file == main for problem in known):
        return []
    origins = dict.fromkeys(mapping.origin for entry in config.forwards for mapping in entry.auto)
    remedy = f'write auto_ports = "20000-29999" in [daemon] of {main}'
    return [Problem(at.file, at.line, f"an automatic port has no range to come from; {remedy}") for at in origins]


def _in_order(contents: Contents) -> list[Entry]:
    """Put a file's entries in the order in which they are written."""
    return sorted(contents.entries, key=lambda entry: entry.origin.line)
