"""shellcheck has nothing to warn of in any shell script that users or packages run."""

import subprocess
from pathlib import Path
from typing import Final

from tests.unit import programs

ROOT: Final = Path(__file__).parents[2]


def shell_scripts() -> list[Path]:
    """Everything in these directories that the shell runs."""
    found = [path for name in ("scripts", "packaging", "etc") for path in (ROOT / name).rglob("*") if path.is_file()]
    return [path for path in found if path.read_bytes().startswith(b"#!/bin/sh\n")]


def test_shellcheck_has_nothing_to_warn_of() -> None:
    words = [programs.find("shellcheck"), "--severity=warning", *map(str, shell_scripts())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603  words of ours
    assert done.returncode == 0, done.stdout
