"""Who waits for what on a host, as the real kernel lists it, and who that is."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from fwdaemon.core.inventory import Domain, Inventory, Metadata, Occupied
from fwdaemon.core.types import Family, Listener, Protocol
from fwdaemon.errors import KernelError
from fwdaemon.kernel.listeners import Holders, listeners, ports_in_use, with_occupied
from tests.lab.command import run
from tests.unit.forwards import address


def listening(at_end: ExitStack, kind: int, endpoint: tuple[str, int], *options: tuple[int, int, int | bytes]) -> int:
    """Have a socket wait, and give its inode."""
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    opened = at_end.enter_context(socket.socket(family, kind))
    for level, name, value in options:
        opened.setsockopt(level, name, value)
    opened.bind(endpoint)
    if kind == socket.SOCK_STREAM:
        opened.listen()
    return os.fstat(opened.fileno()).st_ino


@pytest.mark.usefixtures("namespace")
def test_the_kernel_tells_who_waits_for_what(at_end: ExitStack) -> None:
    run(["ip", "link", "set", "lo", "up"])
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    only_six = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    both, four, six = frozenset(Family), frozenset({Family.IPV4}), frozenset({Family.IPV6})
    expected = {
        Listener(Protocol.TCP, four, None, 22, None, listening(at_end, stream, ("0.0.0.0", 22))),  # noqa: S104  a namespace
        Listener(Protocol.TCP, six, None, 22, None, listening(at_end, stream, ("::", 22), only_six)),
        Listener(Protocol.TCP, both, None, 23, None, listening(at_end, stream, ("::", 23))),
        Listener(Protocol.TCP, six, address("::1"), 24, None, listening(at_end, stream, ("::1", 24))),
        Listener(
            Protocol.TCP, four, address("127.0.0.1"), 25, None, listening(at_end, stream, ("::ffff:127.0.0.1", 25))
        ),
        Listener(Protocol.UDP, four, address("127.0.0.1"), 53, None, listening(at_end, datagram, ("127.0.0.1", 53))),
        Listener(
            Protocol.UDP,
            six,
            None,
            67,
            "lo",
            listening(at_end, datagram, ("::", 67), only_six, (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")),
        ),
    }
    listening(at_end, datagram, ("127.0.0.1", 9))
    client = at_end.enter_context(socket.create_connection(("127.0.0.1", 25)))
    with socket.socket(socket.AF_INET, datagram) as fixed:
        fixed.connect(("127.0.0.1", 53))
        found = {replace(item, cgroup=0) for item in listeners()}
    assert client.fileno() >= 0
    assert {item for item in found if item.port != 9} == expected


@pytest.mark.usefixtures("namespace")
def test_what_the_host_waits_on_is_its_own_but_for_loopback_and_the_ports_of_clients(at_end: ExitStack) -> None:
    run(["ip", "link", "set", "lo", "up"])
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    for port in (22, 40000):
        listening(at_end, stream, ("0.0.0.0", port))  # noqa: S104  a namespace
    for port in (53, 32767, 32768, 60999, 61000):
        listening(at_end, datagram, ("0.0.0.0", port))  # noqa: S104  a namespace
    on_loopback = (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    listening(at_end, datagram, ("0.0.0.0", 67), on_loopback)  # noqa: S104  a namespace
    listening(at_end, stream, ("127.0.0.1", 25))
    listening(at_end, stream, ("::1", 25))
    four = frozenset({Family.IPV4})
    nobody = Inventory((Domain("web", UUID(int=1), running=True),), (), ())
    assert not with_occupied(nobody).occupied
    asking = replace(nobody, domains=(Domain("web", UUID(int=1), running=True, metadata=Metadata(())),))
    of_processes = {
        *(Occupied(Protocol.TCP, None, port, four) for port in (22, 40000)),
        *(Occupied(Protocol.UDP, None, port, four) for port in (53, 32767, 61000)),
    }
    assert set(with_occupied(asking).occupied or ()) == of_processes
    # None of them is assigned; those that are passing by may be claimed.
    assert set(ports_in_use() or ()) == of_processes | {
        *(Occupied(Protocol.UDP, None, port, four, passing=True) for port in (32768, 60999)),
        Occupied(Protocol.UDP, None, 67, four, "lo", passing=True),
        Occupied(Protocol.TCP, address("127.0.0.1"), 25, four, passing=True),
        Occupied(Protocol.TCP, address("::1"), 25, frozenset({Family.IPV6}), passing=True),
    }


def test_that_the_kernel_does_not_tell_is_unknown_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def silent() -> list[Listener]:
        raise KernelError("the kernel does not report which sockets listen: no such thing")

    asking = Inventory((Domain("web", UUID(int=1), running=True, metadata=Metadata(())),), (), ())
    for _ in range(2):
        assert with_occupied(asking, silent).occupied is None
        assert ports_in_use(silent) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("domains get no port that they do not have yet: the kernel does not report")
    assert with_occupied(asking, list).occupied == frozenset()
    assert ports_in_use(list) == frozenset()


@pytest.mark.usefixtures("namespace")
def test_a_socket_is_called_after_its_process(at_end: ExitStack) -> None:
    inode = listening(at_end, socket.SOCK_STREAM, ("127.0.0.1", 22))
    holders = Holders()
    own = f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
    assert holders.name(listeners()) == {inode: own}
    at_end.close()
    assert holders.name(listeners()) == {}


@pytest.fixture
def unit(lab: None) -> Iterator[Path]:
    """A control group such as systemd makes for a service."""
    del lab
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(where) for _, where, kind, *_ in mounts if kind == "cgroup2"]
    if not roots:
        pytest.skip("there are no control groups of version 2 here")
    group = roots[0] / f"kvm-portfwd-{os.getpid()}.service"
    group.mkdir()
    yield group
    group.rmdir()


LISTEN = """
import pathlib, socket, sys
pathlib.Path(sys.argv[1], "cgroup.procs").write_text("0")
opened = socket.create_server(("127.0.0.1", 22))
print("ready", flush=True)
sys.stdin.read()
"""
NAME = """
import json
from fwdaemon.kernel.listeners import Holders
from fwdaemon.kernel.listeners import listeners
found = listeners()
names = Holders().name(found)
print(json.dumps([names.get(item.inode) for item in found]))
"""


@pytest.mark.usefixtures("namespace")
def test_the_service_which_may_not_look_into_processes_tells_the_unit(unit: Path) -> None:
    # As in the unit: root, with no power but those over the network.
    service = ["setpriv", "--bounding-set=-all,+net_admin,+net_raw", sys.executable, "-c", NAME]
    server = subprocess.Popen(  # noqa: S603  every word is ours
        [sys.executable, "-c", LISTEN, str(unit)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        assert json.loads(run(service).stdout) == [unit.name]
