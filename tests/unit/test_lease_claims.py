"""What is kept of the leases that libvirt lists: those of guests, the newest first."""

from fwdaemon.hypervisor.reader import lease_claims

MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"


def lease(mac: str | None, address: str | None, expiry: int) -> dict[str, object]:
    return {"mac": mac, "ipaddr": address, "expirytime": expiry}


def test_the_newest_lease_of_a_guest_comes_first() -> None:
    leases = [
        lease(MAC, "192.168.122.2", 2),
        lease(MAC.upper(), "192.168.122.3", 3),
        lease(MAC, "192.168.122.9", 0),
        lease(MAC, "192.168.122.1", 1),
    ]
    told = [str(claim.learned.address) for claim in lease_claims(leases, {MAC})]
    assert told == ["192.168.122.9", "192.168.122.3", "192.168.122.2", "192.168.122.1"]


def test_leases_of_others_and_what_is_no_lease_are_not_kept() -> None:
    leases = [
        lease(OTHER, "192.168.122.2", 1),
        lease(None, "192.168.122.3", 1),
        lease(MAC, None, 1),
        lease(MAC, "192.168.122.999", 1),
    ]
    assert lease_claims(leases, {MAC}) == ()
