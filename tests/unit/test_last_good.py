"""The last configuration that was right: kept whole, for root alone, and read only where no one else wrote it."""

import os
import stat
from pathlib import Path

import pytest

from fwdaemon.commands import run
from fwdaemon.config import load
from fwdaemon.errors import ConfigError
from fwdaemon.status.reloads import LastGood, Start
from tests.unit.test_config_support import forward

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon is root")


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "portfwd.toml"
    path.write_text(forward(ports='["1"]'))
    path.chmod(0o644)
    (tmp_path / "portfwd.d").mkdir()
    (tmp_path / "portfwd.d" / "a.toml").write_text(forward(ports='["2"]'))
    return path


@pytest.fixture
def last_good(main: Path, tmp_path: Path) -> LastGood:
    return LastGood(main, tmp_path / "state")


def first_configuration(last_good: LastGood, main: Path) -> Start:
    """Begin as the daemon does, which keeps what was right."""
    start = run.first_configuration(last_good, main)
    if start.sources:
        last_good.keep(start.sources, start.lists)
    return start


def test_a_wrong_start_takes_what_was_right(main: Path, last_good: LastGood) -> None:
    right = first_configuration(last_good, main)
    assert (right.problems, right.kept_at) == ((), None)
    main.write_text(forward(ports='["99999"]'))
    (main.with_suffix(".d") / "a.toml").write_text("x")
    again = first_configuration(last_good, main)
    assert again.config == right.config
    assert [problem.file.name for problem in again.problems] == ["portfwd.toml", "a.toml"]
    assert again.kept_at is not None
    main.write_text(forward(ports='["3"]'))
    (main.with_suffix(".d") / "a.toml").unlink()
    assert first_configuration(last_good, main).config == load(main)


def test_metrics_whose_library_has_gone_are_left_out(
    main: Path, last_good: LastGood, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade may take it away; the guests are followed all the same."""
    main.write_text(forward(ports='["1"]') + '[metrics]\nlisten = "127.0.0.1:9817"\n')
    right = first_configuration(last_good, main)
    monkeypatch.setattr("fwdaemon.metrics.exposition.find_spec", lambda _name: None)
    again = first_configuration(last_good, main)
    assert (again.config.forwards, again.config.metrics.listen) == (right.config.forwards, None)
    assert "prometheus-client, which is not installed" in again.problems[0].text


def test_a_first_wrong_start_is_refused(main: Path, last_good: LastGood) -> None:
    main.write_text("x")
    with pytest.raises(ConfigError):
        first_configuration(last_good, main)


def test_an_emptied_file_at_the_start_is_a_wrong_one(main: Path, last_good: LastGood) -> None:
    right = first_configuration(last_good, main)
    main.write_text("")
    assert first_configuration(last_good, main).config == right.config


def test_an_emptied_list_at_the_start_is_a_wrong_one(main: Path, last_good: LastGood) -> None:
    listed = main.with_name("bad.txt")
    listed.write_text("192.0.2.1\n")
    main.write_text(f'[daemon]\ndeny = ["set:bad"]\n[[set]]\nname = "bad"\nfile = "{listed}"\n')
    first_configuration(last_good, main)
    listed.write_text("")
    again = first_configuration(last_good, main)
    assert [item.number for item in again.config.sets] == [1]
    assert [problem.file for problem in again.problems] == [listed]


def test_a_file_that_others_can_write_at_the_start_is_a_wrong_one(main: Path, last_good: LastGood) -> None:
    right = first_configuration(last_good, main)
    (main.with_suffix(".d") / "a.toml").write_text(forward(ports='["4"]'))
    (main.with_suffix(".d") / "a.toml").chmod(0o666)
    assert first_configuration(last_good, main).config == right.config


def test_only_root_may_read_it(main: Path, last_good: LastGood, tmp_path: Path) -> None:
    os.umask(0)
    try:
        first_configuration(last_good, main)
    finally:
        os.umask(0o022)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    assert modes == {"last-good.json": 0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


@pytest.mark.parametrize("harm", ["others", "owner", "text", "elsewhere", "fifo", "grammar"])
def test_what_cannot_be_trusted_or_read_is_not_used(main: Path, last_good: LastGood, tmp_path: Path, harm: str) -> None:
    first_configuration(last_good, main)
    kept = tmp_path / "state" / "last-good.json"
    match harm:
        case "others":
            kept.chmod(0o666)
        case "owner":
            os.chown(kept, 65534, 65534)
        case "text":
            kept.write_text("[]")
        case "elsewhere":
            kept.write_text(kept.read_text().replace("portfwd.toml", "other.toml"))
        case "fifo":
            kept.unlink()
            os.mkfifo(kept)
        case _:
            kept.write_text(kept.read_text().replace("ports", "prots"))
    assert last_good.kept() is None


def test_a_disk_that_is_full_is_a_warning_once(main: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("in the way")
    last_good = LastGood(main, tmp_path / "state")
    for _ in range(3):
        assert first_configuration(last_good, main).kept_at is None
    assert caplog.text.count("the last good configuration is not kept") == 1
