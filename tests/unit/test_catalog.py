"""The catalog explains every kind of audit line, and nothing in it can be forged by the name of a domain."""

import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Final

import pytest

from fwdaemon.audit.journal import MESSAGE_IDS
from tests.unit import audit_lines, programs

CATALOG: Final = Path(__file__).parents[2] / "systemd" / "kvm-portfwd.catalog"
# Below "Subject:", journalctl starts each line with two columns and a blank.
WIDEST: Final = 80 - 3


def entries() -> dict[str, str]:
    """Texts by MESSAGE_ID."""
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOG.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> dict[str, list[dict[str, str]]]:
    """The fields of every kind of line, by MESSAGE_ID."""
    found = defaultdict(list)
    for fields in audit_lines.fields_of_all(caplog):
        found[fields["MESSAGE_ID"]].append(fields)
    return dict(found)


def test_journalctl_takes_an_entry_for_each_message_id(tmp_path: Path) -> None:
    catalogs = tmp_path / "usr" / "lib" / "systemd" / "catalog"
    catalogs.mkdir(parents=True)
    (catalogs / CATALOG.name).write_bytes(CATALOG.read_bytes())
    assert _journalctl(tmp_path, "--update-catalog") == ("", "")
    listed, new_problems = _journalctl(tmp_path, "--list-catalog")
    ids = [line.partition(" kvm-portfwd: ")[0] for line in listed.splitlines()]
    assert new_problems == ""
    assert sorted(ids) == sorted(MESSAGE_IDS.values())


def _journalctl(root: Path, action: str) -> tuple[str, str]:
    done = subprocess.run(  # noqa: S603  words of ours
        [programs.find("journalctl"), f"--root={root}", action], capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_every_kind_of_line_is_explained(lines: dict[str, list[dict[str, str]]]) -> None:
    assert lines.keys() == set(MESSAGE_IDS.values()) == entries().keys()
    for text in entries().values():
        headers, _, body = text.partition("\n\n")
        assert re.match(r"Subject: \S.*\nDefined-By: kvm-portfwd\nDocumentation: man:kvm-portfwd\(8\)", headers)
        assert body.strip()
        assert max(map(len, text.splitlines())) <= WIDEST


def test_a_field_in_a_text_is_in_every_such_line_and_harmless(lines: dict[str, list[dict[str, str]]]) -> None:
    fields = {message_id: set(re.findall(r"@(\w+)@", text)) for message_id, text in entries().items()}
    assert fields[MESSAGE_IDS["waiting"]] == {"PORTFWD_CAUSE"}
    assert fields[MESSAGE_IDS["flapping"]] == {"PORTFWD_CAUSE"}
    for message_id, names in fields.items():
        for line in lines[message_id]:
            assert names <= line.keys()
            assert all(line[name].isprintable() for name in names)
