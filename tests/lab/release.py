"""Which Debian a lab host is, and which firewall its libvirt uses."""

import functools
import platform
from dataclasses import dataclass
from enum import StrEnum


class Release(StrEnum):
    """A Debian release; the value is its code name."""

    BOOKWORM = "bookworm"
    TRIXIE = "trixie"

    @property
    def directory(self) -> str:
        """The name of its image in the cache."""
        return {"bookworm": "debian12", "trixie": "debian13"}[self.value]


class LibvirtFirewall(StrEnum):
    """What libvirt writes its rules with: iptables-nft, tables of its own in nftables, or iptables-legacy."""

    IPTABLES = "iptables"
    NFTABLES = "nftables"
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True)
class Flavour:
    """One kind of host a user has; libvirt 9.0 of Debian 12 knows iptables only."""

    release: Release
    firewall: LibvirtFirewall

    def __str__(self) -> str:
        return f"{self.release.directory}-{self.firewall}"


DEBIAN12_IPTABLES = Flavour(Release.BOOKWORM, LibvirtFirewall.IPTABLES)
DEBIAN13_NFTABLES = Flavour(Release.TRIXIE, LibvirtFirewall.NFTABLES)
DEBIAN12_LEGACY = Flavour(Release.BOOKWORM, LibvirtFirewall.LEGACY)
DEBIAN13_LEGACY = Flavour(Release.TRIXIE, LibvirtFirewall.LEGACY)
# What long runs call them, after what libvirt writes its rules with.
SIDES = {
    "nftables": DEBIAN13_NFTABLES,
    "iptables": DEBIAN12_IPTABLES,
    "legacy": DEBIAN12_LEGACY,
    "debian13-legacy": DEBIAN13_LEGACY,
}
FLAVOURS = (DEBIAN12_IPTABLES, DEBIAN13_NFTABLES, DEBIAN12_LEGACY, DEBIAN13_LEGACY)


@functools.cache
def own_release() -> Release | None:
    """The release this machine runs, if the lab knows it."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    return Release(codename) if codename in set(Release) else None


def own_flavour() -> Flavour:
    """The flavour to demonstrate on this machine, without any download."""
    newer = own_release() is Release.TRIXIE
    return DEBIAN13_NFTABLES if newer else DEBIAN12_IPTABLES
