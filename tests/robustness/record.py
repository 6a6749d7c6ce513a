"""The figures of one run as they are kept beside the page: JSON, with what they were measured on and when."""

import json
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.lab.command import run
from tests.lab.computer import SOURCE

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a run began (UTC), and the commit that was checked out."""

    date: str
    commit: str

    @classmethod
    def now(cls) -> "Stamp":
        """Take it before the run: others may commit meanwhile."""
        return cls(datetime.now(UTC).date().isoformat(), _commit())


@dataclass(frozen=True, slots=True)
class Record:
    """`name` distinguishes runs of one `kind` (a key of `page`'s kinds, as `chaos`), `on` says on what it ran."""

    kind: str
    name: str
    stamp: Stamp
    on: str
    figures: Figures

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.kind}-{self.name}.json"


def machine() -> str:
    """Name the machine's kernel and its size."""
    return f"Linux {platform.release()}, {os.cpu_count()} processors"


def read(directory: Path) -> list[Record]:
    """Read all records beside a page."""
    return [_record(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(directory.glob("*.json"))]


def write(directory: Path, record: Record) -> None:
    """Put a record in place of the one of that kind and name."""
    directory.mkdir(exist_ok=True)
    told = {
        "kind": record.kind,
        "name": record.name,
        "date": record.stamp.date,
        "commit": record.stamp.commit,
        "on": record.on,
        "figures": record.figures,
    }
    (directory / record.file).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _record(told: dict[str, Any]) -> Record:
    return Record(told["kind"], told["name"], Stamp(told["date"], told["commit"]), told["on"], told["figures"])


def _commit() -> str:
    """Name the commit, and whether what is checked out differs from it; the page itself may."""
    # Root, who runs this, need not own the checkout.
    git = ("git", "-c", "safe.directory=*", "-C", SOURCE)
    head = run([*git, "rev-parse", "--short=12", "HEAD"], check=False).stdout.strip()
    changed = run([*git, "status", "--porcelain", "--", ".", ":!docs"], check=False).stdout
    return f"{head} with changes" if head and changed else head or "unknown"
