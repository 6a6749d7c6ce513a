"""Runs one target under atheris: `python -m tests.fuzz.engine TARGET [libFuzzer's options and folders]`.

A process of its own, since libFuzzer ends the process it runs in. What is instrumented is the product; atheris has no
annotations, and is there only for fuzzing.
"""

import importlib
import sys
from typing import Any


def main() -> None:
    """Hand the process over to libFuzzer."""
    atheris: Any = importlib.import_module("atheris")
    name, arguments = sys.argv[1], sys.argv[2:]
    with atheris.instrument_imports(include=["fwdaemon"]):
        targets = importlib.import_module("tests.fuzz.targets").TARGETS
    # To merge, libFuzzer starts itself anew, and what it takes for its own name is the beginning of a shell's command.
    own = f"{sys.executable} -m tests.fuzz.engine {name}"
    atheris.Setup([own, *arguments], targets[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
