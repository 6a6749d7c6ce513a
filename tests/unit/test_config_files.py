"""What is read of a configuration's files, what is not, and what others than root could change."""

import os
import resource
import shlex
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fwdaemon.cli import main as run
from fwdaemon.config import load, load_guarded
from fwdaemon.config.files import MOST_BYTES, weak_points
from fwdaemon.config.loader import MOST_PROBLEMS
from fwdaemon.errors import ConfigError, KernelError
from tests.unit.test_config_support import forward

NOBODY = 65534
SOURCE = Path(__file__).parents[2]
US = frozenset({0, os.geteuid()})
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "portfwd.toml"
    path.write_text(forward(ports='["1"]'))
    path.chmod(0o644)
    (tmp_path / "portfwd.d").mkdir(mode=0o755)
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(path)
    return [str(problem).replace(str(path.parent), "") for problem in refused.value.problems]


@pytest.mark.parametrize("name", ["portfwd.toml", "portfwd.d/a.toml"])
@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "socket", "device", "directory"])
def test_nothing_but_a_regular_file_is_read_or_waited_for(main: Path, name: str, kind: str) -> None:
    path = main.parent / name
    path.unlink(missing_ok=True)
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "link to a fifo":
            os.mkfifo(main.parent / "fifo")
            path.symlink_to(main.parent / "fifo")
        case "socket":
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(path))
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            path.mkdir()
    (problem,) = problems(main)
    assert problem.startswith(f"/{name}:1: cannot be read: ")
    assert problem.endswith(("; put one there", "; put a regular file there", "; put a file there"))


@pytest.mark.parametrize("name", ["portfwd.toml", "portfwd.d/a.toml"])
def test_a_loop_of_links(main: Path, name: str) -> None:
    path = main.parent / name
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)
    assert problems(main) == [
        f"/{name}:1: cannot be read: Too many levels of symbolic links; its links lead back to it; put a file there"
    ]


def test_a_file_too_large_to_be_meant(main: Path) -> None:
    main.write_text("#" * (MOST_BYTES + 1))
    assert problems(main) == [
        "/portfwd.toml:1: cannot be read: It has more than 4 MiB; write ranges of ports, or split it into drop-ins"
    ]
    main.write_text("#" * MOST_BYTES)
    load(main)


def test_a_million_equal_ports_are_refused_unread(main: Path) -> None:
    main.write_text(forward(ports="[" + '"80", ' * 1_000_000 + "]"))
    assert problems(main)[0].split("; ")[1] == "write ranges of ports, or split it into drop-ins"


def test_more_problems_than_anybody_reads_are_cut_short(main: Path) -> None:
    main.write_text(forward(ports="[" + '"80", ' * 20_000 + "]"))
    *told, last = problems(main)
    assert len(told) == MOST_PROBLEMS
    assert last.endswith(": there are 18,999 more problems; fix those above, and the others will be shown")


def test_an_unreadable_file_is_to_be_read_as_root(main: Path) -> None:
    """As a child that is no longer root, or never was."""
    main.chmod(0)
    script = (
        "import os\nfrom pathlib import Path\nfrom fwdaemon.config.files import read_files\n"
        f"os.geteuid() or os.setuid({NOBODY})\nprint(*read_files(Path({str(main)!r})).problems)"
    )
    done = subprocess.run(  # noqa: S603  words of ours
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=SOURCE
    )
    assert f"{main}:1: cannot be read: Permission denied; run this as root" in done.stdout


def test_a_directory_of_drop_ins_with_another_programs_name_is_told(
    main: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    misnamed = main.with_name(f"{main.name}.d")
    misnamed.mkdir()
    assert not load(main).ignored
    (misnamed / "web.toml").write_text("")
    assert load(main).ignored == (misnamed,)
    assert run(["check", str(main)]) == 0
    told = f"{misnamed} is a directory, in which nothing is read; move its drop-ins to {main.with_suffix('.d')}, and"
    assert f"warning: {told} remove it" in capsys.readouterr().err.splitlines()


def test_what_lies_beside_the_drop_ins_is_told(main: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = main.with_suffix(".d")
    hidden = (".b.toml", ".b.toml.swp", ".#b.toml", ".gitignore")
    for name in ("web.conf", "b.toml", "b.toml.bak", "b.toml~", "b.toml.dpkg-old", "B.TOML", *hidden):
        (directory / name).write_text("")
    (directory / "more").mkdir()
    assert [file.name for file in load(main).ignored] == [".b.toml", "B.TOML", "more", "web.conf"]
    assert run(["check", str(main)]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if str(directory) in line]
    rest = "if it is a drop-in, and move it elsewhere if it is none"
    assert told == [
        f"warning: {directory}/{name} is {why}"
        for name, why in (
            (".b.toml", f"not read, as its name begins with a dot; rename it to b.toml {rest}"),
            ("B.TOML", f"not read, as names of drop-ins end in .toml; rename it to B.TOML.toml {rest}"),
            ("more", f"a directory, in which nothing is read; move its drop-ins to {directory}, and remove it"),
            ("web.conf", f"not read, as names of drop-ins end in .toml; rename it to web.conf.toml {rest}"),
        )
    ]


def weak(path: Path) -> list[Path]:
    return [problem.file for problem in weak_points(path, US)]


def follow(path: Path) -> None:
    """Run what each weak point says to run, to the letter."""
    for problem in list(weak_points(path, US)):
        command = problem.text.rpartition(" run ")[2]
        for part in command.split(" && "):
            subprocess.run(shlex.split(part), check=True)  # noqa: S603  words of ours


def test_what_only_root_can_change_is_fine(main: Path) -> None:
    """Below /tmp too, where others may make files, and not replace those of others."""
    assert weak(main) == weak(main.with_suffix(".d")) == []


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write(main: Path, mode: int) -> None:
    main.chmod(mode)
    (problem,) = weak_points(main, US)
    assert (problem.file, problem.line) == (main, 1)
    assert f"has mode {mode:04o}, so users other than root could open ports" in problem.text
    follow(main)
    assert weak(main) == []


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777])
def test_a_directory_of_drop_ins_that_others_can_write(main: Path, mode: int) -> None:
    directory = main.with_suffix(".d")
    directory.chmod(mode)
    assert weak(directory) == [directory]
    follow(directory)
    assert weak(directory) == []


