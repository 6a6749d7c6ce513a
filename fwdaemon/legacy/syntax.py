"""Reads rules in the form `fwdaemon.legacy.ruleset` writes them. Pure; no general reader of iptables' language."""

from collections.abc import Iterator
from dataclasses import dataclass

from fwdaemon.legacy.model import Rule

_HEADER = {"-s": "src", "-d": "dst", "-i": "in_interface", "-o": "out_interface", "-p": "protocol"}


@dataclass(frozen=True, slots=True)
class Extension:
    """A match or a target with its options; the value of an inverted option begins with `!`."""

    name: str
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Words:
    """A rule taken apart; `header` holds what the rule says of addresses, interfaces and protocol.

    Its names are those of python-iptables, its values are as in an `Extension`.
    """

    header: tuple[tuple[str, str], ...]
    matches: tuple[Extension, ...]
    target: Extension


def parse(rule: Rule) -> Words:
    """Take a rule apart."""
    header, *matches = _groups(rule.matches)
    name, _, options = rule.target.partition(" ")
    return Words(
        tuple((_HEADER[option], value) for option, value in _options(header)),
        (*(_extension(match) for match in matches), Extension("comment", (("comment", rule.comment),))),
        Extension(name, tuple((option[2:], value) for option, value in _options(options.split()))),
    )


def _groups(matches: str) -> list[list[str]]:
    """Split at each `-m`; what stands before the first is the header."""
    groups: list[list[str]] = [[]]
    for word in matches.split():
        if word == "-m":
            groups.append([])
        else:
            groups[-1].append(word)
    return groups


def _extension(words: list[str]) -> Extension:
    name, *options = words
    return Extension(name, tuple((option[2:], value) for option, value in _options(options)))


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    waiting = iter(words)
    for word in waiting:
        if word == "!":
            yield next(waiting), f"!{next(waiting)}"
        else:
            yield word, next(waiting)
