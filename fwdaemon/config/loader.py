"""The whole configuration: the main file and its drop-ins, checked together.

Everything that is wrong is told at once, so that nobody mends a file error by error. Drop-ins are the `*.toml` of the
directory beside the main file, `/etc/portfwd.d` for `/etc/portfwd.toml`, in name order; hidden files are editors' own.
"""

from collections.abc import Mapping
from pathlib import Path

from fwdaemon.config.document import Contents, read_document
from fwdaemon.config.model import Config, ControlSettings, DaemonSettings, MetricsSettings
from fwdaemon.config.overlap import find_conflicts
from fwdaemon.config.public import PublicEntry, find_public_conflicts
from fwdaemon.errors import ConfigError, Problem


def load(path: Path) -> Config:
    """Read the configuration whose main file is `path`; raise `ConfigError` with every problem in it."""
    problems: list[Problem] = []
    sources: dict[Path, bytes] = {}
    for file in (path, *_find_drop_ins(path, problems)):
        try:
            sources[file] = file.read_bytes()
        except OSError as error:
            problems.append(_unreadable(file, error, is_main=file == path))
    return _build(path, sources, problems)


def parse(sources: Mapping[Path, bytes | str]) -> Config:
    """Check texts as `load` checks files: the first is the main file, the others drop-ins; none means the defaults."""
    return _build(next(iter(sources), Path()), sources, [])


def _build(main: Path, sources: Mapping[Path, bytes | str], problems: list[Problem]) -> Config:
    files = [read_document(file, source, problems, is_main=file == main) for file, source in sources.items()]
    config = Config(
        next((contents.daemon for contents in files if contents.daemon), DaemonSettings()),
        tuple(entry for contents in files for entry in contents.forwards),
        tuple(entry for contents in files for entry in contents.nats),
        tuple(entry for contents in files for entry in contents.routes),
        next((contents.control for contents in files if contents.control), ControlSettings()),
        next((contents.metrics for contents in files if contents.metrics), MetricsSettings()),
    )
    problems += find_conflicts(config.forwards)
    problems += find_public_conflicts([entry for contents in files for entry in _in_order(contents)])
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.file != main, problem.file, problem.line)))
    return config


def _in_order(contents: Contents) -> list[PublicEntry]:
    """Put a file's claims on public addresses in the order in which they are written."""
    return sorted([*contents.nats, *contents.routes], key=lambda entry: entry.origin.line)


def _find_drop_ins(path: Path, problems: list[Problem]) -> list[Path]:
    directory = path.with_suffix(".d") if path.name else path
    if directory == path:
        return []
    try:
        names = [file for file in directory.iterdir() if file.suffix == ".toml" and not file.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(_unreadable(directory, error, is_main=False))
        return []
    return sorted(names)


def _unreadable(file: Path, error: OSError, *, is_main: bool) -> Problem:
    reason = error.strerror or type(error).__name__
    match error:
        case FileNotFoundError() if is_main:
            remedy = "create it, an empty file will do, or name another with --config"
        case FileNotFoundError():
            remedy = "mend the link, or remove it"
        case NotADirectoryError():
            remedy = "only a directory of *.toml files may have this name; rename it"
        case IsADirectoryError():
            remedy = "put a file there"
        case _:
            remedy = "let root read it"
    return Problem(file, 1, f"cannot be read: {reason}; {remedy}")
