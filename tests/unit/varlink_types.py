"""Enough of Varlink's interface language (https://varlink.org/Interface-Definition) to check values against it."""

import re
from collections.abc import Iterator
from typing import Any

from fwdaemon.control.protocol import description_of

_TOKEN = re.compile(r"->|[()?,:]|\[\]|[A-Za-z][A-Za-z0-9_]*")
_PLAIN: dict[str, tuple[type, ...]] = {"string": (str,), "int": (int,), "bool": (bool,), "float": (int, float)}


class Interface:
    """The named types of an interface, and the parameters of its methods."""

    def __init__(self, name: str) -> None:
        text = re.sub(r"#.*", "", description_of(name))
        body = text.partition(f"interface {name}")[2]
        self._tokens = _TOKEN.findall(body)
        self.types: dict[str, Any] = {}
        self.replies: dict[str, Any] = {}
        self.errors: dict[str, Any] = {}
        while self._tokens:
            self._take_member()

    def _take_member(self) -> None:
        keyword, name = self._tokens.pop(0), self._tokens.pop(0)
        shape = self._type()
        if keyword == "method":
            assert self._tokens.pop(0) == "->"
            shape = self._type()
        {"type": self.types, "method": self.replies, "error": self.errors}[keyword][name] = shape

    def _type(self) -> Any:
        match self._tokens.pop(0):
            case "?":
                return ("maybe", self._type())
            case "[]":
                return ("array", self._type())
            case "(":
                return self._struct()
            case word:
                return word

    def _struct(self) -> Any:
        fields: dict[str, Any] = {}
        while (word := self._tokens.pop(0)) != ")":
            if word == ",":
                continue
            fields[word] = None
            if self._tokens[0] == ":":
                self._tokens.pop(0)
                fields[word] = self._type()
        is_enum = bool(fields) and all(shape is None for shape in fields.values())
        return ("enum", list(fields)) if is_enum else fields

    def faults(self, shape: Any, value: Any, where: str = "") -> Iterator[str]:
        """Say where a value is not of a type: every field has to be there, and no other may."""
        match shape:
            case ("maybe", inner):
                yield from () if value is None else self.faults(inner, value, where)
            case ("array", inner):
                for number, item in enumerate(value):
                    yield from self.faults(inner, item, f"{where}[{number}]")
            case ("enum", words):
                yield from () if value in words else [f"{where} is {value!r}"]
            case dict():
                yield from (f"{where}.{name} is in one only" for name in shape.keys() ^ value.keys())
                for name in shape.keys() & value.keys():
                    yield from self.faults(shape[name], value[name], f"{where}.{name}")
            case str() if shape in self.types:
                yield from self.faults(self.types[shape], value, where)
            case _:
                yield from () if isinstance(value, _PLAIN[shape]) else [f"{where} is {value!r}"]
