"""`--help` is instant, since it imports nothing that takes long: neither libraries nor the commands themselves."""

import json
import subprocess
import sys
from typing import Final

import pytest

from tests.unit.commands import COMMANDS

# Prints what `--help` prints, then the modules that it imported, on lines of their own.
_SCRIPT: Final = """\
import atexit, json, sys
before = set(sys.modules)
atexit.register(lambda: print(json.dumps(sorted(set(sys.modules) - before))))
from fwdaemon.cli import main
main(sys.argv[1:])
"""
# Of the standard library, what takes longer to import than all the rest of `--help` together.
_SLOW: Final = {
    "asyncio",
    "concurrent",
    "ctypes",
    "email",
    "http",
    "logging",
    "multiprocessing",
    "socket",
    "ssl",
    "subprocess",
}
_OURS: Final = {"fwdaemon", "fwdaemon.cli", "fwdaemon.core", "fwdaemon.core.text", "fwdaemon.errors"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(  # noqa: S603  words of ours
        [sys.executable, "-c", _SCRIPT, *arguments], capture_output=True, text=True, check=True
    )
    *said, imported = done.stdout.splitlines()
    modules = json.loads(imported)
    tops = {module.partition(".")[0] for module in modules}
    assert said
    assert {module for module in modules if module.startswith("fwdaemon")} == _OURS
    assert tops <= sys.stdlib_module_names | {"fwdaemon"}
    assert not tops & _SLOW
