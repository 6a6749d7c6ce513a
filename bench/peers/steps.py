"""What is done and timed on a host: programs that run, and questions to daemons over their sockets. Pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeAlias


@dataclass(frozen=True, slots=True)
class Program:
    """A program that runs to its end."""

    argv: tuple[str, ...]
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of our daemon."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """A request to Docker's daemon."""

    verb: str
    path: str
    body: Mapping[str, Any] = field(default_factory=dict)


Step: TypeAlias = Program | Method | Request
_KINDS: Final[Mapping[str, type[Step]]] = {kind.__name__: kind for kind in (Program, Method, Request)}


def written(steps: Iterable[Step]) -> str:
    """Write steps as JSON."""
    return json.dumps([[type(step).__name__, asdict(step)] for step in steps])


def read(text: str) -> list[Step]:
    """Read what `written` wrote."""
    return [
        _KINDS[kind](**{name: _given(value) for name, value in fields.items()}) for kind, fields in json.loads(text)
    ]


def _given(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value
