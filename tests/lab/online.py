"""Running programs on a computer's files with this machine's own network: for what is installed from registries."""

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.command import Completed, run
from tests.lab.computer import Computer

# How this machine reaches the registries; another Debian knows nothing of it.
_SETTINGS = ("/etc/pip.conf", "/root/.config/pip/pip.conf", "/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
_APT_SETTINGS = "/etc/apt/apt.conf.d/99lab"
_TOLD = ("PIP_", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Online:
    """A computer whose programs may ask the registries. They see this machine's network, so they must not change it."""

    def __init__(self, computer: Computer) -> None:
        self._enter = ["nsenter", f"--target={computer.init}", "--mount", "--pid", "--uts", "--ipc", "--root", "--wd"]
        told = {name: value for name, value in os.environ.items() if name.startswith(_TOLD)}
        self._environment = {"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **told}

    def run(self, *argv: str, check: bool = True, timeout: float = 600) -> Completed:
        """Run a program; see `tests.lab.command.run`."""
        return run([*self._enter, *argv], check=check, timeout=timeout, env=self._environment)

    def write(self, path: str, content: bytes) -> None:
        """Write a file, with whatever directories it needs."""
        self._feed(content, "sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1"', "sh", path)

    def copy(self, root: Path, names: tuple[str, ...], target: str) -> None:
        """Copy files and directories below `root` into a new directory."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name in names:
                archive.add(root / name, name)
        self.run("mkdir", "-p", target)
        self._feed(packed.getvalue(), "tar", "-x", "-C", target)

    def _feed(self, content: bytes, *argv: str) -> None:
        subprocess.run(  # noqa: S603  the lab chose the words
            [*self._enter, *argv], input=content, env=self._environment, check=True
        )


@contextmanager
def online(computer: Computer) -> Iterator[Online]:
    """Lend a computer this machine's way to the registries; names are not answered there any more afterwards."""
    there = Online(computer)
    for path in _SETTINGS:
        if Path(path).is_file():
            there.write(path, Path(path).read_bytes())
    if shutil.which("apt-config"):
        wanted = ("Acquire::http::Proxy ", "Acquire::https::Proxy ")
        dump = run(["apt-config", "dump"]).stdout.splitlines(keepends=True)
        there.write(_APT_SETTINGS, "".join(line for line in dump if line.startswith(wanted)).encode())
    try:
        yield there
    finally:
        there.write("/etc/resolv.conf", b"")
