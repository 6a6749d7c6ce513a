"""What the daemon holds of the machine: descriptors by kind, threads, children. A leak is what is more than before."""

from collections import Counter
from pathlib import Path

from tests.lab.host import Host


def held(host: Host, pid: int) -> Counter[str]:
    """Count what a process holds, by the machine's number `pid`, and all processes of this project on the host."""
    proc = Path("/proc") / str(pid)
    threads = list((proc / "task").iterdir())
    counted = Counter(kind for kind in map(_kind, (proc / "fd").iterdir()) if kind)
    counted["threads"] = len(threads)
    counted["children"] = sum(len(_read(thread / "children").split()) for thread in threads)
    counted["processes"] = int(host.run("pgrep", "--count", "--full", "fwdaemon", check=False).stdout)
    return counted


def _kind(descriptor: Path) -> str:
    """What a descriptor is: `socket`, `pipe`, `anon_inode:inotify` or a file; empty when it has gone meanwhile."""
    try:
        return str(descriptor.readlink()).partition(":[")[0]
    except FileNotFoundError:
        return ""


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def beyond(now: Counter[str], before: Counter[str]) -> list[str]:
    """Say what is more than it was."""
    return [
        f"the daemon holds {count} {kind}, not {before[kind]}" for kind, count in now.items() if count > before[kind]
    ]
