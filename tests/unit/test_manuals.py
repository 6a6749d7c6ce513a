"""The manual pages are sound, and name all there is: commands, options, keys of the configuration, fields, actions."""

import io
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

import fwdaemon.config
from fwdaemon.audit.journal import MESSAGE_IDS
from fwdaemon.cli import main
from fwdaemon.config import parse
from tests.unit import audit_lines, programs
from tests.unit.commands import COMMANDS, PARSER, options_of

PACKAGE: Final = Path(fwdaemon.config.__file__).parents[1]
MANUALS: Final = Path(__file__).parents[2] / "man"
PROGRAM: Final = (MANUALS / "kvm-portfwd.8").read_text()
FILE: Final = (MANUALS / "portfwd.toml.5").read_text()
SCHEMA: Final[dict[str, Any]] = json.loads((Path(fwdaemon.config.__file__).parent / "schema.json").read_text())


def section(page: str, title: str, macro: str = "Sh") -> str:
    """Give what stands below a heading, up to the next one."""
    found = re.search(rf"^\.{macro} {re.escape(title)}\n(.*?)(?=^\.S[hs] |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"there is no {title}"
    return found[1]


def items(text: str) -> list[str]:
    """Give the heads of a list."""
    return re.findall(r"^\.It (.+)$", text, re.MULTILINE)


def flags(text: str) -> set[str]:
    return {f"-{flag}" for flag in re.findall(r"(?:\bFl|,) (-[\w-]+)", text)}


def placeholders(text: str) -> set[str]:
    """Give the words that stand for an argument, `FILE`."""
    return set(re.findall(r"\b[A-Z]{2,}\b", text))


def words(text: str, macro: str) -> list[str]:
    """Give what stands after a macro in the heads of a list, sorted."""
    heads = [head.split() for head in items(text) if head.startswith(f"{macro} ")]
    return sorted(word for head in heads for word in head if word not in {macro, ","})


@pytest.mark.parametrize("page", ["kvm-portfwd.8", "portfwd.toml.5"])
def test_mandoc_has_nothing_to_say(page: str) -> None:
    done = subprocess.run(  # noqa: S603  words of ours
        [programs.find("mandoc"), "-T", "lint", "-W", "warning", MANUALS / page],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_commands_and_their_options() -> None:
    told = {head.split()[1]: (flags(head), placeholders(head)) for head in items(section(PROGRAM, "COMMANDS"))}
    assert told == {
        name: ({*options_of(command)} - {"--help"}, placeholders(command.format_usage()))
        for name, command in COMMANDS.items()
    }


def test_options_of_all() -> None:
    told = flags("\n".join(items(section(PROGRAM, "OPTIONS"))))
    assert told == {*options_of(PARSER), "--config", "--json"}


def test_exit_codes() -> None:
    """The page has those that commands return, and 2, with which wrong usage ends."""
    assert items(section(PROGRAM, "EXIT STATUS")) == [str(code) for code in sorted({0, 2, *_returned()})]


def _returned() -> Iterator[int]:
    for file in (PACKAGE / "cli.py", *(PACKAGE / "commands").glob("*.py")):
        text = file.read_text()
        known = dict(re.findall(r"^(_[A-Z_]+)(?:: Final)? = (\d+)$", text, re.MULTILINE))
        yield from (int(known[name]) for name in re.findall(r"\breturn (_[A-Z_]+)\b", text) if name in known)


class Interrupted(io.TextIOBase):
    """Standard input while the user presses Ctrl-C."""

    @property
    def buffer(self) -> NoReturn:
        raise KeyboardInterrupt


def test_what_is_interrupted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Interrupted())
    assert main(["import", "-"]) == 130


def test_fields_and_actions_of_the_audit(caplog: pytest.LogCaptureFixture) -> None:
    text = section(PROGRAM, "AUDIT")
    fields = {field for line in audit_lines.fields_of_all(caplog) for field in line}
    assert words(text, "Va") == sorted(fields)
    assert words(text, "Cm") == sorted(MESSAGE_IDS)


def test_tables_and_keys_of_the_configuration() -> None:
    tables = {_header(name, table): table for name, table in SCHEMA["properties"].items()}
    assert sorted(re.findall(r"^\.Ss (\[.+)$", FILE, re.MULTILINE)) == sorted(tables)
    for header, table in tables.items():
        definition = (table.get("items") or table)["$ref"].rpartition("/")[2]
        keys = words(section(FILE, header, "Ss"), "Ic")
        assert keys == sorted(SCHEMA["$defs"][definition]["properties"])


def _header(name: str, table: dict[str, Any]) -> str:
    return f"[[{name}]]" if "items" in table else f"[{name}]"


def test_defaults_of_the_configuration() -> None:
    for name, definition in SCHEMA["$defs"].items():
        for key, described in definition.get("properties", {}).items():
            if "default" in described:
                text = section(FILE, f"[{name}]", "Ss").split(f".It Ic {key}\n")[1].split(".It ")[0]
                told = re.search(r"^Default:\n\.(?:Ql|Cm) (.+?) ?\.?$", text, re.MULTILINE)
                assert told, f"{key} has no default"
                assert _value(told[1]) == described["default"]


def _value(text: str) -> object:
    """Read a default as it is written; a word stands for itself."""
    try:
        return int(text, 16) if text.startswith("0x") else json.loads(text)
    except ValueError:
        return text


def test_examples_are_right() -> None:
    examples = re.findall(r"^\.Bd -literal -offset indent\n(.*?)^\.Ed", FILE, re.MULTILINE | re.DOTALL)
    assert len(examples) == FILE.count(".Bd -literal -off") > 0
    for example in examples:
        parse({Path("x.toml"): example})
