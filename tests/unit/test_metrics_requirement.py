"""Metrics need a library that not every host has; asked for without it, they say how to get it."""

import subprocess
import sys
from pathlib import Path

import pytest

from fwdaemon.cli import main

TEXTFILE = '[metrics]\ntextfile = "/run/x/kvm_portfwd.prom"\n'
LISTEN = '[metrics]\nlisten = "127.0.0.1:9750"\n'
MISSING = (
    ":2: metrics: needs the Python library prometheus-client, which is not installed; install it, on Debian with"
    ' "apt install python3-prometheus-client", elsewhere with "pip install kvm-portfwd[metrics]", or remove the table\n'
)


def check(path: Path, text: str) -> int:
    path.write_text(f"\n{text}")
    return main(["check", str(path)])


@pytest.mark.parametrize("text", [TEXTFILE, LISTEN])
def test_check_tells_what_is_missing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "portfwd.toml"
    assert check(path, text) == 0
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert check(path, text) == 78
    assert capsys.readouterr().err == f"{path}{MISSING}"


@pytest.mark.parametrize("text", ["", "[metrics]\n"])
def test_nothing_is_missing_where_nothing_is_asked_for(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert check(tmp_path / "portfwd.toml", text) == 0


def test_without_metrics_the_daemon_loads_nothing_that_serves_them() -> None:
    script = "import sys, fwdaemon.commands.run; print({'http.server', 'prometheus_client'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603  ours
    assert done.stdout == "set()\n"
