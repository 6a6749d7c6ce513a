"""BIRD for tests: routers and hosts that speak BGP, with the machine's own program, in a network of the lab."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROUTER = """
router id {address};
protocol device {{
}}
protocol kernel kernel4 {{
    ipv4 {{ export all; import none; }};
}}
protocol kernel kernel6 {{
    ipv6 {{ export all; import none; }};
}}
"""
_NEIGHBOUR = """
protocol bgp host{number} {{
    local as 65000;
    neighbor {address} as 65001;
    error wait time 1, 10;
    ipv{family} {{ import all; export none; }};
}}
"""


def router(address: str, *neighbours: str) -> str:
    """Give the configuration of a router that puts what these hosts announce into the kernel."""
    hosts = ((number, neighbour) for number, neighbour in enumerate(neighbours))
    parts = (_NEIGHBOUR.format(number=number, address=host, family=6 if ":" in host else 4) for number, host in hosts)
    return "".join([_ROUTER.format(address=address), *parts])


@contextmanager
def running(namespace: Path, config: str, place: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run it in a network until the block ends; its files lie in `place`, of which `bird.ctl` answers questions."""
    place.mkdir()
    (place / "bird.conf").write_text(config)
    enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={namespace}"]
    files = ["-c", str(place / "bird.conf"), "-s", str(place / "bird.ctl"), "-P", str(place / "bird.pid")]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([*enter, "bird", "-f", *files], stdout=log, stderr=log)  # noqa: S603  own words
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
