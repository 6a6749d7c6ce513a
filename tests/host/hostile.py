"""What tests of hostile guests and names have in common: who is on the stage, and how to see that no one was harmed."""

import json

from tests.lab.daemon import Daemon
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.lxc import LxcGuest

URL, THIEF_URL = f"http://{PUBLIC4}:8000/", f"http://{PUBLIC4}:8001/"
WEB = '[[forward]]\ndomain = "web"\nports = ["8000:80"]\n'
THIEF = '[[forward]]\ndomain = "thief"\nports = ["8001:80"]\n'
GATEWAY4, GATEWAY6, RESERVED4 = "192.168.122.1", "2001:db8:122::1", "192.168.122.77"
METRICS = "http://127.0.0.1:9750/metrics"
LISTEN = '[metrics]\nlisten = "127.0.0.1:9750"\n'
# What a guest calls itself, and its interfaces: a line of ours, codes for a terminal, rules, and too much. No name of
# ours holds this word.
WORD = "hostile"
NAMES = (
    f"{WORD}\nadded web: tcp",
    f"\x1b[2J\x07{WORD}",
    f'"; }} flush ruleset {WORD}',
    f"\\n{WORD}\\",
    f"\u202e\x85{WORD}",
    WORD + "x" * 200,
)


def added(running: Daemon, domain: str) -> list[str]:
    """Lines that say that a domain got something."""
    return [line.text for line in running.log_lines() if line.text.startswith(f"added {domain}")]


def said(host: Host, *words: str) -> str:
    """What a command prints; each line has to be one that a terminal shows as it is."""
    done = host.portfwd(*words, check=False)
    assert done.stderr == ""
    # str.splitlines knows line breaks that no file of ours may have. Rules are indented with tabs, as nft does.
    assert all(line.lstrip("\t").isprintable() for line in done.stdout.split("\n")), done.stdout
    return done.stdout


def is_sound(host: Host, running: Daemon) -> None:
    """See that the daemon runs on, says nothing but lines of text, and gives its status."""
    assert running.process.running
    lines = [line.text for line in running.log_lines()]
    assert not [line for line in lines if not line.isprintable() or "Traceback" in line]
    json.loads(said(host, "status", "--json"))


def everything_told(host: Host, running: Daemon) -> str:
    """All that the daemon reports to users and programs, and what it wrote into the kernel; it must LISTEN for that."""
    is_sound(host, running)
    commands = (["status"], ["status", "--json"], ["plan"], ["rules"], ["explain", f"{PUBLIC4}:8000"])
    metrics = host.place.fetch(METRICS)
    assert metrics.answered
    return "\n".join(
        [running.process.text(), metrics.text, host.own_rules(), *(said(host, *words) for words in commands)]
    )


def leave_it_to_the_daemon(host: Host, guest: LxcGuest) -> None:
    """Have the kernels of both not ask for long whether an entry is still right, which they do after five seconds.

    The host's would drop a wrong entry then, and a guest that asks shows where its own address is.
    """
    for there, device in ((host, host.libvirt.bridge("default")), (guest, "eth0")):
        for family in ("ipv4", "ipv6"):
            there.run("sysctl", "-w", f"net.{family}.neigh.{device}.delay_first_probe_time=600")


def as_web_or_nothing(host: Host) -> bool:
    """Whether the port of `web` leads to it; never does it lead to another guest."""
    answer = host.outside.fetch(URL)
    assert not answer.answered or answer.text == f"web {CLIENT4}"
    return answer.answered
