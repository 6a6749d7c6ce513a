"""The layout of the code: what ARCHITECTURE.md promises of it is counted here; and that no test patches its insides."""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

from fwdaemon.core.types import PROTOCOL_NUMBERS

_ROOT: Final = Path(__file__).parents[1]
_PACKAGE: Final = _ROOT / "fwdaemon"
_FLAT, _FILES, _LAYERS, _LINES = 10, 180, 12, 400
# A module that one other imports has at least so many lines, or is joined with it.
_WORTH_A_FILE: Final = 60
_SEAMS: Final[dict[str, str]] = {}
# Where an expression has both a mapping's address to listen on and another's, it works out where that listens.
_LISTENERS: Final = {True, False}
# Private names that tests patch all the same, as "tests/…/test_….py: _NAME", each with the reason.
_PATCHED: Final[dict[str, str]] = {}

# In how many files a change is made, at most: of code, and that describe it, as CONTRIBUTING.md names them.
_TOUCHED: Final = {
    "a kind of exposure": 10,
    "a backend": 4,
    "a key": 5,
    "an event of libvirt": 2,
    "a metric": 2,
}
_OWN_PACKAGE: Final = "its own package"
_KINDS: Final = {"Forward", "Nat", "Route"}


def test_few_modules_stand_outside_the_packages() -> None:
    assert len(list(_PACKAGE.glob("*.py"))) <= _FLAT


def test_the_number_of_files_stays_small() -> None:
    assert len(_files()) <= _FILES


def test_the_layers_stay_few() -> None:
    assert len(_layers()) <= _LAYERS


def test_every_module_has_a_layer_but_further_backends() -> None:
    """Of these, other contracts in pyproject.toml say what they may import."""
    found = {file.stem for file in _PACKAGE.glob("*.py")} | {file.parent.name for file in _PACKAGE.glob("*/*.py")}
    backends = {file.parent.name for file in _PACKAGE.glob("*/backend.py")}
    assert found - {"__init__", *re.findall(r"\w+", " ".join(_layers()))} <= backends


def _layers() -> list[str]:
    contracts = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return list(layers)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """`prepare` raises a `CycleError` that names one."""
    modules = {_name(file).removesuffix(".__init__"): file for file in _files()}
    imports = {name: modules.keys() & set(_imported(file)) - {name} for name, file in modules.items()}
    TopologicalSorter(imports).prepare()


def test_no_file_is_too_long() -> None:
    assert [_name(file) for file in _files() if len(_lines(file)) > _LINES] == []


def test_a_small_module_that_one_other_imports_is_part_of_it() -> None:
    importers = defaultdict(set)
    for file in _files():
        for module in _imported(file):
            importers[module].add(_name(file))
    small = {_name(file) for file in _files() if file.name != "__init__.py" and len(_lines(file)) < _WORTH_A_FILE}
    assert {name for name in small if len(importers[name]) == 1} == set(_SEAMS)


def test_a_change_takes_as_few_files_as_promised_and_they_are_there() -> None:
    touched = _touched()
    number = {change: sum(map(len, parts)) for change, parts in touched.items()}
    assert number.keys() == _TOUCHED.keys()
    assert {change: number[change] for change, most in _TOUCHED.items() if number[change] > most} == {}
    named = {name for parts in touched.values() for part in parts for name in part} - {_OWN_PACKAGE}
    assert {name for name in named if not (_ROOT / name).is_file()} == set()


def test_what_many_ask_is_worked_out_in_one_place() -> None:
    """The numbers of protocols, by how much ports are shifted, and where a mapping listens."""
    found = {(what, _name(file)) for file in _files() for what in _worked_out(ast.parse(file.read_text()))}
    assert found == {
        ("numbers", "fwdaemon.core.types"),
        ("shift", "fwdaemon.core.types"),
        ("listens", "fwdaemon.config.model"),
    }


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ('NUMBERS = {"sctp": 132}', "numbers"),
        ("NAMES = {58: 'icmpv6'}", "numbers"),
        ("self.guest.first - self.host.first", "shift"),
        ("written = [mapping.listen] if mapping.listen else entry.listen", "listens"),
        ("written = mapping.listen or entry.listen", "listens"),
    ],
)
def test_what_is_worked_out_once_more_is_found(code: str, what: str) -> None:
    assert [*_worked_out(ast.parse(code))] == [what]


