"""Every target by its name: a function of any bytes, which raises nothing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.fuzz import clients, fleet, guests, host, kept, listings, questions, words

CORPUS: Final = Path(__file__).parent / "corpus"

TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "configuration": words.configuration,
    "drop-in": words.drop_in_errors,
    "set-file": words.set_file,
    "words": words.words,
    "explain-request": words.request,
    "import": words.imported,
    "domain-xml": guests.domain_xml,
    "metadata": guests.metadata,
    "network-xml": guests.network_xml,
    "names": guests.names,
    "agent": guests.agent,
    "leases": guests.leases,
    "neighbour-discovery": guests.solicitation,
    "netlink": guests.netlink,
    "rtnetlink": guests.rtnetlink,
    "conntrack": guests.conntrack,
    "sockets": guests.sockets,
    "control-call": clients.call,
    "control-client": clients.control_client,
    "metrics-client": clients.metrics_client,
    **listings.READERS,
    **host.READERS,
    **kept.READERS,
    **fleet.READERS,
    **questions.READERS,
}


def corpus(name: str) -> list[Path]:
    """Give the reviewed inputs of a target, in order."""
    return sorted((CORPUS / name).iterdir()) if (CORPUS / name).is_dir() else []
