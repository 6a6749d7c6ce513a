"""Asks the agents inside guests for their addresses, on a connection of its own.

An agent is a program of the guest and may never answer. Here that delays no one but other agents, each for 5 s at most.

The time limit is libvirt's own (virDomainAgentSetResponseTimeout). It is a property of the domain, seen by every
client, so it is set back to libvirt's default, no limit, right after the question: a backup that freezes file systems
through the agent may take its time. libvirt cannot tell what the limit was before.
"""

from contextlib import suppress
from typing import Any
from uuid import UUID

import libvirt

from fwdaemon.errors import LibvirtUnavailableError
from fwdaemon.hypervisor.connection import open_with_keepalive
from fwdaemon.inventory import AddressSource, LearnedAddress
from fwdaemon.libvirt_xml import guest_address, normal_mac
from fwdaemon.observation import MacClaim

_TIMEOUT_S = 5
MAX_ADDRESSES = 64


class AgentConnection:
    """Use it from one thread at a time; it opens itself at the first question."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: libvirt.virConnect | None = None

    def addresses(self, domain: UUID) -> tuple[MacClaim, ...]:
        """Ask a domain's agent.

        Raises:
            LibvirtUnavailableError: the agent, or libvirt, did not answer.

        """
        try:
            return self._ask(self._open().lookupByUUID(domain.bytes))
        except libvirt.libvirtError as error:
            if self._connection is not None and not self._connection.isAlive():
                self.close()
            raise LibvirtUnavailableError(f"the guest agent did not answer: {error}") from error

    def close(self) -> None:
        """Close; does nothing if it is closed already."""
        if self._connection is not None:
            with suppress(libvirt.libvirtError):
                self._connection.close()
        self._connection = None

    def _open(self) -> libvirt.virConnect:
        if self._connection is None:
            self._connection = open_with_keepalive(self._uri)
        return self._connection

    def _ask(self, domain: libvirt.virDomain) -> tuple[MacClaim, ...]:
        domain.agentSetResponseTimeout(_TIMEOUT_S)
        try:
            answer: Any = domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)
        finally:
            with suppress(libvirt.libvirtError):
                domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)
        return agent_claims(answer)


def agent_claims(answer: dict[str, dict[str, Any]]) -> tuple[MacClaim, ...]:
    """Read the answer, of which every word is the guest's: at most 64 addresses, and nothing that is none."""
    claims = {
        MacClaim(mac, LearnedAddress(address, AddressSource.AGENT))
        for interface in answer.values()
        if (mac := normal_mac(interface.get("hwaddr"))) is not None
        for entry in interface.get("addrs") or ()
        if (address := guest_address(entry.get("addr"))) is not None
    }
    return tuple(
        sorted(claims, key=lambda claim: (claim.mac, claim.learned.address.version, claim.learned.address.packed))[
            :MAX_ADDRESSES
        ]
    )
