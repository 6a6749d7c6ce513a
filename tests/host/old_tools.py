"""The rules of the tools that people come from, written from what their documentation and behaviour say they did."""

from collections.abc import Sequence

# Protocol, ports of the host, ports of the guest, and the only source, if there is one.
Port = tuple[str, str, str, str]


def hook_rules(domain: str, public: str, private: str, ports: Sequence[Port]) -> list[str]:
    """What libvirt-hook-qemu does at the start of a domain: a chain in each of three places, and jumps to them."""
    dnat, snat, forward = f"DNAT-{domain}", f"SNAT-{domain}", f"FWD-{domain}"
    rules = [f"iptables -t nat -N {dnat}", f"iptables -t nat -N {snat}", f"iptables -t filter -N {forward}"]
    for protocol, host, guest, source in ports:
        to = f"-j DNAT --to {private}:{guest.replace(':', '-')}"
        only = f" -s {source}" if source else ""
        rules += [
            f"iptables -t nat -A {dnat} -p {protocol} -d {public} --dport {host} {to}{only}",
            f"iptables -t nat -A {snat} -p {protocol} -s {private} -d {private} --dport {host} -j MASQUERADE",
            f"iptables -t filter -A {forward} -p {protocol} -d {private} --dport {guest} -j ACCEPT",
        ]
    return [
        *rules,
        f"iptables -t nat -I OUTPUT -d {public} -j {dnat}",
        f"iptables -t nat -I PREROUTING -d {public} -j {dnat}",
        f"iptables -t nat -I POSTROUTING -s {private} -d {private} -j {snat}",
        f"iptables -t filter -I FORWARD -d {private} -j {forward}",
    ]


def undone(rules: Sequence[str]) -> list[str]:
    """What takes the rules away: in reverse, so that a chain goes after what leads into it."""
    return [rule.replace(" -I ", " -D ").replace(" -A ", " -D ").replace(" -N ", " -X ") for rule in reversed(rules)]


def hook_script(domain: str, rules: Sequence[str]) -> str:
    """A hook that keeps these rules as libvirt-hook-qemu does: made when the domain starts, gone when it stops."""
    start, stop = "\n    ".join(rules), "\n    ".join(undone(rules))
    return f"""#!/bin/sh
start() {{
    {start}
}}
stop() {{
    {stop}
}}
case "$1 $2" in
"{domain} start") start ;;
"{domain} stopped") stop ;;
"{domain} reconnect") stop; start ;;
esac
exit 0
"""
