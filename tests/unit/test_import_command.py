"""`kvm-portfwd import`: what it prints where, and how it ends."""

import io
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from fwdaemon import config
from fwdaemon.cli import main
from tests.unit.test_import_hooks_json import SAMPLE

RULE = "-A PREROUTING -d 198.51.100.1/32 -p tcp --dport 80 -j DNAT --to-destination 192.168.122.10"
SAVE = f"*nat\n{RULE}\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
ROUTED = "203.0.113.66 public\n"
PORTS = "PRIVATE_IP=192.168.122.10\nPUBLIC_IP=198.51.100.7\nPORTS=tcp:80"
NOTHING = "nothing could be imported; the reasons are above, and in the comments of what is printed"
UNREACHABLE = '[daemon]\nlibvirt = ["qemu+unix:///system?socket=/nonexistent"]\n'


@dataclass(frozen=True, slots=True)
class Run:
    """Runs the command on files of these contents, all of them in one directory, with libvirt out of reach."""

    directory: Path
    capture: pytest.CaptureFixture[bytes]

    def __call__(self, contents: Mapping[str, str | bytes], *names: str, code: int = 0) -> tuple[str, list[str]]:
        """Give what it printed, and the lines on standard error, without the directory; `names` are files as well."""
        for name, content in contents.items():
            (self.directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
        (self.directory / "portfwd.toml").write_text(UNREACHABLE)
        files = [name if name == "-" else f"{self.directory}/{name}" for name in (*contents, *names)]
        assert main(["import", "--config", f"{self.directory}/portfwd.toml", *files]) == code
        said = self.capture.readouterr()
        return said.out.decode(), said.err.decode().replace(f"{self.directory}/", "").splitlines()


@pytest.fixture
def run(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    return Run(tmp_path, capsysbinary)


def test_several_files_make_one_configuration(run: Run) -> None:
    text, errors = run({"hooks": SAMPLE, "routed": ROUTED, "web": PORTS})
    made = config.parse({Path("made.toml"): text})
    assert {entry.domain for entry in made.forwards} == {"admin", "node", "web"}
    assert [route.network for route in made.routes] == ["public"]
    assert [error.split(",")[0] for error in errors] == ["warning: hooks:2: where there is no public_ip"]


def test_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(ROUTED.encode())))
    text, _ = run({}, "-")
    assert "# From -, addresses of the routed-ips hook\n" in text
    assert '"203.0.113.66", # -:1\n' in text


def test_without_libvirt_it_goes_on_and_says_so(run: Run) -> None:
    text, errors = run({"save": SAVE}, code=1)
    assert config.parse({Path("made.toml"): text}).forwards == ()
    assert '# domain = "?"' in text
    assert errors[0].startswith("warning: libvirt at qemu+unix:///system?socket=/nonexistent does not answer")
    assert errors[1:] == [
        "warning: save:2: 80 left out: libvirt did not say which domain has 192.168.122.10; write its name",
        NOTHING,
    ]


def test_libvirt_is_asked_who_has_an_address(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (tmp_path / "test.toml").write_text('[daemon]\nlibvirt = ["test:///default"]\n')
    (tmp_path / "save").write_text(SAVE)
    assert main(["import", "--config", f"{tmp_path}/test.toml", f"{tmp_path}/save"]) == 1
    assert b"no running domain is known to have 192.168.122.10" in capsysbinary.readouterr().err


def test_a_refused_configuration_does_not_stop_it(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (tmp_path / "portfwd.toml").write_text("junk = 1")
    (tmp_path / "routed").write_text(ROUTED)
    assert main(["import", "--config", f"{tmp_path}/portfwd.toml", f"{tmp_path}/routed"]) == 0
    assert b'"203.0.113.66"' in capsysbinary.readouterr().out


def test_a_broken_file_fails_all_with_nothing_on_standard_output(run: Run) -> None:
    text, errors = run({"routed": ROUTED, "first": "{", "second": "hello\n", "third": b"\xff"}, code=1)
    assert text == ""
    assert [error.split(";")[0] for error in errors] == [
        "first:1: is not valid JSON: Unexpected end of input at column 2",
        'second:1: "hello" is from no known kind of file',
        "third:1: is not UTF-8 text",
    ]


@pytest.mark.parametrize("name", ["missing", ".", "nul\0"])
def test_what_cannot_be_read_is_told_in_one_line(run: Run, name: str) -> None:
    text, errors = run({}, name, code=1)
    assert text == ""
    (error,) = errors
    assert ":1: cannot be read: " in error


def test_nothing_to_import_is_told(run: Run) -> None:
    _, errors = run({"routed": "# IP address   libvirt network\n"}, code=1)
    assert errors == ["warning: routed:1: has nothing to import", NOTHING]


def test_a_hostile_name_of_a_file_is_one_line(run: Run) -> None:
    text, errors = run({"a\n# daemon\x1bz": f"{PORTS},x"})
    assert [entry.domain for entry in config.parse({Path("made.toml"): text}).forwards] == ["a\n# daemon\x1bz"]
    assert errors == ['warning: a\\n# daemon\\x1bz:3: "x" left out: it is not of the form tcp:80']


def test_a_megabyte_of_a_name(run: Run) -> None:
    long = "1" * 1_000_000
    text, errors = run({"routed": f"203.0.113.66 {long}\n", "web": f"PRIVATE_IP={long}\nPORTS=tcp:80\n"}, code=1)
    assert len(text) < 2_000
    assert len(errors) == 4


def test_a_megabyte_of_blanks_is_read_in_one_pass(run: Run) -> None:
    blanks = " " * 1_000_000
    text, _ = run({"routed": f"203.0.113.66{blanks}public\n{blanks}\n", "web": f"PORTS={blanks}'{blanks}\n{PORTS}"})
    made = config.parse({Path("made.toml"): text})
    assert (len(made.forwards), len(made.routes)) == (0, 1)
    assert "# Left out: what line 1 does is not known" in text


def test_what_it_prints_is_utf_8_whatever_the_terminal_is(tmp_path: Path) -> None:
    (tmp_path / "routed").write_text("203.0.113.66 öffentlich\n")
    argv = [sys.executable, "-m", "fwdaemon", "import", f"{tmp_path}/routed"]
    environment = {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(argv, env=environment, capture_output=True, check=True)  # noqa: S603  our own program
    assert 'network = "öffentlich"' in done.stdout.decode()


def test_without_a_file_it_is_wrong_usage() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["import"])


def test_the_daemon_loads_nothing_of_it() -> None:
    script = "import sys, fwdaemon.daemon; print({'json5', 'tomlkit', 'fwdaemon.importing'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603  ours
    assert done.stdout == "set()\n"
