"""What the shells make of their completion scripts: real bash, zsh and fish, asked for a word at a time."""

import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.programs import shells
from tests.programs.shells import Shell
from tests.unit.commands import COMMANDS, EVERY_OPTION, PARSER, options_of

# By a beginning that no other has. Each would do something if any shell read it as its own language.
HOSTILE: Final = {
    "sub": "sub$(touch canary)",
    "tick": "tick`touch canary`",
    "semi": "semi;touch canary",
    "pipe": "pipe|touch canary&",
    "out": "out>canary",
    "two": "two  blanks ",
    "single": "single'touch canary'",
    "double": 'double"$(touch canary)"',
    "back": "back\\slash\\",
    "dollar": "dollar$HOME",
    "bang": "bang!!",
    "star": "star*?[a]",
    "brace": "brace{a,b}",
    "colon": "colon:x:y",
    "equals": "equals=x@y",
    "hash": "hash #x",
    "percent": "percent%s%n",
    "tilde": "tilde~root^",
    "umlaut": "umlautäöü",
}
# Names that begin with a sign; nothing can be typed before it.
SIGNS: Final = ("~root", "=ls", "#x", "!!", "$(touch canary)", "%1", "^a", ":a", "@a", "{", "(touch canary)")
LEFT_OUT: Final = ("--config=/tmp/x", "escape\x1b[31m", "tab\tx", "bell\ax")
ADDRESSES: Final = """\
eth0@if7         UP             198.51.100.7/24 2001:db8::7/64
$(touch canary)  UP             203.0.113.9/24
"""


