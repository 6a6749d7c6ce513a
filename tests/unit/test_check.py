"""What `kvm-portfwd check` says of a configuration that is right."""

from functools import partial
from pathlib import Path

import pytest

from fwdaemon import config as configuration
from fwdaemon.cli import main
from fwdaemon.commands.check import kept_here
from fwdaemon.core.admission import Need
from fwdaemon.core.conflicts import Entry, Holder, ListenerConflict, Order, RuleConflict
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.types import PortRange, Protocol
from fwdaemon.errors import ConfigError
from fwdaemon.netfilter import Netfilter
from tests.unit.memory_backend import Kernel, MemoryBackend
from tests.unit.test_config_support import forward, nat, route

ON = "[daemon]\nlocalhost = true\n"
ANSWERS = (
    "localhost = true: forwards of TCP and UDP that listen on every address answer on 127.0.0.1 and ::1 of this"
    " host too"
)
NOTHING = (
    "localhost = true, but nothing answers on 127.0.0.1 or ::1: no forward of TCP or UDP is there for every address,"
    " every interface and one of these two as a source"
)


CONFLICTS = "fwdaemon.commands.check.conflicts_if_running"


@pytest.fixture(autouse=True)
def quiet_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does, of which a command line says nothing."""
    monkeypatch.setattr(CONFLICTS, lambda *_: ([], None))
    rules = partial(Netfilter, among=among())
    monkeypatch.setattr("fwdaemon.commands.check.Netfilter", lambda runner, choice, _: rules(runner, choice))


def among(*lacking: Need) -> list[MemoryBackend]:
    return [MemoryBackend(Kernel(lacking=frozenset(lacking)))]


def check(path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    path.write_text(text)
    assert main(["check", str(path)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return [line.replace(str(path), "FILE") for line in said.out.splitlines()]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", "nothing is forwarded yet"),
        (forward(), "1 forward"),
        (forward(ports='["80", "53/tcp+udp"]'), "3 forwards"),
        (nat(), "1 address 1:1"),
        (nat() + nat("198.51.100.9"), "2 addresses 1:1"),
        (route(), "1 route"),
        (forward() + nat() + route('["203.0.113.64/29", "2001:db8:1::/64"]'), "1 forward, 1 address 1:1, 2 routes"),
    ],
)
def test_counts_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, count: str) -> None:
    assert check(tmp_path / "x.toml", text, capsys) == [f"FILE: fine; {count}"]


def test_what_the_kernel_lacks_is_refused_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    limited = forward() + 'rate = "3/minute"\n' + forward().replace("80", "81") + "max_open = 3\n"
    config = configuration.parse({Path("x.toml"): limited + nat() + 'deny = ["192.0.2.1"]\n'})
    assert kept_here(config, among()) is config
    with pytest.raises(ConfigError) as refused:
        kept_here(config, among(Need.RATE, Need.OPEN))
    told = [(problem.line, problem.text) for problem in refused.value.problems]
    remedy = "load it with `modprobe memory`, or install a kernel that has it, such as Debian's linux-image-amd64"
    assert [text for _, text in told] == [
        f"{key} needs {key} of nftables, which this kernel refuses: ; {remedy}" for key in ("rate", "max_open")
    ]
    assert [limited.splitlines()[line - 1] for line, _ in told] == ["[[forward]]", "[[forward]]"]


def test_says_how_many_domains_a_pattern_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Libvirt's test driver has one domain, `test`, which runs."""
    entries = "".join(forward().replace("web1", pattern) for pattern in ("t?st", "T*", "*"))
    said = check(tmp_path / "x.toml", f'[daemon]\nlibvirt = "test:///default"\n{entries}', capsys)
    assert said[1:] == [
        '"t?st" fits 1 domain now, 1 running',
        '"T*" fits 0 domains now, 0 running',
        '"*" fits 1 domain now, 1 running',
    ]


def test_a_libvirt_that_does_not_answer_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '[daemon]\nlibvirt = "qemu:///system?socket=/no/such/socket"\n' + forward().replace("web1", "ci-*")
    assert check(tmp_path / "x.toml", text, capsys) == ["FILE: fine; 1 forward"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (forward(), ANSWERS),
        (forward(ports='["198.51.100.7:80", "81"]'), ANSWERS),
        (forward('listen = "198.51.100.7"') + forward(), ANSWERS),
        (forward('sources = ["203.0.113.0/24", "127.0.0.0/8"]'), ANSWERS),
        (forward('sources = ["0.0.0.0/0", "::/0"]'), ANSWERS),
        ("", NOTHING),
        (nat() + route(), NOTHING),
        (forward('listen = "198.51.100.7"'), NOTHING),
        (forward(ports='["198.51.100.7:80"]'), NOTHING),
        (forward('interface = "eth0"'), NOTHING),
        (forward('address = "2001:db8::1"'), ANSWERS),
        (forward('sources = "::1"'), ANSWERS),
        (forward(ports='["80/sctp"]'), NOTHING),
        (forward('sources = "2001:db8::/32"'), NOTHING),
        (forward('sources = "203.0.113.0/24"'), NOTHING),
        (forward("max_open = 3"), f"{ANSWERS}, where rate and max_open limit no one"),
    ],
)
def test_says_what_localhost_comes_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    assert check(tmp_path / "x.toml", ON + text, capsys)[1:] == [sentence]


@pytest.mark.parametrize(("forgets", "warnings"), [(True, 1), (False, 0)])
def test_warns_that_max_open_counts_anew_where_the_rule_system_does_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, forgets: bool, warnings: int
) -> None:
    backend = MemoryBackend(Kernel())
    backend.forgets = forgets
    monkeypatch.setattr("fwdaemon.commands.check.Netfilter", lambda runner, *_: Netfilter(runner, among=[backend]))
    path = tmp_path / "x.toml"
    for text, wanted in ((forward("max_open = 3"), warnings), (forward('rate = "3/minute"'), 0)):
        path.write_text(text)
        assert main(["check", str(path)]) == 0
        said = capsys.readouterr().err.splitlines()
        assert [line.partition(" in ")[0] for line in said] == ["warning: max_open counts anew"] * wanted


def test_warns_of_conflicts_with_this_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        Entry("web1", None, Protocol.TCP, None, PortRange(port, port), None, is_restricted=False) for port in (22, 80)
    ]
    ssh = ListenerConflict(entries[0], (Holder("sshd", Protocol.TCP, 22),), ())
    docker = RuleConflict(entries[1], "Docker", Order.OURS, "ip nat DOCKER", ())
    monkeypatch.setattr(
        CONFLICTS, lambda *_: ([ssh, docker], Fault(FaultKind.RULES_UNCHECKED, detail="not to this user"))
    )
    path = tmp_path / "x.toml"
    path.write_text(forward())
    assert main(["check", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{path}: fine; 1 forward\n"
    assert said.err.splitlines() == [
        "warning: port 22/tcp: sshd of the host listens there; connections from outside will reach web1 instead",
        (
            "warning: port 80/tcp: Docker forwards it too (in ip nat DOCKER), but our rule comes first, so connections"
            " from outside reach web1"
        ),
        "hint: not checked against the rules of other tools: not to this user",
    ]
