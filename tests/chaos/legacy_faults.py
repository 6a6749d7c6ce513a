"""Faults of our chains in iptables-legacy, and of what links them to the kernel's own."""

from random import Random
from re import sub

from tests.chaos.commands import FAMILIES, Command, Commands, words
from tests.chaos.legacy_rules import COMMENT
from tests.chaos.listing import Listing

_CHAINS = {
    "nat": ("KVMPF_PRE", "KVMPF_OUT", "KVMPF_POST"),
    "filter": ("KVMPF_FWD",),
    "mangle": ("KVMPF_FWD", "KVMPF_PRE", "KVMPF_POST", "KVMPF_DENY"),
}
# Sets go once no rule looks at them.
DESTROY_SETS = [
    *(words(f"{program}-legacy -w -t mangle -F KVMPF_DENY") for program in ("iptables", "ip6tables")),
    words("iptables-legacy -w -t nat -F KVMPF_OUT"),
    words("ipset destroy"),
]
_LINKS = (
    ("nat", "PREROUTING", "KVMPF_PRE"),
    ("nat", "OUTPUT", "KVMPF_OUT"),
    ("nat", "POSTROUTING", "KVMPF_POST"),
    ("filter", "FORWARD", "KVMPF_FWD"),
    ("mangle", "FORWARD", "KVMPF_FWD"),
    ("mangle", "PREROUTING", "KVMPF_PRE"),
    ("mangle", "OUTPUT", "KVMPF_POST"),
)


def _program(family: str) -> str:
    return "iptables-legacy" if family == "ip" else "ip6tables-legacy"


def restore(family: str, table: str, *lines: str, flush: bool = False) -> Command:
    """Change one table at once; with `flush` it holds nothing but the lines."""
    options = ("-w",) if flush else ("-w", "--noflush")
    return Command((f"{_program(family)}-restore", *options), "\n".join([f"*{table}", *lines, "COMMIT", ""]))


def _drawn_rule(random: Random, listing: Listing) -> tuple[str, str, str, int, str] | None:
    """Draw a rule in a chain of ours: family, table, chain, number and text."""
    found = [
        (family, table, chain, number, line)
        for family in FAMILIES
        for table, chains in _CHAINS.items()
        for chain in chains
        for number, line in enumerate(_rules(listing, family, table, chain), start=1)
    ]
    return random.choice(found) if found else None


def _rules(listing: Listing, family: str, table: str, chain: str) -> list[str]:
    return [line for line in listing.legacy(family, table) if line.startswith(f"-A {chain} ")]


def delete_rule(random: Random, listing: Listing) -> Commands:
    """Take one rule away."""
    drawn = _drawn_rule(random, listing)
    return [words("{} -w -t {} -D {} {}".format(_program(drawn[0]), *drawn[1:4]))] if drawn else []


def double_rule(random: Random, listing: Listing) -> Commands:
    """Put one rule at the end of its chain as well."""
    drawn = _drawn_rule(random, listing)
    return [restore(drawn[0], drawn[1], drawn[4])] if drawn else []


def move_rule(random: Random, listing: Listing) -> Commands:
    """Put one rule at the end of its chain instead."""
    if (drawn := _drawn_rule(random, listing)) is None:
        return []
    family, table, chain, number, line = drawn
    return [restore(family, table, f"-D {chain} {number}", line)]


def unlabel_rule(random: Random, listing: Listing) -> Commands:
    """Have one rule translate without setting the label; who replaces a rule by hand writes none of our comments."""
    label = ' -m connlabel --label "25" --set'
    found = [
        (family, number, line)
        for family in FAMILIES
        for number, line in enumerate(_rules(listing, family, "nat", "KVMPF_OUT"), start=1)
        if label in line
    ]
    if not found:
        return []
    family, number, line = random.choice(found)
    other = sub(COMMENT, "", line).replace(label, "").replace("-A KVMPF_OUT", f"-R KVMPF_OUT {number}", 1)
    return [restore(family, "nat", other)]


def flush_chain(random: Random, listing: Listing) -> Commands:
    """Empty one of our chains."""
    drawn = _drawn_rule(random, listing)
    return [words("{} -w -t {} -F {}".format(_program(drawn[0]), *drawn[1:3]))] if drawn else []


def _drawn_link(random: Random, listing: Listing) -> tuple[str, str, str, str] | None:
    """Draw a link to a chain of ours: family, table, the kernel's chain and the whole rule."""
    found = [
        (family, table, chain, line)
        for family in FAMILIES
        for table, chain, ours in _LINKS
        for line in _rules(listing, family, table, chain)
        if line.endswith(f" -j {ours}")
    ]
    return random.choice(found) if found else None


def delete_link(random: Random, listing: Listing) -> Commands:
    """Take a link away."""
    drawn = _drawn_link(random, listing)
    return [restore(drawn[0], drawn[1], drawn[3].replace("-A ", "-D ", 1))] if drawn else []


def move_link(random: Random, listing: Listing) -> Commands:
    """Put a link behind everybody else's rules."""
    drawn = _drawn_link(random, listing)
    return [restore(drawn[0], drawn[1], drawn[3].replace("-A ", "-D ", 1), drawn[3])] if drawn else []


def double_link(random: Random, listing: Listing) -> Commands:
    """Put a link behind everybody else's rules as well."""
    drawn = _drawn_link(random, listing)
    return [restore(drawn[0], drawn[1], drawn[3])] if drawn else []
