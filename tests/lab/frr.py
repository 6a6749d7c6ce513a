"""FRR for tests: a host that speaks BGP, with the machine's own programs, in a network of the lab."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp

from tests.lab.place import wait_until

_PROGRAMS = Path("/usr/lib/frr")


@contextmanager
def running(namespace: Path, config: str) -> Iterator[None]:
    """Run zebra and bgpd in a network until the block ends."""
    enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={namespace}"]
    with ExitStack() as at_end:
        # They run as a user of their own, which may enter no directory of a test's.
        place = Path(mkdtemp(prefix="lab-frr-", dir="/dev/shm"))
        at_end.callback(shutil.rmtree, place)
        shutil.chown(place, "frr", "frr")
        (place / "frr.conf").write_text(config)
        log = at_end.enter_context((place / "log").open("wb"))
        for name in ("zebra", "bgpd"):
            files = ["-i", f"{place}/{name}.pid", "-z", f"{place}/zserv", "--vty_socket", str(place), "-P", "0"]
            process = subprocess.Popen([*enter, str(_PROGRAMS / name), *files], stdout=log, stderr=log)  # noqa: S603
            at_end.callback(process.wait)
            at_end.callback(process.terminate)
            wait_until((place / f"{name}.vty").exists, (place / "log").read_text)
        vtysh = ["vtysh", "--vty_socket", str(place), "--config_dir", str(place), "-b"]
        subprocess.run(vtysh, check=True, stdout=log, stderr=log)  # noqa: S603  own words
        yield
