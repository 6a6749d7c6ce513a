"""What libvirt's events are called when a person reads of them: "domain web1 stopped (crashed)".

Pure: numbers and names in, a sentence out. The numbers are part of libvirt's ABI
(https://libvirt.org/html/libvirt-libvirt-domain.html, libvirt-libvirt-network.html) and written down here, so that no
event needs a call into libvirt and a number of a newer libvirt is no error.
"""

from fwdaemon.naming import shown

_LIFECYCLE = (
    "defined",
    "undefined",
    "started",
    "suspended",
    "resumed",
    "stopped",
    "shutting down",
    "suspended by its guest",
    "crashed",
)
_DEFINED, _UNDEFINED, _STARTED, _STOPPED = 0, 1, 2, 5
# Those that say more than the event itself. A rename is told as the end of one name, then as the begin of another.
_DETAILS: dict[int, dict[int, str]] = {
    _DEFINED: {2: "renamed"},
    _UNDEFINED: {1: "renamed"},
    _STARTED: {1: "migrated here", 2: "restored", 3: "from a snapshot"},
    _STOPPED: {
        0: "shut down",
        1: "destroyed",
        2: "crashed",
        3: "migrated away",
        4: "saved",
        5: "failed",
        6: "reverted to a snapshot",
    },
}
_NETWORK_LIFECYCLE = ("defined", "undefined", "started", "stopped")
_AGENT_STATE = {1: "connected", 2: "disconnected"}
_CLOSE_REASON = ("an input/output error", "the end of the stream", "no answer to keepalive messages", "our own request")


def domain_lifecycle(name: str, event: int, detail: int) -> str:
    """Tell a domain's lifecycle event, with `detail` where it says more, as why a domain stopped."""
    why = _DETAILS.get(event, {}).get(detail)
    return f"domain {shown(name)} {_word(_LIFECYCLE, event)}{f' ({why})' if why else ''}"


def domain_rebooted(name: str) -> str:
    """Tell that the guest rebooted without its domain stopping."""
    return f"domain {shown(name)} rebooted"


def domain_devices_changed(name: str) -> str:
    """Tell that a device was plugged in or out."""
    return f"devices of domain {shown(name)} changed"


def agent_lifecycle(name: str, state: int) -> str:
    """Tell that the guest agent came or went."""
    return f"guest agent of domain {shown(name)} {_AGENT_STATE.get(state, 'changed')}"


def network_lifecycle(name: str, event: int) -> str:
    """Tell a network's lifecycle event."""
    return f"network {shown(name)} {_word(_NETWORK_LIFECYCLE, event)}"


def close_reason(reason: int) -> str:
    """Tell why libvirt's client closed a connection."""
    return _word(_CLOSE_REASON, reason)


def _word(words: tuple[str, ...], number: int) -> str:
    return words[number] if 0 <= number < len(words) else f"changed (event {number})"
