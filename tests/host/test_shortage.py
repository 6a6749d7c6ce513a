"""A host that is short of threads or of descriptors: that is reported once, and all works again when there is room."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.host.conftest import HEAD, Scene, each_backend, entry, filled
from tests.lab.daemon import Daemon
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until

URL = f"http://{PUBLIC4}:8000/"
LISTENER = "http://127.0.0.1:9750/metrics"
CONFIG = HEAD + '[metrics]\nlisten = "127.0.0.1:9750"\n' + filled(entry("web", "8000:80", "WEB4"))
GROUP = "$([ -d /sys/fs/cgroup/pids ] && echo /sys/fs/cgroup/pids || echo /sys/fs/cgroup)/short"
# Less than any daemon has open, so none more can be had.
FEW = 10
ASKED = 10


@pytest.fixture
def scene(mended_scene: Scene) -> Scene:
    """The guests of the module, which are put back after each test."""
    return mended_scene


@contextmanager
def no_more_threads(host: Host, daemon: Daemon) -> Iterator[None]:
    """Let the daemon and its helpers start no thread and no process."""
    # One that was only just started is another program still.
    wait_until(lambda: len(host.daemons()) == 1, "the daemon is there")
    (pid,) = host.daemons()
    host.run("sh", "-c", f"mkdir -p {GROUP} && echo 1 >{GROUP}/pids.max && echo {pid} >{GROUP}/cgroup.procs")
    try:
        yield
    finally:
        host.run("sh", "-c", f"echo max >{GROUP}/pids.max")
    assert daemon.process.running


@contextmanager
def no_more_descriptors(host: Host, daemon: Daemon) -> Iterator[None]:
    """Let the daemon open nothing."""
    pid = str(host.daemons()[0])
    before = host.run("prlimit", "--nofile", "--raw", "--noheadings", "--output=SOFT", "--pid", pid).stdout.strip()
    host.run("prlimit", f"--nofile={FEW}:", "--pid", pid)
    try:
        yield
    finally:
        host.run("prlimit", f"--nofile={before}:", "--pid", pid)
    assert daemon.process.running


def nothing_is_told_again_and_again(daemon: Daemon) -> None:
    told = Counter(line.text for line in daemon.log_lines())
    assert "Traceback" not in daemon.process.text()
    assert [text for text, times in told.items() if times > 2] == []


def everything_serves(scene: Scene, daemon: Daemon) -> None:
    """Forwards, events, healing, status and metrics."""
    host = scene.host
    scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")
    wait_until(lambda: host.place.fetch(LISTENER).answered, "metrics are served", timeout=60)
    wait_until(
        lambda: "web" in host.portfwd("status", check=False).stdout,
        "the status tells of it",
        timeout=60,
    )
    scene.wipe()
    daemon.wait_log("^restored web: tcp", timeout=60)
    scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")
    scene.web.stop()
    daemon.wait_log("^removed web: tcp", timeout=60)
    scene.web.start()
    scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")


@each_backend
def test_a_daemon_that_has_no_threads_at_its_start_serves_once_it_has(scene: Scene) -> None:
    host = scene.host
    host.write("/etc/portfwd.toml", CONFIG)
    daemon = host.daemon(CONFIG, wait=False)
    with no_more_threads(host, daemon):
        daemon.wait_ready(60)
    everything_serves(scene, daemon)
    nothing_is_told_again_and_again(daemon)
    daemon.terminate()
    host.portfwd("flush")


@each_backend
def test_a_daemon_that_may_open_nothing_tells_it_once_and_serves_once_it_may(scene: Scene) -> None:
    host = scene.host
    daemon = scene.start(CONFIG)
    scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")
    with no_more_descriptors(host, daemon):
        scene.wipe()
        for _ in range(ASKED):
            host.place.fetch(LISTENER, timeout=0.5)
        daemon.wait_log("Too many open files", timeout=60)
    everything_serves(scene, daemon)
    nothing_is_told_again_and_again(daemon)


@each_backend
def test_a_daemon_that_may_start_no_process_serves_once_it_may(scene: Scene) -> None:
    host = scene.host
    daemon = scene.start(CONFIG)
    scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")
    with no_more_threads(host, daemon):
        scene.wipe()
        for _ in range(ASKED):
            host.place.fetch(LISTENER, timeout=0.5)
    everything_serves(scene, daemon)
    nothing_is_told_again_and_again(daemon)
