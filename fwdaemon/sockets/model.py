"""What is known of a socket. Plain data."""

from dataclasses import dataclass

from fwdaemon.model import Address, Family, Protocol


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that waits for connections, or for datagrams from anybody.

    It takes what comes in the `families`, to `address`, or to every address of the host where that is `None`. `device`
    is the interface it is bound to. `inode` is how /proc/PID/fd calls it, and `cgroup` the number of the control group
    (version 2) it was opened in, 0 where the kernel does not tell.
    """

    protocol: Protocol
    families: frozenset[Family]
    address: Address | None
    port: int
    device: str | None = None
    inode: int = 0
    cgroup: int = 0
