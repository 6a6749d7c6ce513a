"""How the daemon is, in one line for `systemctl status`. Pure; `kvm-portfwd status` tells all of it."""

from collections.abc import Iterator, Sequence
from typing import Final

from fwdaemon.desired import Desired
from fwdaemon.naming import printable
from fwdaemon.status import Header

_RULES_IN: Final = {"nftables": "nftables", "iptables": "legacy iptables tables"}


def summary(desired: Desired | None, header: Header, silent: Sequence[str]) -> str:
    """Say it; `desired` is what the kernel was last made to hold, and `silent` are the URIs that do not answer."""
    return printable("; ".join(_parts(desired, header, silent)))


def _parts(desired: Desired | None, header: Header, silent: Sequence[str]) -> Iterator[str]:
    if desired is not None:
        yield _openings(desired)
    if header.rules is not None:
        yield _RULES_IN.get(header.rules.backend, header.rules.backend)
    yield f"no answer from libvirt at {', '.join(silent)}" if silent else "libvirt answers"
    if header.configuration.refused is not None:
        yield "a newer configuration is refused"
    if header.look is not None and header.look.error:
        yield f"the last look failed: {header.look.error}"
    elif header.problems:
        yield _counted(len(header.problems), "problem")


def _openings(desired: Desired) -> str:
    kinds = (desired.forwards, "forward"), (desired.nats, "1:1 address"), (desired.routes, "route")
    live = [_counted(len(found), kind) for found, kind in kinds if found] or ["nothing forwarded"]
    return ", ".join([*live, *([f"{len(desired.waiting)} waiting"] if desired.waiting else [])])


def _counted(number: int, thing: str) -> str:
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number} {thing}{ending}"