def _worked_out(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Dict(keys=keys, values=values) if any(map(_is_numbered, keys, values)):
                yield "numbers"
            case ast.BinOp(left=ast.Attribute(attr="first"), op=ast.Sub(), right=ast.Attribute(attr="first")):
                yield "shift"
            case ast.IfExp() | ast.BoolOp() if _listeners(node) == _LISTENERS:
                yield "listens"


def _is_numbered(key: ast.expr | None, value: ast.expr) -> bool:
    """Whether a pair in a dictionary is the name of a protocol and its number, either way round."""
    pair = {item.value for item in (key, value) if isinstance(item, ast.Constant)}
    return any({name, number} == pair for name, number in PROTOCOL_NUMBERS.items())


def _listeners(node: ast.AST) -> set[bool]:
    """Say of each `….listen` in an expression whether it is a mapping's."""
    found = (part.value for part in ast.walk(node) if isinstance(part, ast.Attribute) and part.attr == "listen")
    return {isinstance(owner, ast.Name) and owner.id == "mapping" for owner in found}


def test_nobody_else_lists_the_kinds_of_exposures() -> None:
    named = {_name(file) for file in _files() if {name.rpartition(".")[2] for name in _imported(file)} >= _KINDS}
    # It has what is there for one of them alone: NATs that are imminent, addresses of routes, logged forwards.
    assert "fwdaemon.core.state" in named
    named.remove("fwdaemon.core.state")
    assert named == {"fwdaemon.resolve.placement", "fwdaemon.nftables.dispatch_chains"}
    code, _ = _touched()["a kind of exposure"]
    assert named <= {name.removesuffix(".py").replace("/", ".") for name in code}


def test_few_ask_of_which_kind_an_exposure_is() -> None:
    """Those that do outside of the modules above have something that is there for that kind alone."""
    assert {_name(file) for file in _files() if any(map(_asks_for_kind, ast.walk(ast.parse(file.read_text()))))} == {
        "fwdaemon.core.exposures",
        "fwdaemon.nftables.dispatch_chains",
        "fwdaemon.legacy.translation",
        "fwdaemon.reconcile",  # interfaces of forwards
        "fwdaemon.resolve.wishes",  # ports of forwards, public addresses
        "fwdaemon.status.connection_log",  # `log` of forwards
    }


def _asks_for_kind(node: ast.AST) -> bool:
    """Whether it is `isinstance` with a kind, or a pattern of one."""
    match node:
        case ast.Call(func=ast.Name(id="isinstance"), args=[_, classes]):
            named: list[ast.AST] = [*ast.walk(classes)]
        case ast.MatchClass(cls=cls):
            named = [cls]
        case _:
            return False
    return any(isinstance(part, ast.Name) and part.id in _KINDS for part in named)


def _touched() -> dict[str, list[list[str]]]:
    """Give the files that CONTRIBUTING.md names for each change, those of code and those that describe it."""
    text = (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (an? [^|]+?) +\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    own = rf"{_OWN_PACKAGE}|(?<=`)[^`, ]+(?=`)"
    return {change: [re.findall(own, part) for part in parts] for change, *parts in rows}


def test_no_module_starts_a_shell() -> None:
    """Import contracts keep `subprocess` to one module; what else could start one has these names."""
    shell = re.compile(r"""shell=|os\.(system|popen)\b|getoutput|subprocess_shell|['"](/bin/)?(ba|da)?sh['"]""")
    texts = {path: path.read_text(encoding="utf-8") for path in _PACKAGE.rglob("*.py")}
    assert [str(path) for path, text in texts.items() if shell.search(text)] == []


def test_no_test_patches_a_private_name() -> None:
    """What a test has to vary is a parameter with a default: a test that patches breaks when the code is moved."""
    files = sorted((_ROOT / "tests").rglob("*.py"))
    found = {f"{file.relative_to(_ROOT)}: {name}" for file in files for name in _patched(ast.parse(file.read_text()))}
    assert found == set(_PATCHED)


@pytest.mark.parametrize(
    "patch",
    [
        'monkeypatch.setattr("fwdaemon.daemon._PATIENCE", 0.0)',
        'mock.patch("fwdaemon.daemon._PATIENCE", 0.0)',
        'mock.patch.object(module, "_PATIENCE", 0.0)',
        'monkeypatch.setattr(module, "_PATIENCE", 0.0)',
        'monkeypatch.setattr(module._State, "at", None)',
        "monkeypatch.setattr(module, name, None)",
        'setattr(fwdaemon.daemon, "_PATIENCE", 0.0)',
        'patch.delattr(Daemon, "_look")',
        "module._PATIENCE = 0.0",
    ],
)
def test_a_patch_of_a_private_name_is_found(patch: str) -> None:
    imports = "import fwdaemon.daemon\nfrom fwdaemon import daemon as module\nfrom fwdaemon.daemon import Daemon\n"
    assert len([*_patched(ast.parse(imports + patch))]) == 1


def _patched(tree: ast.Module) -> Iterator[str]:
    """Name what is private among what is patched; a name that is worked out may be, so that it counts."""
    ours = set(_ours(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(path)) if path.startswith("fwdaemon."):
                names = path.split(".")
            case ast.Call(
                func=ast.Attribute(attr="setattr" | "delattr" | "object") | ast.Name(id="setattr" | "delattr"),
                args=[patched, named, *_],
            ) if _of_ours(patched, ours):
                names = [*_of_ours(patched, ours), str(named.value) if isinstance(named, ast.Constant) else "_"]
            case ast.Attribute(ctx=ast.Store() | ast.Del()):
                names = _of_ours(node, ours)
            case _:
                continue
        yield from (name for name in names if name.startswith("_") and not name.endswith("__"))


def _ours(tree: ast.Module) -> Iterator[str]:
    """Give the names by which a file knows the program, its modules and what is in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fwdaemon":
            yield from (alias.asname or alias.name for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.asname or "fwdaemon" for alias in node.names if alias.name.startswith("fwdaemon"))


def _of_ours(node: ast.expr, ours: set[str]) -> list[str]:
    """Give the parts of a dotted name, if its first is one of these."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) and node.id in ours else []


def _files() -> list[Path]:
    return sorted(_PACKAGE.rglob("*.py"))


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _name(file: Path) -> str:
    return ".".join(file.relative_to(_ROOT).with_suffix("").parts)


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
