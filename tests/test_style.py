"""The linters run as tests, so that one command says whether a change is fit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_LINTERS = {
    "ruff check": ["ruff", "check", "--no-cache", "."],
    "ruff format": ["ruff", "format", "--no-cache", "--check", "."],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports", "--no-cache"],
}


@pytest.mark.parametrize("argv", _LINTERS.values(), ids=_LINTERS.keys())
def test_linter_has_nothing_to_say(argv: list[str]) -> None:
    program = Path(sys.executable).with_name(argv[0])
    if not program.exists() and not os.environ.get("CI"):
        pytest.skip(f"{argv[0]} is not installed; scripts/test installs it")
    done = subprocess.run(  # noqa: S603
        [program, *argv[1:]], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
