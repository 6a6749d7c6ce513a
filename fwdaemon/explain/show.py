"""Shows a report: for people, within 80 columns on a terminal, and for programs. Pure."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final

from fwdaemon.explain.evaluation import Passage
from fwdaemon.explain.owners import owners_of
from fwdaemon.explain.report import Report, Standing, Step

SCHEMA_VERSION: Final = 1

_WIDTH: Final = 80
_NAME_WIDTH: Final = 12
_SIGNS: Final = {Standing.FINE: "✓", Standing.WRONG: "✗", Standing.UNKNOWN: "?"}
_WORDS: Final = {Standing.FINE: "ok", Standing.WRONG: "NO", Standing.UNKNOWN: "??"}
_WORD = re.compile(r"`[^`]+`\S*|\S+")


def as_text(report: Report, *, terminal: bool, unicode: bool) -> str:
    """Write a report; where it is not for a terminal, each step is one line, however long."""
    lines = [_visible(report.title), ""]
    for step in report.steps:
        lines += _step(step, _SIGNS if terminal and unicode else _WORDS, terminal=terminal)
    sentence = _visible(report.sentence)
    lines += ["", *(_wrapped(sentence, "", "") if terminal else [sentence])]
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """Write a report for programs; keys are stable within a `schema_version`."""
    failure = report.failure
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "connection": report.title,
            "works": report.works,
            "cause": failure.cause if failure is not None else None,
            "sentence": report.sentence,
            "commands": report.commands,
            "steps": [_json_step(step) for step in report.steps],
        },
        indent=2,
    )


def _step(step: Step, signs: Mapping[Standing, str], *, terminal: bool) -> Iterator[str]:
    sign = signs[step.standing]
    head = f"{sign} {step.name:<{_NAME_WIDTH}} "
    text = _visible(step.text)
    yield from _wrapped(text, head, " " * len(head)) if terminal else [head + text]


def _visible(text: str) -> str:
    """Escape what a terminal would not print; the kernel takes nearly anything as the name of an interface."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _wrapped(text: str, first: str, others: str) -> Iterator[str]:
    """Wrap a text, but no command in it, so that it can be copied."""
    line = first
    for word in _words(text, _WIDTH - len(others)):
        if line.strip() and len(line) + len(word) + (line != first) > _WIDTH:
            yield line
            line = others
        line += word if line in (first, others) else f" {word}"
    yield line


def _words(text: str, longest: int) -> Iterator[str]:
    """Part a text into words; a command is one, and what is longer than a line is cut."""
    for word in _WORD.findall(text):
        cut = len(word) if "`" in word else longest
        yield from (word[start : start + cut] for start in range(0, len(word), cut))


def _json_step(step: Step) -> dict[str, object]:
    found: dict[str, object] = {"step": step.name, "state": step.standing, "text": step.text, "cause": step.cause}
    if step.passage is not None:
        found["chain"] = _json_chain(step.passage)
    return found


def _json_chain(passage: Passage) -> dict[str, object]:
    chain, culprit = passage.chain, passage.culprit
    return {
        "backend": chain.system,
        "family": chain.family,
        "table": chain.table,
        "name": chain.name,
        "hook": chain.hook,
        "priority": chain.priority,
        "policy": "accept" if chain.accepts else "drop",
        "owner": owners_of(chain),
        "verdict": passage.judgement,
        "rule": None if culprit is None or not culprit.number else {"chain": culprit.chain, "text": culprit.text},
    }
