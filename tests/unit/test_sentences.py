"""Facts are data, and sentences are for people: no code takes one apart, or compares anything with its words.

They are made last, by `fwdaemon.audit`: the middle gives what they are about, and so do the edges of what went wrong.

Texts of other programs have to be read. Who does so is listed with whose text it is, so that each new reader is a
decision.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from fwdaemon.audit.lines import format_fault, format_note
from fwdaemon.core.report import Fault, FaultKind, Note, NoteKind

PROGRAM: Final = Path(__file__).parents[2] / "fwdaemon"
READERS: Final = {
    "config/syntax.py": "what tomllib says of a text",
    "core/bans.py": "nft --json",
    "errors.py": "what nft says of a script",
    "hypervisor/guest_addresses.py": "what watchdog writes to its log",
    "nftables/gates.py": "iptables -S",
    "nftables/generation.py": "what nft says of a script",
    "nftables/guest_paths.py": "iptables -S",
    "importing/firewalld_zones.py": "firewall-cmd --list-all",
    "importing/iptables_save.py": "remarks of iptables-save",
    "nftables/table_cache.py": "nft list table",
    "rulesets/nft_listing.py": "nft --json",
    "rulesets/xt_tables.py": "remarks of iptables-save",
}
MIDDLE: Final = sorted(file for room in ("core", "resolve") for file in (PROGRAM / room).rglob("*.py"))
SAYING: Final = {
    "core/bans.py": "how nft --json calls the source of a connection",
    "core/inventory.py": "who told an address, in a word or two",
    "core/exposures.py": "what a 1:1 address is, as the rows of the status and the audit have it",
    "core/text.py": "what is wrong with a value of the configuration",
}
NAMES: Final = ("alpha", "beta", "gamma", "delta")
_READS: Final = frozenset(
    {"startswith", "endswith", "removeprefix", "removesuffix", "replace", "find", "rfind", "index", "count"}
    | {"partition", "rpartition", "split", "rsplit", "compile", "search", "match", "fullmatch", "findall", "sub"}
)
_WORDS: Final = re.compile(r"[A-Za-z]{2,}(?: |\\s)\(?[?:]*[A-Za-z]{2,}")


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    """Give all that a module is made of; to go through it takes longer than to look at each."""
    return tuple(ast.walk(tree(file)))


@cache
def constants(file: Path) -> dict[str, ast.expr]:
    """Give what each name of a module's top level stands for."""
    found: dict[str, ast.expr] = {}
    for statement in tree(file).body:
        match statement:
            case ast.Assign(targets=[ast.Name(name)], value=value) | ast.AnnAssign(target=ast.Name(name), value=value):
                if value is not None:
                    found[name] = value
    return found


def texts(part: ast.AST, file: Path) -> Iterator[str]:
    """Give all texts in an expression, and in what its names stand for."""
    for item in ast.walk(part):
        match item:
            case ast.Constant(str(text)):
                yield text
            case ast.Name(name) if name in constants(file):
                yield from texts(constants(file)[name], file)


def read(file: Path) -> Iterator[tuple[int, str]]:
    """Give the words that something is searched for, or compared with, each with its line."""
    sides: list[ast.expr]
    for item in nodes(file):
        match item:
            case ast.Compare(left=left, ops=[ast.In() | ast.NotIn() | ast.Eq() | ast.NotEq()], comparators=[right]):
                sides = [side for side in (left, right) if isinstance(side, ast.Constant | ast.JoinedStr | ast.Name)]
            case ast.Call(func=ast.Attribute(attr=name), args=arguments) if name in _READS:
                sides = list(arguments)
            case ast.MatchValue(value):
                sides = [value]
            case _:
                continue
        yield from ((sides[0].lineno, text) for side in sides for text in texts(side, file) if _WORDS.search(text))


