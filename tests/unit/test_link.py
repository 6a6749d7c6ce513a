"""Where networks are followed, and how soon a lost libvirt is tried again."""

import itertools

import pytest

from fwdaemon.hypervisor.connection import network_uri
from fwdaemon.hypervisor.link import growing_pauses


def test_pauses_between_attempts_grow_to_ten_seconds() -> None:
    longest = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    for pauses in (list(itertools.islice(growing_pauses(), 8)) for _ in range(50)):
        assert all(0.75 * most <= pause <= most for pause, most in zip(pauses, longest, strict=True))


@pytest.mark.parametrize(
    ("uri", "networks"),
    [
        ("qemu:///system", "network:///system"),
        ("lxc:///system", "network:///system"),
        ("xen:///system", "network:///system"),
        ("qemu:///session", "network:///session"),
        ("qemu+ssh://host/system", None),
        ("qemu:///system?socket=/x", None),
        ("test:///default", None),
    ],
)
def test_network_uri(uri: str, networks: str | None) -> None:
    assert network_uri(uri) == networks
