"""What stands on the disk, of whatever was kept there, and what others put into sets of ours."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from copy import deepcopy
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch
from uuid import UUID

from fwdaemon.core.admission import Element
from fwdaemon.core.types import Family, FleetSettings
from fwdaemon.errors import PortfwdError
from fwdaemon.fleet.claims import recorded
from fwdaemon.fleet.table import KeptTable
from fwdaemon.kernel.external_sets import Externals
from fwdaemon.kernel.netlink import Message, attribute
from fwdaemon.kernel.process import Finished
from fwdaemon.legacy import ipsets
from fwdaemon.nftables import external
from fwdaemon.nftables.model import TABLE_NAME
from fwdaemon.resolve.expansion import Held
from fwdaemon.status import confirming, reloads, sets, temporary
from fwdaemon.status.temporary import Deadline, Now, Temporary
from tests.fuzz.choices import Choices

# --- files of ours ----------------------------------------------------------------------------------------------------

_MAIN: Final = Path("/etc/portfwd.toml")
_NOW: Final = Now(1.8e9, 1e5, "this run")
_DEADLINE: Final = Deadline.after(60, _NOW)
_OPENED: Final = Temporary(1, "web", "80", ("203.0.113.0/24",), _DEADLINE, "uid 0")
# What takes the place of any value.
_STRANGE: Final[Sequence[Any]] = (
    None,
    True,
    -1,
    1 << 70,
    float("inf"),
    float("nan"),
    "",
    "x",
    [],
    {},
    [[1, 2, 3]],
    "9" * 5000,
)


def _texts() -> dict[str, str]:
    return {"main": str(_MAIN), "at": "2026-11-30T00:00:00+00:00"}


def _templates() -> dict[str, Any]:
    """Give the files as they are written."""
    texts = {"files": {str(_MAIN): "[daemon]\n"}, "lists": {"/etc/bad.txt": "192.0.2.1\n"}}
    waiting = {"back": texts["files"], "newer": "digest", "over": False, "lists": texts["lists"]}
    return {
        "external-sets.json": [{"set": "banned", "family": 4, "elements": [[1, 9, None], [20, 20, 1.9e9]]}],
        "temporary.json": [_OPENED.as_json()],
        "unconfirmed.json": _texts() | waiting | _DEADLINE.as_json(),
        "last-good.json": _texts() | texts,
        "auto-ports.json": [{"domain": str(UUID(int=1)), "guest": 22, "protocol": "tcp", "port": 20000, "gone": 0}],
        "fleet-table.json": {"prefix": "/p", "revision": 7, "digest": "d", "entries": {"a": "[[forward]]\n"}},
        "fleet.json": [{"run": "r", "lease": 5, "until": "9.5"}, {"address": "198.51.100.8", "until": "inf"}],
        "claims.json": [{"number": 0, "by_file": 0, "domain": str(UUID(int=1)), "key": "k", "instance": 1}],
    }


def _read_all(state: Path) -> None:
    """Read every file, as a start does."""
    known = sets.KeptElements(state).known()
    for place, held in known.items():
        list(external._put_back(_holding(place[0], held), place))  # noqa: SLF001  what is written is not ours to spoil
    temporary.remaining(temporary.known(state, lambda: _NOW), _NOW)
    waiting = confirming.Confirmation(_MAIN, state, lambda: _NOW)
    waiting.read()
    assert waiting.is_due or waiting.until is None or waiting.waits
    reloads.LastGood(_MAIN, state).kept()
    ports = reloads.PortRecords(state, state)
    assert all(isinstance(held, Held) for held in ports.known().values())
    assert len(ports.turns) == len(Family)
    KeptTable(state).kept(FleetSettings((), prefix="/p"))
    recorded(state).seconds  # noqa: B018  it was read


def _holding(family: Family, held: Mapping[Element, float | None]) -> Externals:
    externals = Externals()
    externals.replace((family, "banned"), held)
    return externals


def kept_state(data: bytes) -> None:
    """Read what is on the disk, of which one file has other values in it, or bytes of any kind."""
    choices, templates = Choices(data), _templates()
    name = choices.one_of(list(templates))
    text = json.dumps(changed(templates[name], choices)).encode() if choices.number(4) else choices.rest()
    with ExitStack() as at_end:
        state = Path(at_end.enter_context(tempfile.TemporaryDirectory(prefix="kvm-portfwd-fuzz-")))
        (state / name).write_bytes(text)
        # Each file that is wrong is a warning; only root's files are read, and no root is needed here.
        at_end.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)
        for module in (sets, temporary, reloads):
            at_end.enter_context(patch.object(module, "weak_points", _none))
        _read_all(state)


def _none(_path: Path) -> tuple[str, ...]:
    return ()


def changed(content: Any, choices: Choices) -> Any:
    """Put strange values in some places."""
    box = [deepcopy(content)]
    for _ in range(1 + choices.number(4)):
        parent, key = choices.one_of(list(_places(box)))
        parent[key] = deepcopy(choices.one_of((*_STRANGE, choices.text())))
    return box[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


# --- what others put into sets ----------------------------------------------------------------------------------------


def ipset_save(data: bytes) -> None:
    """Read `ipset save` of a set that others fill, of any type: addresses that are in it, and nothing but these."""
    choices = Choices(data)
    family = choices.one_of(list(Family))
    lines = ["create KVMPF_banned_4 hash:net family inet hashsize 64 maxelem 1000000 timeout 0"]
    lines += [_added(choices, family) for _ in range(choices.number(9))]
    with suppress(PortfwdError):
        for element, left in ipsets.elements_in(_Saying("\n".join(lines)), "KVMPF_banned_4", family).items():
            assert 0 <= element.first <= element.last < 1 << family.bits
            assert left is None or left > 0
            list(ipsets._put_back("KVMPF_banned_4", family, {element: left}))  # noqa: SLF001  as above


class _Saying:
    """Runs nothing, and prints the same."""

    def __init__(self, text: str) -> None:
        self._text = text

    def run(self, *_argv: str, stdin: str = "") -> Finished:
        del stdin
        return Finished(self._text, "", 1)


def _added(choices: Choices, family: Family) -> str:
    network = ip_network(
        (int.from_bytes(choices.taken(family.bits // 8)), choices.number(family.bits + 1)), strict=False
    )
    words = choices.one_of((str(network), str(network[0]), f"{network[0]},tcp:80", f"{network},eth0", choices.text()))
    more = choices.one_of(("", " timeout 60", " timeout 0", " nomatch", ' comment "a b"'))
    return f"add KVMPF_banned_4 {words}{more}".replace("\n", " ")


def set_messages(data: bytes) -> None:
    """Hear of elements of sets, of any type, as the kernel tells of them: it always writes whole attributes."""
    choices, externals = Choices(data), Externals()
    externals.names = frozenset({"banned"})
    hearing = external.Hearing(externals)
    for _ in range(choices.number(9)):
        hearing.takes(_message(choices), added=bool(choices.number(2)))
        if choices.number(2):
            hearing.committed()
    hearing.committed()
    for (family, name), held in externals.everything(0.0).items():
        assert all(0 <= element.first <= element.last < 1 << family.bits for element in held)
        list(external._put_back(externals, (family, name)))  # noqa: SLF001  as above


def _message(choices: Choices) -> Message:
    family = choices.one_of(list(Family))
    names = attribute(1, f"{TABLE_NAME}\0".encode()) + attribute(
        2, choices.one_of((b"set_banned\0", b"set_x\0", b"\0"))
    )
    elements = b"".join(attribute(1, _element(choices, family)) for _ in range(choices.number(6)))
    return Message(12, 0, 0, 0, bytes([family.domain, 0, 0, 0]) + names + attribute(3, elements))


def _element(choices: Choices, family: Family) -> bytes:
    key = attribute(1, choices.taken(choices.one_of((family.bits // 8, 4, 8, 16))))
    flags = attribute(3, choices.number(4).to_bytes(4)) if choices.number(2) else b""
    times = b"".join(attribute(kind, choices.taken(8)) for kind in (4, 5) if choices.number(2))
    return attribute(1, key) + flags + times


READERS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "kept-state": kept_state,
    "ipset-save": ipset_save,
    "set-messages": set_messages,
}
