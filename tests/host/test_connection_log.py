"""Connections of an entry with `log` are logged by the daemon, from their begin to their end."""

import re
from functools import partial

import pytest

from tests.host.conftest import HEAD, Scene, entry, filled
from tests.lab.host import CLIENT4, PUBLIC4
from tests.lab.place import wait_until

URL = f"http://{PUBLIC4}:8000/"
QUIET = HEAD + filled(entry("web", "8000:80", "WEB4"))
WHERE = re.escape(f"-> {PUBLIC4}:8000 -> 192.168.122.10:80")


@pytest.mark.in_turn
def test_a_reload_begins_and_ends_the_log(shared_scene: Scene) -> None:
    host = shared_scene.host
    daemon = shared_scene.start(QUIET)
    wait_until(lambda: host.outside.fetch(URL).answered, "the forward works")

    def is_told(pattern: str) -> bool:
        """Whether a connection that begins now, or one before, is logged."""
        assert host.outside.fetch(URL).answered
        return any(re.search(pattern, line.text) for line in daemon.log_lines())

    daemon.reload_with(QUIET + "log = true\n")
    wait_until(partial(is_told, rf"^connected web: tcp {re.escape(CLIENT4)}:\d+ {WHERE}$"), "the log has begun")
    daemon.reload_with(QUIET + 'log = true\nlog_anonymize = "/16"\n')
    wait_until(partial(is_told, rf"^connected web: tcp 198\.51\.0\.0/16 {WHERE}$"), "addresses are cut")
    daemon.reload_with(HEAD)
    daemon.wait_log(rf"^disconnected web: tcp {re.escape(CLIENT4)}:\d+ {WHERE} \(\d+\.\d s, ")
    assert not [line for line in daemon.log_lines() if "bug" in line.text]
