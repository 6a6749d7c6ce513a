"""libvirt's errors, told apart: gone meanwhile, not supported by this driver, or no answer at all."""

import libvirt

from fwdaemon.errors import LibvirtUnavailableError

_GONE = frozenset(
    {
        libvirt.VIR_ERR_NO_DOMAIN,
        libvirt.VIR_ERR_NO_NETWORK,
        libvirt.VIR_ERR_OPERATION_INVALID,  # "domain is not running", "network is not active"
    }
)


def is_gone(error: libvirt.libvirtError) -> bool:
    """Tell whether the domain or network is no longer there, or no longer active."""
    return error.get_error_code() in _GONE


def is_unsupported(error: libvirt.libvirtError) -> bool:
    """Tell whether this driver cannot do it at all."""
    return error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT


def unavailable(uri: str, error: libvirt.libvirtError) -> LibvirtUnavailableError:
    """Turn libvirt's error into ours, one sentence."""
    return LibvirtUnavailableError(f"libvirt at {uri} does not answer: {error.get_error_message() or error}")
