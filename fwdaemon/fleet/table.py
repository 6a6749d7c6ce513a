"""The shared table: the texts below `PREFIX/entries/`, what they say together, and the last good ones on the disk."""

import json
import logging
import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from fwdaemon.config.loader import TABLE, load, read_table
from fwdaemon.config.model import Config, Entry, ForwardEntry
from fwdaemon.core.exposures import Claim, Kind
from fwdaemon.core.text import printable, shown
from fwdaemon.core.types import FleetSettings, Origin, Subnet
from fwdaemon.errors import STRANGE, ConfigError, Problem
from fwdaemon.resolve.claims import Claims
from fwdaemon.status.reloads import MOST_KEPT, STATE, replace_whole
from fwdaemon.status.temporary import record_in, with_temporary

_log = logging.getLogger(__name__)

ENTRIES: Final = "entries/"
HOSTS: Final = "hosts/"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Item:
    """A key with its value, the revision at which it was written last, and its lease; 0 where it has none."""

    key: bytes
    value: bytes = b""
    revision: int = 0
    lease: int = 0
    is_deleted: bool = False

    @classmethod
    def read(cls, found: Mapping[str, Any], event: str | None = None) -> "Item":
        """Read the form of the gateway, which leaves out what is 0 or empty."""
        key, value = b64decode(found["key"]), b64decode(found.get("value", ""))
        return cls(key, value, int(found.get("mod_revision", 0)), int(found.get("lease", 0)), event == "DELETE")


@dataclass(frozen=True, slots=True)
class Table:
    """Texts by their names; `revision` is that of the newest of them, and `digest` names exactly these."""

    prefix: str
    revision: int = 0
    digest: str = ""
    texts: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, prefix: str, items: Iterable[Item]) -> "Table":
        """Make it of the keys below a prefix, of which others may be among these."""
        start = entry_key(prefix, "")
        found = {item.key.removeprefix(start): item for item in items if item.key.startswith(start)}
        named = {name.decode(errors="backslashreplace"): item for name, item in sorted(found.items())}
        parts = (f"{len(name)} {name} {item.revision} " for name, item in named.items())
        digest = sha256("".join(parts).encode()).hexdigest()[:16]
        revision = max((item.revision for item in named.values()), default=0)
        return cls(prefix, revision, digest, {name: item.value for name, item in named.items()})

    def read(self, config: Config, main: Path) -> Config:
        """Say what it asks for on a host with this configuration.

        Raises:
            ConfigError: it is wrong.

        """
        strange = [name for name in self.texts if not NAME.fullmatch(name)]
        if strange:
            what = "is no name of an entry; use letters, digits, dots and hyphens, 64 at most, and delete this key"
            raise ConfigError([Problem(source_of(shown(name)), 1, what) for name in strange])
        return read_table(self.texts, config.daemon, main)


def source_of(name: str) -> Path:
    """Give what stands for an entry where errors name a file."""
    return Path(f"{TABLE}{name}")


def entry_key(prefix: str, name: str) -> bytes:
    """Give the key of an entry."""
    return f"{prefix}/{ENTRIES}{name}".encode()


def changed_key(prefix: str) -> bytes:
    """Give the key that is written with each change by `fleet put` and `fleet delete`, with the entry's name."""
    return f"{prefix}/changed".encode()


def host_key(prefix: str, run: str) -> bytes:
    """Give the key below which a host says what it does."""
    return f"{prefix}/{HOSTS}{run}".encode()


def is_of_table(origin: Origin | None) -> bool:
    """Whether something is said in the shared table."""
    return origin is not None and str(origin.file).startswith(TABLE)


def name_of(origin: Origin) -> str:
    """Give the name of the entry of the table in which something is said."""
    return str(origin.file).removeprefix(TABLE)


@dataclass(frozen=True, slots=True)
class Site:
    """Where the table is to be in force: the configuration of a host, with its settings of a fleet, in file `main`."""

    config: Config
    settings: FleetSettings
    main: Path


