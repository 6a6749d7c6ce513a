"""Any rule set of nft: what is imported of it, the kernel's own rules let in, packet by packet."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwdaemon.kernel.process import SystemRunner
from fwdaemon.rulesets.nft_listing import base_chains, rule_texts
from tests.kernel.test_import_nft import in_force, nft, old, packets, taken
from tests.unit.test_import_nft import found

NETWORKS = st.sampled_from(("203.0.113.0/24", "203.0.113.8", "192.0.2.0/25", "{ 198.51.100.0/24, 9.9.9.9 }", "@known"))
IS = st.sampled_from(("", "!= "))
TESTS = st.one_of(
    st.builds("ip saddr {}{}".format, IS, NETWORKS),
    st.builds("iifname {}{}".format, IS, st.sampled_from(("eth0", "{ eth0, eth1 }", '"eth*"', "virbr0"))),
    st.sampled_from(("ct state new", "ct state established,related", "fib daddr type local", "meta mark 7", "counter")),
    st.sampled_from(("limit rate 5/second", "tcp flags & (syn | ack) == syn", "meta l4proto tcp", "ip protocol tcp")),
    st.builds("tcp dport {}{}".format, IS, st.sampled_from(("80", "{ 80, 443 }", "79-81"))),
)
ORIGINAL = st.one_of(
    st.builds("ct original ip daddr {}198.51.100.{}".format, IS, st.sampled_from((1, 8))),
    st.builds("meta l4proto tcp ct original proto-dst {}80".format, IS),
)
WANTED = st.one_of(TESTS, ORIGINAL, st.builds("ip daddr {}198.51.100.{}".format, IS, st.sampled_from((1, 8))))
SENT = st.one_of(
    TESTS,
    st.builds("ip daddr {}192.168.122.1{}".format, IS, st.sampled_from((0, 1))),
    st.builds("oifname {}".format, st.sampled_from(("virbr0", "virbr1"))),
    st.just("ct status dnat"),
    ORIGINAL,
)
DNAT = st.builds(
    "{} dnat to {}".format,
    st.builds("tcp dport {}".format, st.sampled_from(("80", "{ 80, 443 }", "79-81")))
    | st.builds("meta l4proto tcp {}".format, ORIGINAL),
    st.sampled_from(("192.168.122.10", "192.168.122.11", "192.168.122.10:8080", "192.168.122.11:80")),
)
CONCATENATED = "198.51.100.1 . 80 : 192.168.122.10 . 8080"
MAPS = st.sampled_from(
    (
        "tcp dport { 80, 443 } dnat to tcp dport map { 80 : 192.168.122.10, 443 : 192.168.122.11 }",
        f"tcp dport 80 ip daddr 198.51.100.1 dnat to ip daddr . tcp dport map {{ {CONCATENATED} }}",
        "tcp dport vmap { 80 : jump a, 443 : accept }",
        "redirect",
    )
)
ENDS = st.sampled_from(("accept", "return", "jump a", "goto a"))


def rules(tests: st.SearchStrategy[str], ends: st.SearchStrategy[str], most: int = 4) -> st.SearchStrategy[str]:
    rule = st.builds(lambda asked, end: " ".join([*asked, end]), st.lists(tests, max_size=2), ends)
    return st.lists(rule, max_size=most).map("\n".join)


NAT = rules(WANTED, st.one_of(ENDS, DNAT, DNAT, MAPS))
IN_A = rules(WANTED, st.one_of(st.sampled_from(("accept", "return")), DNAT), 2)
VERDICTS = st.sampled_from(("accept", "drop", "return", "jump a", "goto a", "reject"))
FORWARD = rules(SENT, VERDICTS)
IN_FORWARD_A = rules(SENT, st.sampled_from(("accept", "drop", "return")), 2)
EARLY = rules(WANTED, st.sampled_from(("accept", "drop")), 2)
POLICY = st.sampled_from(("accept", "accept", "drop"))


def table(name: str, hook: str, policy: str, base: str, other: str) -> str:
    known = "set known { type ipv4_addr; elements = { 203.0.113.7, 9.9.9.9 }; }"
    chain = f"chain base {{\n{hook}; policy {policy};\n{base}\n}}"
    return f"table ip {name} {{\n{known}\nchain a {{\n{other}\n}}\n{chain}\n}}\n"


@st.composite
def rule_sets(draw: st.DrawFn) -> str:
    forward = "type filter hook forward priority filter"
    return "".join(
        (
            "flush ruleset\n",
            table("early", "type filter hook prerouting priority raw", "accept", draw(EARLY), ""),
            table("nat", "type nat hook prerouting priority dstnat", "accept", draw(NAT), draw(IN_A)),
            table("late", forward, draw(POLICY), draw(FORWARD), draw(IN_FORWARD_A)),
        )
    )


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=rule_sets())
def test_nothing_is_imported_that_was_not_let_in(runner: SystemRunner, text: str) -> None:
    nft(runner, "-f", "-", stdin=text)
    chains = base_chains(nft(runner, "-j", "list", "ruleset"), rule_texts(nft(runner, "-a", "list", "ruleset")))
    forwards = in_force(found(text))
    for packet in packets("80 443") if forwards else ():
        now = taken(forwards, packet)
        assert now is None or now == old(chains, packet), packet
