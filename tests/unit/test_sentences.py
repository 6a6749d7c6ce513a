"""Facts are data, and sentences are for people: no code takes one apart, or compares anything with its words.

They are made last, by `fwdaemon.audit`, or by the commands and what they print: the middle gives what they are about,
and so do the edges of what went wrong. An error has its sentence from the start, and so has a line of the log that no
fact is behind; who else makes words is listed, with what for.

Texts of other programs have to be read. Who does so is listed with whose text it is, so that each new reader is a
decision.
"""

import ast
import re
from collections.abc import Collection, Iterator
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
    "importing/hooks_json.py": "what json5 says of a text",
    "importing/iptables_save.py": "remarks of iptables-save",
    "legacy/library.py": "what python-iptables says of a rule",
    "nftables/table_cache.py": "nft list table",
    "rulesets/nft_listing.py": "nft --json",
    "rulesets/xt_tables.py": "remarks of iptables-save",
}
_MIDDLE: Final = frozenset({"core", "resolve"})
MIDDLE: Final = sorted(file for room in _MIDDLE for file in (PROGRAM / room).rglob("*.py"))
SAYING: Final = {
    "core/bans.py": "how nft --json calls the source of a connection",
    "core/inventory.py": "who told an address, in a word or two",
    "core/exposures.py": "what a 1:1 address is, as the rows of the status and the audit have it",
    "core/text.py": "what is wrong with a value of the configuration",
}
# Rooms that are there for sentences, and those that write rules, in the words of nft and iptables.
_SPEAKING: Final = frozenset({"audit", "commands", "cli.py", "config", "explain", "importing"})
_RULES: Final = frozenset({"legacy", "nftables", "rulesets"})
SILENT: Final = sorted(
    file for file in PROGRAM.rglob("*.py") if file.relative_to(PROGRAM).parts[0] not in _SPEAKING | _RULES | _MIDDLE
)
WORDED: Final = {
    "control/listener.py": "who a client is, and the command that starts the daemon anew",
    "control/server.py": "what helps where the socket cannot be made, for a warning",
    "daemon.py": "says that a bug made a pass fail, where other failures have an error's text",
    "errors.py": "what nft says of a script",
    "fleet/etcd.py": "why there is no answer, where neither etcd nor the error says so",
    "fleet/member.py": "why there is no thread, in the place of what etcd answers",
    "fleet/table.py": "what is wrong with a key, as the configuration has it of others",
    "hostnet/neighbour_proxy.py": "what entries of the kernel are called, as it has no name for several",
    "hypervisor/connection.py": "libvirt's events, by its numbers",
    "hypervisor/guest_addresses.py": "what watchdog writes to its log",
    "hypervisor/link.py": "why libvirt was given up, in the place of its own text",
    "hypervisor/xml.py": "what is wrong with metadata, as the configuration has it of its keys",
    "kernel/process.py": "why a program was ended, in the place of what it printed",
    "kernel/rtnetlink.py": "what an error is about, and an interface that has no name any more",
    "metrics/figures.py": "the help of each metric",
    "metrics/listener.py": "what helps where a file cannot be written, for a warning",
    "status/rows.py": "the status in one line, for `systemctl status`",
}
NAMES: Final = ("alpha", "beta", "gamma", "delta")
_READS: Final = frozenset(
    {"startswith", "endswith", "removeprefix", "removesuffix", "replace", "find", "rfind", "index", "count"}
    | {"partition", "rpartition", "split", "rsplit", "compile", "search", "match", "fullmatch", "findall", "sub"}
)
# What takes a line of the log, the name of a thread, or what lacks while that cannot be had.
_LOGGED: Final = frozenset(
    {"warn", "_warn", "settle", "Beside", "Want", "Worker", "Thread", "bounded", "_bounded", "configuration_refused"}
    | {"create_task"}
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
    yield from (
        item.value for item in meant(part, file) if isinstance(item, ast.Constant) and isinstance(item.value, str)
    )


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


def explained(item: ast.AST) -> bool:
    """Whether it makes an error, writes to the log, or names a thread and what lacks without it."""
    match item:
        case ast.Raise() | ast.Call(func=ast.Attribute(ast.Name("_log"))):
            return True
        case ast.ClassDef(name=name) | ast.Call(func=ast.Name(name) | ast.Attribute(attr=name)):
            return name.endswith("Error") or name in _LOGGED
    return False


def worded(file: Path) -> Iterator[tuple[int, str]]:
    """Give the words that are neither a docstring nor those of an error or of the log, each with its line."""
    apart = {part for item in nodes(file) if explained(item) for part in meant(item, file)}
    apart |= {item.value for item in nodes(file) if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)}
    for item in nodes(file):
        if isinstance(item, ast.Constant) and isinstance(item.value, str) and item not in apart:
            yield from [(item.lineno, item.value)] if _WORDS.search(item.value) else []


