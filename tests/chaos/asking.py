"""What a domain asks for in its own definition: what it may have, what it may not, and what was written to do harm."""

from collections.abc import Mapping
from typing import Final

from tests.chaos.model import ASKED, REFUSED
from tests.lab.host import PUBLIC4_SECOND

NAMESPACE: Final = "urn:kvm-portfwd:1"
_HARM: Final = f"{PUBLIC4_SECOND}:{REFUSED}:80"
_MANY: Final = 4_000


def _forwards(elements: str) -> str:
    return f'<forwards xmlns="{NAMESPACE}">{elements}</forwards>'


def _forward(ports: str, more: str = "") -> str:
    return f'<forward ports="{ports}"{more}/>'


# Of these, what is `allowed` opens one port, and all others none.
ASKING: Final[Mapping[str, str]] = {
    "nothing": _forwards(""),
    "allowed": _forwards(_forward(ASKED.ports[0].word)),
    "refused": _forwards(_forward(_HARM)),
    "injected": _forwards(_forward(_HARM, ' sources="203.0.113.0/24; } flush ruleset"')),
    "unprintable": _forwards(_forward(_HARM, ' network="&#10;&#9;\x7f\u2028\u202e"')),
    "nested": _forwards("<a>" * 200 + "</a>" * 200),
    "crowded": _forwards(_forward(_HARM) * _MANY),
    "of-others": _forwards(f'<o:forward xmlns:o="urn:other" ports="{ASKED.ports[0].word}"/>'),
}
