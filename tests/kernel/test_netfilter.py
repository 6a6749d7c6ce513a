"""Both rule systems as one, on the real kernel."""

from pathlib import Path

import pytest

from fwdaemon.commands.run import flush
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.legacy.backend import LegacyBackend
from tests.kernel.legacy import EVERYTHING, helpers, own
from tests.lab.command import run


@pytest.mark.usefixtures("lock_file")
def test_what_one_rule_system_does_not_give_back_is_told_and_the_other_is_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = LegacyBackend()
    backend.apply(EVERYTHING, full=True)
    backend.close()
    assert "KVMPF_PRE" in own()
    run(["nft", "add", "table", "ip", "kvm_portfwd"])
    # A machine without `nft`.
    assert flush(tmp_path / "portfwd.toml", SystemRunner(str(tmp_path))) == 1
    told = capsys.readouterr().err
    assert told.startswith("kvm-portfwd: ")
    assert told.endswith("the program is not installed\n")
    assert (own(), helpers()) == ("", [])
