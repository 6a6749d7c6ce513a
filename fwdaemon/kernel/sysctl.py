"""The kernel's settings below /proc/sys; the only module that writes them.

A setting is called what sysctl(8) calls it, `net.ipv4.ip_forward`; a dot in an interface's name is written as a slash
there, `net.ipv4.conf.eth0/100.route_localnet`. Network settings are those of this thread's network namespace.
"""

from pathlib import Path
from typing import Final

from fwdaemon.core.text import shown
from fwdaemon.core.types import Family
from fwdaemon.errors import KernelError

# Whether the host forwards packets.
FORWARDING: Final = {Family.IPV4: "net.ipv4.ip_forward", Family.IPV6: "net.ipv6.conf.all.forwarding"}
ROOT: Final = Path("/proc/sys")
_SWAPPED: Final = str.maketrans("./", "/.")
# Directories beside those of the interfaces that are about all of them; the kernel gives no interface such a name.
_NO_INTERFACES: Final = ("all", "default")


def of_interface(family: Family, interface: str, setting: str) -> str:
    """Name a setting of one interface.

    Raises:
        KernelError: nothing of this name can be an interface with settings of its own.

    """
    if interface in ("", ".", "..", *_NO_INTERFACES) or "/" in interface or "\0" in interface:
        raise KernelError(f"'{shown(interface)}' is no interface with settings of its own")
    return f"net.ipv{family}.conf.{interface.translate(_SWAPPED)}.{setting}"


def read(name: str, root: Path = ROOT) -> str:
    """Give the value of a setting, or nothing if there is no such setting."""
    try:
        return _path(name, root).read_text().strip()
    except OSError:
        return ""


def write(name: str, value: str, root: Path = ROOT) -> None:
    """Change a setting.

    Raises:
        KernelError: it could not be written.

    """
    try:
        _path(name, root).write_text(f"{value}\n")
    except OSError as error:
        raise KernelError(f"cannot set {shown(name)} to {value}: {error.strerror}") from error


def _path(name: str, root: Path) -> Path:
    return root / name.translate(_SWAPPED)
