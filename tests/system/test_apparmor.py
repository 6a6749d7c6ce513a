"""The service does all that it can do under its AppArmor profile, which Debian's own kernel enforces in an emulator.

The kernel that the lab runs on may have no AppArmor, and would have one set of profiles for all machines.
"""

import re
import shutil
from pathlib import Path

from tests.lab.emulated import emulate
from tests.lab.release import Release, own_release

_SCRIPT = Path(__file__).with_name("apparmor.sh")
_SIDES = ("nft", "legacy")
_OF_DISTRIBUTIONS = Path(__file__).parents[2] / "packaging/debian/tests/guest"


def test_nothing_that_it_does_is_refused_by_its_profile(lab: None, package: Path, tmp_path: Path) -> None:
    del lab
    deb = Path(shutil.copy(package, tmp_path / "kvm-portfwd.deb"))
    told = emulate(own_release() or Release.BOOKWORM, _SCRIPT, _OF_DISTRIBUTIONS, deb).splitlines()
    assert told[-1] == "over", told
    assert [line for line in told if line.startswith(("refused: ", "did not: "))] == [], told
    script = _SCRIPT.read_text(encoding="utf-8")
    done = len(_SIDES) * script.count('\n    did "$side: ') + len(re.findall(r'^(?: {8})?did "', script, re.MULTILINE))
    assert len([line for line in told if line.startswith("did: ")]) == done