def said(file: Path) -> Iterator[tuple[int, str]]:
    """Give the words in all that is no docstring, each with its line."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    bodies = [item.body for item in nodes(file) if isinstance(item, documented)]
    comments = {statement.value for body in bodies for statement in body if isinstance(statement, ast.Expr)}
    for item in nodes(file):
        if isinstance(item, ast.Constant) and isinstance(item.value, str) and item not in comments:
            yield from [(item.lineno, item.value)] if _WORDS.search(item.value) else []


def facts(file: Path, *names: str) -> Iterator[ast.Call]:
    """Give each place that makes one of these, which are a fault and a note unless others are named."""
    for item in nodes(file):
        if isinstance(item, ast.Call) and isinstance(item.func, ast.Name):
            yield from [item] if item.func.id in (names or ("Fault", "Note")) else []


def put(file: Path) -> Iterator[tuple[int, str]]:
    """Give the words that are put into a fault, a note or a refusal, each with its line."""
    for call in facts(file, "Fault", "Note", "DeclinedError"):
        yield from ((call.lineno, text) for text in texts(call, file) if _WORDS.search(text))


def number(call: ast.Call) -> int:
    """Count what such a place says that a fault is about; what is made elsewhere is taken to be all that fits."""
    if len(call.args) == 1:
        return 0
    return len(call.args[1].elts) if isinstance(call.args[1], ast.Tuple) else len(NAMES)


def made(call: ast.Call) -> Iterator[tuple[str, str]]:
    """Give each kind that a place makes, with the words for one that is about as much."""
    about = NAMES[: number(call)]
    for item in ast.walk(call.args[0]):
        match item:
            case ast.Attribute(ast.Name("FaultKind"), attr=name):
                yield name, format_fault(Fault(FaultKind[name], about, "epsilon"))
            case ast.Attribute(ast.Name("NoteKind"), attr=name):
                yield name, format_note(Note(NoteKind[name], about))


@pytest.mark.parametrize("file", MIDDLE, ids=lambda file: str(file.relative_to(PROGRAM)))
def test_the_middle_makes_no_sentences(file: Path) -> None:
    found = list(said(file))
    assert bool(found) == (str(file.relative_to(PROGRAM)) in SAYING), found


@pytest.mark.parametrize("file", sorted(PROGRAM.rglob("*.py")), ids=lambda file: str(file.relative_to(PROGRAM)))
def test_only_texts_of_others_are_read(file: Path) -> None:
    found = list(read(file))
    assert bool(found) == (str(file.relative_to(PROGRAM)) in READERS), found


def test_what_is_wrong_is_said_by_its_kind() -> None:
    assert not {str(file.relative_to(PROGRAM)): found for file in PROGRAM.rglob("*.py") if (found := list(put(file)))}


def test_all_that_a_fault_is_about_is_in_its_words() -> None:
    calls = [call for file in PROGRAM.rglob("*.py") for call in facts(file)]
    for call in calls:
        with_text = len(call.args) > 2 or any(keyword.arg == "detail" for keyword in call.keywords)
        for kind, words in made(call):
            assert all(name in words for name in NAMES[: number(call)]), kind
            assert ("epsilon" in words) is with_text, kind
    assert {kind for call in calls for kind, _ in made(call)} == {*FaultKind.__members__, *NoteKind.__members__}


@pytest.mark.parametrize(
    "line", ['Fault(FaultKind.ERROR, (f"gate in {gate}",))', "Note(kind, detail=WORDS)", "DeclinedError([WORDS])"]
)
def test_words_in_a_fault_are_seen(tmp_path: Path, line: str) -> None:
    (file := tmp_path / "module.py").write_text(f'WORDS = "it was not there"\nx = {line}\n')
    assert list(put(file))


@pytest.mark.parametrize(
    "line",
    [
        'x = "not running" in reason',
        'x = reason == "no address yet"',
        'x = remedy.replace(COMMAND, "")',
        'x = re.search("domain .* not running", text)',
        "match reason:\n    case 'no address yet':\n        pass",
    ],
)
def test_a_sentence_that_is_read_is_seen(tmp_path: Path, line: str) -> None:
    (file := tmp_path / "module.py").write_text(f'COMMAND: Final = command("kvm-portfwd reload")\n{line}\n')
    assert list(read(file))
