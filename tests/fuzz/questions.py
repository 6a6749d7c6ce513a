"""What a client asks of the whole host, as the page in Cockpit does: a call, the process that answers, and the reply.

What these would look at on the host is not looked at: who listens, rules and domains.
"""

import json
from collections.abc import Sequence
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from fwdaemon.commands import answer
from fwdaemon.control.manager import Questions
from fwdaemon.control.protocol import MANAGER, Call, CallError, MalformedError, Service, encoded, read_call, read_reply
from fwdaemon.core.inventory import Inventory
from tests.fuzz.choices import Choices

_MAIN: Final = Path("/nowhere/portfwd.toml")
_METHODS: Final = ("Explain", "Check", "Plan", "Inventory")
_NAMES: Final = ("drop_in", "text", "connection", "source", "x")
_VALUES: Final[Sequence[Any]] = (
    "90-cockpit.toml",
    "../x.toml",
    "198.51.100.7:80",
    "[2001:db8::1]:80/udp",
    None,
    1,
    [],
    {},
)


@cache
def _service() -> Service:
    return Service({MANAGER: Questions(lambda: _MAIN).methods()})


def _call(choices: Choices) -> bytes:
    parameters = {
        choices.one_of((*_NAMES, choices.text())): choices.one_of((*_VALUES, choices.text(), choices.text() * 50))
        for _ in range(choices.number(4))
    }
    return Call(f"{MANAGER}.{choices.one_of(_METHODS)}", parameters).encode()[:-1]


def question(data: bytes) -> None:
    """Ask anything: it is refused, or answered with a reply that can be read."""
    choices = Choices(data)
    text = _call(choices) if choices.number(4) else choices.rest()
    try:
        call = read_call(text)
        _service().method(call.method).check(call.parameters)
    except (MalformedError, CallError):
        return
    name = call.method.rpartition(".")[2]
    if name not in _METHODS:
        return
    said = StringIO()
    with patch.multiple(answer, **_INSTEAD):
        answer.serve(_MAIN, [json.dumps([name, call.parameters])], said)
    try:
        encoded(**read_reply(said.getvalue().encode()).parameters)
    except CallError as error:
        json.dumps(error.parameters)


async def _no_inventory(_uris: object) -> Inventory:
    return Inventory()


_INSTEAD: Final[dict[str, Any]] = {
    "conflicting": lambda _config: ([], []),
    "reply_on": lambda request, _path: {"connection": str(request)},
    "desired_now": lambda _config: None,
    "recorded": lambda: type("Recorded", (), {"gate": staticmethod(lambda desired: desired)}),
    "previewed": lambda *_: None,
    "plan_as_json": lambda _plan: {"schema_version": 1},
    "take_inventory": _no_inventory,
}
READERS: Final = {"question": question}