class KeptTable:
    """The last good table, on the disk: a start without etcd goes on with it."""

    def __init__(self, state: Path = STATE) -> None:
        self._path = state / "fleet-table.json"
        self._is_kept = True

    def keep(self, table: Table) -> None:
        """Write it; that it cannot be is a warning, once. Blocks."""
        texts = {name: text.decode() for name, text in table.texts.items()}
        record = {"prefix": table.prefix, "revision": table.revision, "digest": table.digest, "entries": texts}
        try:
            replace_whole(self._path, json.dumps(record))
            self._is_kept = True
        except OSError as error:
            if self._is_kept:
                _log.warning("the table of the fleet is not kept: %s: %s", self._path, error.strerror)
            self._is_kept = False

    def kept(self, settings: FleetSettings) -> Table | None:
        """Read it; `None` where there is none of this prefix, or others than root could have written it."""
        try:
            record = record_in(self._path, MOST_KEPT)
            if record is None or record["prefix"] != settings.prefix:
                return None
            texts = {str(name): str(text).encode() for name, text in record["entries"].items()}
            return Table(settings.prefix, int(record["revision"]), str(record["digest"]), texts)
        except PermissionError:  # a command of a user's
            return None
        except (OSError, *STRANGE) as error:
            _log.warning("the kept table of the fleet cannot be used: %s: %s", self._path, printable(str(error)))
            return None


def with_kept_table(config: Config, main: Path, state: Path = STATE) -> Config:
    """Add what is in the table that is kept on the disk, as a daemon without etcd would; a wrong one adds nothing."""
    if config.fleet is None or (table := KeptTable(state).kept(config.fleet)) is None:
        return config
    try:
        return with_table(config, table.read(config, main))[0]
    except ConfigError:
        return config


def as_in_force(main: Path, state: Path = STATE) -> Config:
    """Read what a file says, and add what the daemon adds to that: the kept table, and what is open for a while.

    Raises:
        ConfigError: the file is wrong.

    """
    return with_temporary(with_kept_table(load(main), main, state), state)


def with_table(config: Config, table: Config) -> tuple[Config, dict[Origin, Origin]]:
    """Add what the table of many hosts says to what the files of this one do, which goes before it.

    Of what is left out, since a file claims the same, tell where that and the claim of the file stand.
    """
    claims, gone = Claims(entry for entry in config.forwards if not entry.is_pattern), dict[Origin, Origin]()
    public = _PublicOf(config)
    added = list[Entry]()
    for entry in table.entries:
        taker = _taker(entry, claims) if isinstance(entry, ForwardEntry) else public.taker(entry)
        if taker is None:
            added.append(entry)
        else:
            gone[entry.origin] = taker
    known = {item.name for item in config.sets}
    merged = config.with_entries((*config.entries, *added)) if added else config
    sets = tuple(item for item in table.sets if item.name not in known)
    return (replace(merged, sets=(*config.sets, *sets)) if sets else merged), gone


def _taker(entry: ForwardEntry, claims: Claims) -> Origin | None:
    if entry.is_pattern:
        return None
    takers = filter(None, (claims.taker(entry, mapping) for mapping in entry.mappings))
    return next((taker.mapping.origin for taker in takers), None)


class _PublicOf:
    """The public addresses that the entries of files claim whole."""

    def __init__(self, config: Config) -> None:
        whole = (entry for entry in config.entries if entry.kind is not Kind.FORWARD)
        self._taken = {_subnet(claim): origin for entry in whole for claim, origin in entry.claims()}
        self._wide = {subnet: origin for subnet, origin in self._taken.items() if not _is_single(subnet)}

    def taker(self, entry: Entry) -> Origin | None:
        """Say where one stands that claims some of the same addresses."""
        asked = [_subnet(claim) for claim, _ in entry.claims()]
        return next(filter(None, map(self._taker, asked)), None)

    def _taker(self, asked: Subnet) -> Origin | None:
        others = self._wide if _is_single(asked) else self._taken
        met = (origin for subnet, origin in others.items() if _overlap(subnet, asked))
        return self._taken.get(asked) or next(met, None)


def _subnet(claim: Claim) -> Subnet:
    """Give the addresses of a claim to all that comes to them; a single one is a network of its own."""
    return ip_network(claim.address) if claim.subnet is None else claim.subnet  # type: ignore[arg-type]  # it has either


def _is_single(subnet: Subnet) -> bool:
    return subnet.prefixlen == subnet.max_prefixlen


def _overlap(one: Subnet, other: Subnet) -> bool:
    return one.version == other.version and (one[0] in other or other[0] in one)
