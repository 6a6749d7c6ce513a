"""The log of connections, line by line, of forwards that ask for it, and how many lines there may be."""

import logging
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from fwdaemon.audit.journal import MESSAGE_IDS
from fwdaemon.core.exposures import LoggedConnection
from fwdaemon.core.text import shown
from fwdaemon.core.types import show_endpoint

_log = logging.getLogger("fwdaemon.audit")

_UNKNOWN_SIZE: Final = "bytes are not counted (net.netfilter.nf_conntrack_acct)"


def connection(logged: LoggedConnection) -> None:
    """Say that a connection began, or that it ended."""
    action = "disconnected" if logged.ended else "connected"
    protocol, client = logged.protocol, _client(logged)
    listen, target = (show_endpoint(address, str(port)) for address, port in (logged.listen, logged.target))
    text = f"{action} {shown(logged.owner.name)}: {protocol} {client} -> {listen} -> {target}"
    fields = {
        "MESSAGE_ID": MESSAGE_IDS[action],
        "PORTFWD_ACTION": action,
        "PORTFWD_DOMAIN": logged.owner.name,
        "PORTFWD_CLIENT": str(logged.client),
        "PORTFWD_LISTEN": f"{protocol} {listen}",
        "PORTFWD_TARGET": target,
        "PORTFWD_CONNECTION": f"{logged.number:08x}",
    }
    if logged.client_port is not None:
        fields["PORTFWD_CLIENT_PORT"] = str(logged.client_port)
    if logged.ended:
        text += f" ({_told_end(logged)})"
        fields |= {"PORTFWD_SECONDS": f"{logged.seconds:.3f}"} if logged.seconds is not None else {}
        fields |= {"PORTFWD_BYTES": str(logged.size)} if logged.size is not None else {}
    _log.info("%s", text, extra={"journal": fields})


def unlogged(number: int, seconds: float) -> None:
    """Say how many begins and ends of connections were not written in so many seconds."""
    text = f"{number} begins and ends of connections were not logged in {seconds:.0f} s: there were too many"
    fields = {"MESSAGE_ID": MESSAGE_IDS["unlogged"], "PORTFWD_ACTION": "unlogged"}
    _log.warning("%s", text, extra={"journal": fields})


def _told_end(logged: LoggedConnection) -> str:
    lasted = "for an unknown time" if logged.seconds is None else f"{logged.seconds:.1f} s"
    return f"{lasted}, {_UNKNOWN_SIZE if logged.size is None else f'{logged.size} bytes'}"


def _client(logged: LoggedConnection) -> str:
    """Write who it is, with the port where the whole address is told."""
    match logged.client, logged.client_port:
        case (IPv4Address() | IPv6Address()) as address, int(port):
            return show_endpoint(address, str(port))
    return str(logged.client)


class Ration:
    """So many lines a second, and so many at once after a quiet time: the journal, too, takes only so many of us."""

    def __init__(self, each_second: float, most: float) -> None:
        self._each_second, self._most = each_second, most
        self._left, self._since = most, 0.0

    def take(self, now: float) -> bool:
        """Tell whether one more may be written."""
        self._left = min(self._most, self._left + self._each_second * (now - self._since))
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