def test_a_directory_on_the_way(main: Path) -> None:
    main.parent.chmod(0o777)
    assert weak(main) == weak(main.with_suffix(".d")) == [main.parent]
    main.parent.chmod(0o1777)
    assert weak(main) == []


def test_each_directory_that_links_lead_through(main: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir(mode=0o777)
    away.chmod(0o777)
    (away / "it's.toml").write_text(forward(ports='["1"]'))
    main.unlink()
    main.symlink_to("away/it's.toml")
    assert weak(main) == [away]
    (away / "it's.toml").chmod(0o666)
    follow(main)
    assert weak(main) == []
    assert stat.S_IMODE((away / "it's.toml").stat().st_mode) == 0o644


@as_root
def test_what_belongs_to_others(main: Path) -> None:
    drop_in, link = main.with_suffix(".d") / "a.toml", main.with_suffix(".d") / "b.toml"
    drop_in.write_text(forward())
    link.symlink_to(main)
    os.chown(drop_in, NOBODY, NOBODY)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(ConfigError) as refused:
        load_guarded(main)
    assert [problem.file for problem in refused.value.problems if "belongs to user 65534" in problem.text] == [
        drop_in,
        link,
    ]
    follow(drop_in)
    follow(link)
    assert weak(drop_in) == weak(link) == []


@as_root
def test_check_refuses_what_the_daemon_would_and_warns_of_a_draft(
    main: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.chmod(0o666)
    assert run(["check", "--config", str(main)]) == 78
    assert "chmod go-w" in capsys.readouterr().err
    assert run(["check", str(main)]) == 0
    assert f"warning: {main}:1: belongs to user 0 and has mode 0666" in capsys.readouterr().err


@as_root
@pytest.mark.parametrize("blank", ["", "\n", " \n\t\n"])
def test_an_emptied_file_is_refused_while_its_entries_are_in_force(main: Path, blank: str) -> None:
    drop_in = main.with_suffix(".d") / "a.toml"
    drop_in.write_text(forward(ports='["2"]') + forward(ports='["3"]'))
    live = load_guarded(main).config
    main.write_text(blank)
    drop_in.write_text(blank)
    with pytest.raises(ConfigError) as refused:
        load_guarded(main, live)
    assert [problem.text for problem in refused.value.problems] == [
        'is empty, while 3 entries are in force; if none is meant, write a line "[daemon]" into it',
        "is empty, while 2 entries are in force; if none is meant, remove the file",
    ]
    drop_in.unlink()
    main.write_text(blank + "[daemon]\n")
    assert load_guarded(main, live).config.forwards == ()


@as_root
@pytest.mark.parametrize("entry", ['name = "bad"\nfile = "{new}"', 'name = "other"\nfile = "{file}"'])
def test_an_emptied_list_is_refused_while_its_networks_are_in_force(main: Path, entry: str) -> None:
    file, new = main.with_name("bad.txt"), main.with_name("new.txt")
    main.write_text(f'[[set]]\nname = "bad"\nfile = "{file}"\n')
    file.write_text("192.0.2.1\n")
    live = load_guarded(main).config
    main.write_text(f"[[set]]\n{entry}\n".format(file=file, new=new))
    file.write_text("\n")
    new.write_text("\n")
    with pytest.raises(ConfigError) as refused:
        load_guarded(main, live)
    assert [problem.text for problem in refused.value.problems] == [
        "is empty, while 1 network of its set is in force; if none is meant, write a comment line, # none"
    ]
    for each in (file, new):
        each.write_text("# none\n")
    nothing = load_guarded(main, live).config
    assert nothing.sets[0].number == 0
    file.write_text("")
    new.write_text("")
    assert load_guarded(main, nothing).config == nothing


@as_root
def test_an_empty_file_is_fine_where_nothing_is_lost(main: Path) -> None:
    main.write_text("")
    nothing = load_guarded(main).config
    (main.with_suffix(".d") / "a.toml").write_text("")
    assert load_guarded(main, nothing).config == nothing


def test_a_machine_short_of_descriptors_is_no_fault_of_a_file(main: Path) -> None:
    """It is not refused as a wrong one is, which nothing would ever read again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(KernelError, match="cannot be read: Too many open files"):
            load(main)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert load(main).forwards
