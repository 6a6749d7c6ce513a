"""Both rule systems as one, on the real kernel."""

from argparse import Namespace
from pathlib import Path

import pytest

from fwdaemon.commands import flush
from fwdaemon.kernel import process
from fwdaemon.legacy.backend import LegacyBackend
from tests.kernel.legacy import EVERYTHING, helpers, own
from tests.lab.command import run


@pytest.mark.usefixtures("lock_file")
def test_what_one_rule_system_does_not_give_back_is_told_and_the_other_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = LegacyBackend()
    backend.apply(EVERYTHING, thorough=True)
    backend.close()
    assert "KVMPF_PRE" in own()
    run(["nft", "add", "table", "ip", "kvm_portfwd"])
    # A machine without `nft`.
    monkeypatch.setattr(process, "_PATH", str(tmp_path))
    assert flush.run(Namespace(config=tmp_path / "portfwd.toml")) == 1
    told = capsys.readouterr().err
    assert told.startswith("kvm-portfwd: ")
    assert told.endswith("the program is not installed\n")
    assert (own(), helpers()) == ("", [])
