"""The rules of the legacy tables as text, for the cases of `test_golden`, one a file, for a reader to review.

`pytest tests/unit/test_legacy_golden.py --refresh-golden` writes them anew; read the difference before you commit it.
"""

import pytest

from fwdaemon.legacy.backend import LegacyBackend
from tests.unit.test_golden import CASES, GOLDEN


@pytest.mark.parametrize("name", CASES)
def test_rules_are_as_reviewed(name: str, request: pytest.FixtureRequest) -> None:
    path = GOLDEN / f"{name}.iptables"
    written = LegacyBackend().render(CASES[name])
    if request.config.getoption("--refresh-golden"):
        path.write_text(written)
    assert written == path.read_text()


def test_every_reviewed_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.iptables")} == set(CASES)