@pytest.fixture(scope="module", params=shells.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    shell: str = request.param
    return shell


@pytest.fixture(scope="module")
def place(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a configuration, and names of domains for each of its URIs, in files."""
    home = tmp_path_factory.mktemp(name)
    (home / "programs").mkdir()
    # It answers a reader only, and only for the URI whose file is there.
    virsh = '#!/bin/sh\n[ "$1 $2 $3 $5 $6 $7" = "--readonly --quiet --connect list --all --name" ] || exit 1\n'
    shells.write_programs(
        home / "programs",
        virsh=f'{virsh}cat "{home}/names/$(echo "$4" | tr / _)"\n',
        ip=f"#!/bin/sh\n[ \"$*\" = '-brief address show scope global' ] && cat <<'END'\n{ADDRESSES}END\n",
    )
    (home / "names").mkdir()
    (home / "test.toml").write_text("""\
[daemon]
# "xen:///system"
libvirt = ["qemu:///session",
           'lxc+unix:///']   # two of them
mark = 1
""")
    _write_names(home, "qemu:___system", ["web1", "shop"])
    _write_names(home, "qemu:___session", [*HOSTILE.values(), *LEFT_OUT, "", "line\n$(touch canary)\nend"])
    _write_names(home, "lxc+unix:___", ["container1"])
    _write_names(home, "xen:___system", ["nobody"])
    return home


def _write_names(home: Path, uri: str, names: list[str]) -> None:
    (home / "names" / uri).write_text("".join(f"{each}\n" for each in [*names, ""]))


@pytest.fixture(scope="module")
def running(name: str, place: Path) -> Iterator[Shell]:
    with ExitStack() as at_end:
        yield at_end.enter_context(shells.start(name, place, place / "programs"))


@pytest.fixture
def shell(running: Shell, place: Path) -> Iterator[Shell]:
    """The module's shell; fails the test in which it ran what it should have offered."""
    yield running
    assert not (place / "canary").exists()


def beginning(word: str, words: list[str]) -> str:
    """The shortest beginning that no other word has."""
    others = [other for other in words if other != word]
    return next((word[:end] for end in range(1, len(word)) if not _begins(word[:end], others)), word)


def _begins(text: str, words: list[str]) -> bool:
    return any(other.startswith(text) for other in words)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(shell: Shell, command: str) -> None:
    assert shell.complete(beginning(command, list(COMMANDS))) == [command, "X"]


@pytest.mark.parametrize("option", options_of(PARSER))
def test_options_without_a_command(shell: Shell, option: str) -> None:
    assert shell.complete(option[:-1]) == [option, "X"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_its_options_and_no_others(shell: Shell, command: str) -> None:
    mine = options_of(COMMANDS[command])
    for option in EVERY_OPTION:
        typed = beginning(option, EVERY_OPTION)
        made = shell.complete(f"{command} {typed}")
        if option in mine:
            assert made in ([command, option, "X"], [command, f"{option}=X"])
        else:
            assert made == [command, f"{typed}X"]


@pytest.mark.parametrize("option", ["--config ", "--config="])
@pytest.mark.parametrize("command", COMMANDS)
def test_configurations(shell: Shell, command: str, option: str) -> None:
    assert shell.complete(f"{command} {option}te") == [command, *f"{option}test.toml".split(), "X"]


def test_a_file_with_a_hostile_name(shell: Shell, place: Path) -> None:
    (place / "a $(touch canary) file").touch()
    assert shell.complete("flush --config a") == ["flush", "--config", "a $(touch canary) file", "X"]


@pytest.mark.parametrize("command", ["check", "import"])
def test_files_of_a_command(shell: Shell, command: str) -> None:
    assert shell.complete(f"{command} te") == [command, "test.toml", "X"]
    assert shell.complete(f"{command} --config test.toml te") == [command, "--config", "test.toml", "test.toml", "X"]


def test_domains_of_the_default_configuration(shell: Shell) -> None:
    assert shell.complete("status we") == ["status", "web1", "X"]
    assert shell.complete("status web1 s") == ["status", "web1", "shop", "X"]
    assert shell.complete("flush we") == ["flush", "weX"]


@pytest.mark.parametrize("option", ["--config test.toml", "--config=test.toml"])
def test_domains_of_another_configuration(shell: Shell, option: str) -> None:
    before = ["status", *shlex.split(option)]
    assert shell.complete(f"status {option} con") == [*before, "container1", "X"]
    assert shell.complete(f"status {option} we") == [*before, "weX"]
    assert shell.complete(f"status {option} no") == [*before, "noX"]


def test_hostile_names_come_through_as_they_are(shell: Shell) -> None:
    before = ["status", "--config", "test.toml"]
    for typed, domain in HOSTILE.items():
        assert shell.complete(f"status --config test.toml {typed}") == [*before, domain, "X"]


def test_a_name_that_cannot_be_offered_is_left_out(shell: Shell) -> None:
    before = ["status", "--config", "test.toml"]
    for typed in ("esc", "tab", "bell"):
        assert shell.complete(f"status --config test.toml {typed}") == [*before, f"{typed}X"]
    assert shell.complete("status --config test.toml --config=") == [*before, "--config=X"]


@pytest.mark.parametrize("sign", SIGNS)
def test_the_only_name_begins_with_a_sign(shell: Shell, place: Path, sign: str) -> None:
    (place / "one.toml").write_text('daemon.libvirt = "test:///one"')
    _write_names(place, "test:___one", [sign])
    assert shell.complete("status --config one.toml ") == ["status", "--config", "one.toml", sign, "X"]


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_name_within_quotes(name: str, shell: Shell, quote: str) -> None:
    if name == "fish":
        pytest.skip("fish inserts what it offers, and quotes, by itself")
    before = ["status", "--config", "test.toml"]
    harmless = "two" if quote == '"' else "sub"
    assert shell.complete(f"status --config test.toml {quote}{harmless}") == [*before, HOSTILE[harmless], "X"]


def test_addresses_of_the_host(name: str, shell: Shell) -> None:
    # zsh takes an unquoted bracket for the beginning of a pattern.
    ipv6 = "\\[2" if name == "zsh" else "[2"
    for typed, address in (("1", "198.51.100.7"), ("203.0.1", "203.0.113.9"), (ipv6, "[2001:db8::7]")):
        assert shell.complete(f"explain {typed}") == ["explain", f"{address}:X"]


def test_no_answer_offers_nothing(shell: Shell, place: Path) -> None:
    (place / "none.toml").write_text('[daemon]\nlibvirt = "qemu:///nobody"\n')
    assert shell.complete("status --config none.toml we") == ["status", "--config", "none.toml", "weX"]
    assert shell.complete("status --config missing.toml we") == ["status", "--config", "missing.toml", "web1", "X"]


def test_no_shell_evaluates_a_file_it_reads(shell: Shell, place: Path) -> None:
    (place / "bad.toml").write_text('libvirt = ["qemu:///$(touch canary)", "qemu+ssh://evil/system", "-c"]\n')
    assert shell.complete("status --config bad.toml we") == ["status", "--config", "bad.toml", "web1", "X"]
