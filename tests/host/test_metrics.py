"""What a Prometheus learns of a real daemon, by HTTP and from its file."""

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.host.conftest import HEAD, Scene, each_backend, each_libvirt, entry, filled
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

pytestmark = pytest.mark.turns_on(LibvirtFirewall.NFTABLES)

DIRECTORY = "/run/node-exporter"
TEXTFILE = f"{DIRECTORY}/kvm_portfwd.prom"
LISTENER = "http://127.0.0.1:9750/metrics"
RESYNC = HEAD + 'resync = "1s"\n'
BOTH = RESYNC + f'[metrics]\ntextfile = "{TEXTFILE}"\nlisten = "127.0.0.1:9750"\n'
WEB = entry("web", "8000:80 9000", "WEB4")
URL = f"http://{PUBLIC4}:8000/"
WITHOUT_LIBRARY = """
import sys
sys.modules["prometheus_client"] = None
from fwdaemon.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def directory(host: Host) -> Iterator[str]:
    """Where a node exporter would look."""
    host.run("mkdir", DIRECTORY)
    yield DIRECTORY
    host.run("rm", "-r", DIRECTORY)


def value(text: str, name: str, **labels: str) -> float | None:
    """Add up the samples that have these labels; `None` where there are none."""
    found = [
        float(sample.value)
        for metric in text_string_to_metric_families(text + "\n")
        for sample in metric.samples
        if sample.name == f"kvm_portfwd_{name}" and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None


def served(scene: Scene) -> str:
    answer = scene.host.place.fetch(LISTENER)
    return answer.text if answer.answered else ""


def written(scene: Scene) -> str:
    return scene.host.run("cat", TEXTFILE, check=False).stdout


def told(scene: Scene, expected: float, name: str, **labels: str) -> None:
    """Wait until both say so."""
    served_is(scene, expected, name, **labels)
    wait_until(lambda: value(written(scene), name, **labels) == expected, f"the file has {name} {labels}: {expected}")


def served_is(scene: Scene, expected: float, name: str, **labels: str) -> None:
    """Wait until the listener says so."""
    wait_until(lambda: value(served(scene), name, **labels) == expected, f"{name} {labels}: {expected}")


@pytest.mark.in_turn
@each_backend
@pytest.mark.usefixtures("directory")
def test_what_happens_is_measured(scene: Scene) -> None:
    scene.web.serve_tcp(9000)
    daemon = scene.daemon(WEB, BOTH)
    told(scene, 2, "openings", kind="forward", state="active")
    assert scene.host.run("stat", "--format=%a", TEXTFILE).stdout == "644\n"
    assert value(served(scene), "libvirt_connected", uri="lxc:///system") == 1

    for _ in range(5):
        assert scene.host.outside.fetch(URL).text == f"web {CLIENT4}"
    conversation = scene.converse(9000)
    told(scene, 5, "connections_total", domain="web", ports="8000", protocol="tcp", address="*")
    served_is(scene, 1, "open_connections", domain="web", ports="9000")

    assert value(served(scene), "restores_total") == 0
    scene.wipe()
    told(scene, 1, "restores_total")
    cause = "iptables-legacy" if scene.host.flavour.firewall is LibvirtFirewall.LEGACY else "nft"
    assert value(served(scene), "restores_total", cause=cause) == 1
    assert conversation.goes_on()

    scene.web.stop()
    told(scene, 2, "openings", kind="forward", state="waiting")
    found = served(scene)
    assert value(found, "openings", state="active") == 0
    assert value(found, "connections_total") is None
    # Connections end beside the reconcile, and the next one reports it.
    wait_until(lambda: bool(value(served(scene), "ended_connections_total")), "ended connections are counted")

    assert value(found, "config_last_reload_successful") == 1
    daemon.reload_with(BOTH + filled(WEB) + "[nonsense]\n")
    told(scene, 0, "config_last_reload_successful")
    served_is(scene, 1, "config_problems")
    served_is(scene, 2, "openings", state="waiting")
    daemon.reload_with(BOTH + filled(WEB))
    told(scene, 1, "config_last_reload_successful")
    served_is(scene, 0, "config_problems")

    found = served(scene)
    assert value(found, "reconciles_total") == value(found, "reconcile_duration_seconds_count")
    assert value(found, "reconciles_total", result="failed") == 0
    assert daemon.terminate() == 0
    assert scene.host.run("ls", "-A", DIRECTORY).stdout == ""
    assert not scene.host.place.fetch(LISTENER).answered


@pytest.mark.in_turn
@each_libvirt
@pytest.mark.usefixtures("directory")
def test_a_reload_turns_it_on_and_off(shared_scene: Scene) -> None:
    scene = shared_scene
    daemon = scene.daemon(WEB, RESYNC)
    assert not scene.host.place.fetch(LISTENER).answered
    daemon.reload_with(BOTH + filled(WEB))
    # What had been counted before counts.
    told(scene, 2, "openings", kind="forward", state="active")
    assert (value(written(scene), "reconciles_total", result="changed") or 0) >= 1
    daemon.reload_with(RESYNC + filled(WEB))
    wait_until(lambda: not scene.host.place.fetch(LISTENER).answered, "nobody listens")
    assert scene.host.run("ls", "-A", DIRECTORY).stdout == ""


@pytest.mark.in_turn
@each_libvirt
@pytest.mark.usefixtures("directory")
def test_a_read_only_directory_is_a_warning_once(shared_scene: Scene) -> None:
    scene = shared_scene
    scene.host.run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", DIRECTORY)
    try:
        daemon = scene.daemon(WEB, BOTH)
        line = daemon.wait_log(f"^warning: no metrics in {TEXTFILE}: Read-only file system; ")
        assert f'"ReadWritePaths=-{DIRECTORY}"' in line.text
        # After further resyncs it was not said again, and nothing else suffers.
        written_at = value(served(scene), "metrics_timestamp_seconds") or 0
        wait_until(lambda: (value(served(scene), "metrics_timestamp_seconds") or 0) > written_at + 2, "time passes")
        assert daemon.process.text().count("no metrics in") == 1
        scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
        scene.host.run("mount", "-o", "remount,rw", DIRECTORY)
        wait_until(lambda: value(written(scene), "openings", state="active") == 2, "the file is written after all")
        daemon.terminate()
    finally:
        scene.host.run("umount", DIRECTORY)


@pytest.mark.in_turn
@each_libvirt
def test_without_the_library_the_daemon_tells_how_to_get_it(shared_scene: Scene) -> None:
    host = shared_scene.host
    host.write("/etc/portfwd.toml", BOTH + filled(WEB))
    # With a last good configuration the daemon would go on without metrics; this is a first start.
    host.run("rm", "--recursive", "--force", "/var/lib/kvm-portfwd")
    for command in ("check", "run"):
        done = host.run(host.python, "-c", WITHOUT_LIBRARY, command, check=False)
        assert (done.returncode, done.stdout) == (78, "")
        assert done.stderr.startswith("/etc/portfwd.toml:4: metrics: needs the Python library prometheus-client")
        assert "apt install python3-prometheus-client" in done.stderr
