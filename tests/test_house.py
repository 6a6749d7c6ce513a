"""The layout of the code: what ARCHITECTURE.md promises of it is counted here."""

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[1]
_PACKAGE: Final = _ROOT / "fwdaemon"
_FLAT, _FILES, _LAYERS, _LINES = 10, 180, 12, 400
# A module that one other imports has at least so many lines, or is joined with it.
_WORTH_A_FILE: Final = 60
_SEAMS: Final[dict[str, str]] = {}


def test_few_modules_stand_outside_the_packages() -> None:
    assert len(list(_PACKAGE.glob("*.py"))) <= _FLAT


def test_the_number_of_files_stays_small() -> None:
    assert len(_files()) <= _FILES


def test_the_layers_stay_few() -> None:
    contracts = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert [len(contract["layers"]) <= _LAYERS for contract in contracts if contract["type"] == "layers"] == [True]


def test_no_file_is_too_long() -> None:
    assert [_name(file) for file in _files() if len(_lines(file)) > _LINES] == []


def test_a_small_module_that_one_other_imports_is_part_of_it() -> None:
    importers = defaultdict(set)
    for file in _files():
        for module in _imported(file):
            importers[module].add(_name(file))
    small = {_name(file) for file in _files() if file.name != "__init__.py" and len(_lines(file)) < _WORTH_A_FILE}
    assert {name for name in small if len(importers[name]) == 1} == set(_SEAMS)


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
