"""Configurations to be confirmed, another label, files of sets, and bans: done to the host, and to the model of it."""

import json

from tests.chaos.admission import BROKEN, FILE, LISTS, list_text
from tests.chaos.stage import STATE, Stage
from tests.lab.host import Host
from tests.lab.place import wait_until

_CONFIG = "/etc/portfwd.toml"
_OTHER_LABEL = 26
# The least that may be asked for, and more than any test takes.
_SOON, _LATE = "2s", "1h"
# By then, the daemon has looked at the file of a set.
_REFUSED_WITHIN_S = 30.0


def portfwd(host: Host, *words: str) -> str:
    """Run a command of the program under test."""
    return host.run(host.python, "-m", "fwdaemon", *words).stdout


class Reloading:
    """Does it on one stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._host, self._world = stage, stage.host, stage.world

    def reload(self, outcome: str, *names: str) -> None:
        """Load other entries to be confirmed, and confirm them, or not; what comes back is written down again."""
        newer = self._world.config(entries=names)
        self._host.write(_CONFIG, newer)
        portfwd(self._host, "reload", "--confirm", _LATE if outcome == "confirmed" else _SOON)
        if outcome == "confirmed":
            portfwd(self._host, "confirm")
            self._world.entries = names
            return
        if outcome == "killed":
            self._stage.kill_daemon()
            wait_until(lambda: self._record()["until"] < self._now(), "the time is over")
            self._stage.start_daemon(newer)
        wait_until(lambda: bool(self._record()["over"]), "the configuration before is back", timeout=30)
        self._host.write(_CONFIG, self._world.config())

    def _record(self) -> dict[str, float]:
        found: dict[str, float] = json.loads(self._host.run("cat", f"{STATE}/unconfirmed.json").stdout)
        return found

    def _now(self) -> float:
        return float(self._host.run("date", "+%s").stdout)

    def relabel(self) -> None:
        """Have connections carry another label, and at once the one of before again."""
        before = self._world.config()
        for text in (before.replace("[daemon]\n", f"[daemon]\nlabel = {_OTHER_LABEL}\n"), before):
            self._host.write(_CONFIG, text)
            portfwd(self._host, "reload")

    def set_file(self, name: str) -> None:
        """Replace the file of a set; of one that is wrong, wait until the daemon says so: nothing else follows."""
        if name in LISTS:
            self._stage.write_list(list_text(name))
            self._world.listed, self._world.misread = name, False
            return
        text = BROKEN[name]
        if text is None:
            self._host.run("rm", "-f", FILE)
        else:
            self._stage.write_list(text)
        self._world.misread = True
        wait_until(self._is_refused, "the daemon refuses the file of a set", timeout=_REFUSED_WITHIN_S)

    def _is_refused(self) -> bool:
        return FILE in json.dumps(json.loads(portfwd(self._host, "status", "--json"))["problems"])

    def ban(self, address: str) -> None:
        """Have another program ban someone."""
        self._stage.ban("add", address)

    def unban(self, address: str) -> None:
        """Have it let someone in again, or everyone."""
        self._stage.ban("flush" if address == "all" else "delete", address)