def meant(part: ast.AST, file: Path) -> Iterator[ast.AST]:
    """Give all that an expression is made of, and what its names stand for."""
    for item in ast.walk(part):
        yield item
        if isinstance(item, ast.Name) and item.id in constants(file):
            yield from meant(constants(file)[item.id], file)


def taken_apart(file: Path) -> Iterator[tuple[int, str]]:
    """Give where an error's text, or one that `audit` made, is searched, cut or compared, each with its line."""
    caught = {item.name for item in nodes(file) if isinstance(item, ast.ExceptHandler) and item.name}
    for item in nodes(file):
        match item:
            case ast.Compare(left=left, comparators=others):
                sides = [left, *others]
            case ast.Call(func=ast.Attribute(value=text, attr=name), args=arguments) if name in _READS:
                sides = [text, *arguments]
            case _:
                continue
        yield from ((item.lineno, ast.unparse(side)) for side in sides if is_sentence(side, caught))


def is_sentence(text: ast.expr, caught: Collection[str]) -> bool:
    """Whether an expression is the text of an error that was `caught`, or made of a fact."""
    match text:
        case ast.Call(func=ast.Name("str" | "repr"), args=[ast.Name(name)]):
            return name in caught
        case ast.Call(func=ast.Name(name) | ast.Attribute(ast.Name("causes" | "lines" | "rules"), attr=name)):
            return name.startswith("format_") or name in {"why", "remark"}
        case ast.Call(func=ast.Attribute(value=part)) | ast.Subscript(value=part):
            return is_sentence(part, caught)
        case ast.Attribute(ast.Name("problem"), attr="text"):
            return True
    return False


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
    found = [*read(file), *taken_apart(file)]
    assert bool(found) == (str(file.relative_to(PROGRAM)) in READERS), found


@pytest.mark.parametrize("file", SILENT, ids=lambda file: str(file.relative_to(PROGRAM)))
def test_who_makes_words_of_facts_is_known(file: Path) -> None:
    found = list(worded(file))
    assert bool(found) == (str(file.relative_to(PROGRAM)) in WORDED), found


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


@pytest.mark.parametrize(
    "line",
    [
        'x = "; " in str(error)',
        'x = str(error).partition("; ")[2]',
        'x = format_fault(fault).startswith("no ")',
        "x = _PLACE.findall(problem.text)",
        "x = why(hindrance).lower() == text",
    ],
)
def test_an_error_that_is_taken_apart_is_seen(tmp_path: Path, line: str) -> None:
    (file := tmp_path / "module.py").write_text(f"try:\n    act()\nexcept ValueError as error:\n    {line}\n")
    assert list(taken_apart(file))


@pytest.mark.parametrize(
    ("line", "is_seen"),
    [
        ('return f"{self}: {what} of the host listens there"', True),
        ('_FOLLOWS = {"ours": "but our rule comes first"}', True),
        ('raise ValueError(f"no port is {port}")', False),
        ('_log.info("%s, and %d more are lost", what, number)', False),
    ],
)
def test_words_of_facts_are_seen(tmp_path: Path, line: str, *, is_seen: bool) -> None:
    (file := tmp_path / "module.py").write_text(f'def said():\n    """Say it in words."""\n    {line}\n')
    assert bool(list(worded(file))) is is_seen
