"""Reading the main file and its drop-ins from a directory; no file, whatever is in it, ends in a traceback."""

import json
from pathlib import Path
from typing import Final

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.config import exposures as forward_module
from fwdaemon.config import load, parse
from fwdaemon.config.model import Config, DaemonSettings
from fwdaemon.config.sets import SET_KEYS
from fwdaemon.errors import ConfigError, Problem
from tests.unit.test_config_support import MAIN, forward

KEYS: Final = {
    "forward": forward_module.FORWARD_KEYS,
    "nat": forward_module.NAT_KEYS,
    "route": forward_module.ROUTE_KEYS,
    "allow": forward_module.ALLOW_KEYS,
    "set": SET_KEYS,
}
DEFAULT: Final = Path(__file__).parents[2] / "etc" / "portfwd.toml"


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(path)
    return [str(problem).replace(str(path.parent), "") for problem in refused.value.problems]


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "portfwd.toml"
    path.write_text(forward(ports='["1"]'))
    (tmp_path / "portfwd.d").mkdir()
    return path


def test_the_default_file_is_the_default() -> None:
    assert load(DEFAULT) == Config(DaemonSettings(), ())


def test_the_default_file_of_0_1_0_is_the_default_too() -> None:
    text = DEFAULT.read_text().replace("label = 25", "mark = 0x02000000")
    assert parse({MAIN: text}) == Config(DaemonSettings(), ())


def test_the_default_file_shows_every_key_as_it_may_be_written() -> None:
    lines = DEFAULT.read_text().splitlines()
    written = [line[2:] for line in lines if line.startswith("# ") and (" = " in line or line[2] == "[")]
    text = "\n".join(["[daemon]", *written])  # of which the first one that is left out by default is
    tables = {name: content for name, content in tomli.loads(text).items() if isinstance(content, list)}
    shown = {name: {key for entry in entries for key in entry} for name, entries in tables.items()}
    assert shown == {name: set(keys) for name, keys in KEYS.items()}
    without_mac = "\n".join(line for line in text.splitlines() if not line.startswith("mac "))
    config = parse({MAIN: without_mac.replace(', "198.51.100.7:443"', "")}, {Path("/etc/portfwd.d/blocklist.txt"): b""})
    assert [len(entries) for entries in (config.forwards, config.nats, config.routes, config.allows)] == [1, 1, 3, 1]


def test_drop_ins_come_in_name_order(main: Path) -> None:
    for number, name in enumerate(["20-b.toml", "10-a.toml", ".hidden.toml", "x.toml.bak"]):
        (main.with_suffix(".d") / name).write_text(forward(ports=f'["{number + 2}"]'))
    assert [entry.origin.file.name for entry in load(main).forwards] == ["portfwd.toml", "10-a.toml", "20-b.toml"]


def test_no_drop_in_directory(main: Path) -> None:
    main.with_suffix(".d").rmdir()
    assert len(load(main).forwards) == 1


def test_missing_main_file_does_not_hide_other_problems(main: Path) -> None:
    main.unlink()
    (main.with_suffix(".d") / "a.toml").write_text("\nx = 1")
    assert problems(main) == [
        (
            "/portfwd.toml:1: cannot be read: No such file or directory;"
            ' create it, a line "[daemon]" will do, or name another with --config'
        ),
        (
            '/portfwd.d/a.toml:2: unknown key "x";'
            " write one of allow, control, daemon, fleet, forward, metrics, nat, route, set"
        ),
    ]


def test_unreadable_drop_ins(main: Path) -> None:
    directory = main.with_suffix(".d")
    (directory / "a.toml").mkdir()
    (directory / "b.toml").symlink_to("nowhere")
    assert problems(main) == [
        "/portfwd.d/a.toml:1: cannot be read: Is a directory; put a file there",
        "/portfwd.d/b.toml:1: cannot be read: No such file or directory; fix the link, or remove it",
    ]


def test_a_file_in_place_of_the_directory(main: Path) -> None:
    main.with_suffix(".d").rmdir()
    main.with_suffix(".d").touch()
    assert problems(main) == [
        "/portfwd.d:1: cannot be read: Not a directory; only a directory of *.toml files may have this name; rename it"
    ]


@pytest.mark.parametrize("path", ["/", "/nowhere.d", "."])
def test_strange_paths_are_refused(path: str) -> None:
    with pytest.raises(ConfigError):
        load(Path(path))


WORDS: Final = (
    *("[[forward]]", "[daemon]", "[[nat]]", "[[route]]", "[metrics]", "forward", "domain", "ports", "listen"),
    *("sources", "address", "mark", "public", "assign", "network", "addresses", "proxy", "masquerade"),
    *("=", " ", "\n", "[", "]", "{", "}", ",", ".", '"', "'", '"""', "#", "\\", "80", "0x", "1e9", "nan", "true"),
    *('"80:81/udp"', '"[::1]:80"', '"198.51.100.7"', '"198.51.100.0/24"', "\r\n", "\0", "é", "1979-05-27"),
)


def check(source: str | bytes) -> None:
    """Read a text; `ConfigError` is the only way out but success, and its lines are within the text."""
    found: tuple[Problem, ...] = ()
    try:
        parse({MAIN: source, MAIN.with_name("drop-in.toml"): source})
    except ConfigError as error:
        found = error.problems
    newlines = source.count("\n") if isinstance(source, str) else source.count(b"\n")
    assert all(1 <= problem.line <= newlines + 1 for problem in found)
    assert all(problem.text.isprintable() and "; " in problem.text for problem in found)


@given(st.lists(st.sampled_from(WORDS)).map("".join) | st.text() | st.binary())
def test_any_text_is_read_or_refused(source: str | bytes) -> None:
    check(source)


TEXTS = st.text(max_size=5) | st.sampled_from(
    [
        *("80", "80-90:1-11/udp", "198.51.100.7", "2001:db8::1", "192.0.2.0/24", "198.51.0.0/16", "2001:db8::/32"),
        *("::/0", "eth0", "52:54:00:12:34:56", "30s"),
    ]
)
LEAVES = TEXTS | st.integers() | st.booleans() | st.floats()
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(TEXTS, LEAVES, max_size=2)
DAEMON_KEYS = st.sampled_from(
    ["libvirt", "backend", "resync", "on_stop", "ip_forward", "localhost", "mark", "gates", "behind"]
)


def write(value: object) -> str:
    match value:
        case bool() | int():
            return json.dumps(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case float():
            return "nan" if value != value else "inf" if abs(value) == float("inf") else f"{value:.3f}"  # noqa: PLR0124
        case list():
            return f"[{', '.join(map(write, value))}]"
        case dict():
            return "{" + ", ".join(f"{write(key)} = {write(item)}" for key, item in value.items()) + "}"
        case _:
            raise AssertionError(value)


def entry_of(name: str) -> st.SearchStrategy[tuple[str, dict[str, object]]]:
    return st.tuples(st.just(f"[[{name}]]"), st.dictionaries(st.sampled_from([*KEYS[name], "x"]), VALUES))


@given(st.dictionaries(DAEMON_KEYS, VALUES), st.lists(st.sampled_from(sorted(KEYS)).flatmap(entry_of), max_size=4))
def test_any_structure_is_read_or_refused(
    daemon: dict[str, object], entries: list[tuple[str, dict[str, object]]]
) -> None:
    tables = [("[daemon]", daemon), *entries]
    lines = [[header, *(f"{key} = {write(item)}" for key, item in table.items())] for header, table in tables]
    check("\n".join(line for group in lines for line in group))
