"""Rule sets in nft's own language, and what is to be imported of them, which comments at their heads say.

All that the `open` ones forwarded is imported. Of the `closed` ones some is not, and the `whole` ones are 1:1. Each is
a whole rule set: where a file has no chain of hook forward, one that refuses nothing comes after it. The kernel's tests
load each of them into the real one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = Path(__file__).parent / "samples/nft"
PASSING = "table inet passing {\nchain forward {\ntype filter hook forward priority 10;\n}\n}\n"


@dataclass(frozen=True, slots=True)
class Sample:
    """`live` and `left_out` are forwards as `tests.unit.imports.shown` writes them without domain and line."""

    name: str
    text: str
    live: tuple[str, ...]
    left_out: tuple[str, ...]
    nats: tuple[str, ...]

    @property
    def is_open(self) -> bool:
        """Whether all is imported that it forwarded."""
        return self.name.startswith("open/")


def _samples() -> Iterator[Sample]:
    for path in sorted(_DIRECTORY.glob("*/*.nft")):
        text = path.read_text()
        text += "" if "hook forward" in text else PASSING
        name = f"{path.parent.name}/{path.stem}"
        yield Sample(name, text, _said(text, "live"), _said(text, "left out"), _said(text, "nat"))


def _said(text: str, key: str) -> tuple[str, ...]:
    return tuple(sorted(line.partition(": ")[2] for line in text.splitlines() if line.startswith(f"# {key}: ")))


SAMPLES = tuple(_samples())
