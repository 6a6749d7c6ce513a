"""Files of sets that change, what others had in external sets, and the connections of who comes to be denied."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from fwdaemon.audit.lines import format_fault
from fwdaemon.config import load_guarded
from fwdaemon.core.admission import Admission, Element, SourceSet
from fwdaemon.core.report import Fault
from fwdaemon.core.types import Family, Origin
from fwdaemon.errors import ConfigError
from fwdaemon.kernel.external_sets import Externals, now
from fwdaemon.netfilter import Netfilter
from fwdaemon.reconcile import Reconciler
from fwdaemon.status.sets import KeptElements, News, SetKeeper
from tests.unit.backend_behaviour import FLOW, STATE
from tests.unit.memory_backend import MemoryBackend, NoProgram
from tests.unit.reconcile_bench import Bench

HERE = Origin(Path("/etc/portfwd.toml"), 1)
PLACE = (Family.IPV4, "banned")
CLIENT = FLOW.source
ONE = Element(int(CLIENT), int(CLIENT))


@dataclass
class Heard:
    """What a keeper reported."""

    changed: list[Path | None] = field(default_factory=list)
    kept: dict[Path, bytes] = field(default_factory=dict)
    trouble: tuple[str, ...] = ()

    def news(self) -> News:
        return News(self.changed.append, self.keep, self.be_troubled)

    def keep(self, file: Path, text: bytes) -> None:
        self.kept[file] = text

    def be_troubled(self, trouble: tuple[Fault, ...]) -> None:
        self.trouble = tuple(map(format_fault, trouble))


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """The file of a set, beside the configuration."""
    file = tmp_path / "list.txt"
    file.write_text("192.0.2.1\n")
    (tmp_path / "portfwd.toml").write_text(
        f'[daemon]\ndeny = ["set:big"]\n[[set]]\nname = "big"\nfile = "{file}"\n'
        '[[set]]\nname = "banned"\nexternal = true\n'
    )
    return file


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not met():  # noqa: ASYNC110  files have no events here
            await asyncio.sleep(0.01)


def replaced(file: Path, text: str) -> None:
    """Write it whole, as careful programs do."""
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)


def become_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def test_a_file_is_read_again_and_one_that_is_wrong_changes_nothing(listed: Path) -> None:
    heard, loaded = Heard(), load_guarded(listed.with_name("portfwd.toml"))

    async def follow() -> None:
        keeper = SetKeeper(heard.news(), Externals(), listed.parent, 0.01)
        keeper.begin(loaded.config, loaded.lists)

        def there() -> list[str]:
            return [text for found in keeper.applied(loaded.config).sets[0].parts.values() for text in found]

        assert keeper.applied(loaded.config) is loaded.config
        replaced(listed, "192.0.2.1\n192.0.2.2\n")
        await until(lambda: heard.changed == [listed])
        assert there() == ["192.0.2.1", "192.0.2.2"]
        replaced(listed, "192.0.2.3\nnonsense\n")
        await until(lambda: bool(heard.trouble))
        assert there() == ["192.0.2.1", "192.0.2.2"]
        assert f"{listed}:2: " in heard.trouble[0]
        replaced(listed, "# none\n")
        await until(lambda: not heard.trouble)
        assert there() == []
        replaced(listed, "192.0.2.3\nnonsense\n")
        await until(lambda: bool(heard.trouble))
        replaced(listed, "192.0.2.3\n")
        await until(lambda: not heard.trouble)
        assert there() == ["192.0.2.3"]
        assert heard.kept == {listed: b"192.0.2.3\n"}
        become_fifo(listed)
        await until(lambda: "no regular file" in "".join(heard.trouble))
        assert there() == ["192.0.2.3"]
        await keeper.close(5)

    asyncio.run(follow())


@pytest.mark.parametrize("blank", ["", " \n\n"])
def test_a_file_that_was_emptied_lets_no_one_in(listed: Path, blank: str) -> None:
    """Editors empty a file before they write it. What counts is what is in force, not what the reload read."""
    listed.write_text("# none\n")
    heard, loaded = Heard(), load_guarded(listed.with_name("portfwd.toml"))

    async def follow() -> None:
        keeper = SetKeeper(heard.news(), Externals(), listed.parent, 0.01)
        keeper.begin(loaded.config, loaded.lists)
        replaced(listed, "192.0.2.1\n192.0.2.2\n")
        await until(lambda: heard.changed == [listed])
        in_force = keeper.applied(loaded.config)
        replaced(listed, blank)
        await until(lambda: bool(heard.trouble))
        assert keeper.applied(loaded.config) is in_force
        assert heard.kept == {listed: b"192.0.2.1\n192.0.2.2\n"}
        remedy = "if none is meant, write a comment line, # none"
        assert f"{listed}:1: is empty, while 2 networks of its set are in force; {remedy}" in heard.trouble[0]
        with pytest.raises(ConfigError, match="while 2 networks of its set are in force"):
            load_guarded(listed.with_name("portfwd.toml"), in_force)
        replaced(listed, "# none\n")
        await until(lambda: not heard.trouble)
        assert keeper.applied(loaded.config).sets[0].number == 0
        replaced(listed, blank)
        await until(lambda: heard.changed == [listed] * 3)
        assert not heard.trouble
        await keeper.close(5)

    asyncio.run(follow())


def test_what_others_had_in_sets_outlives_the_daemon(listed: Path) -> None:
    loaded, state = load_guarded(listed.with_name("portfwd.toml")), listed.parent

    async def live(externals: Externals, act: Callable[[], None]) -> None:
        keeper = SetKeeper(heard.news(), externals, state)
        keeper.begin(loaded.config, loaded.lists)
        externals.names = frozenset({"banned"})
        act()
        await until(lambda: None in heard.changed or not externals.left(PLACE, now()))
        await keeper.close(5)

    heard, first, second = Heard(), Externals(), Externals()
    asyncio.run(live(first, lambda: first.change(PLACE, {ONE: now() + 100, Element(1, 9): None}, ())))
    heard.changed = [None]
    asyncio.run(live(second, lambda: None))
    left = second.left(PLACE, now())
    assert left.keys() == {ONE, Element(1, 9)}
    assert left[Element(1, 9)] is None
    assert 50 < (left[ONE] or 0) <= 100
    assert not second.is_seen(PLACE)


def test_a_record_that_is_damaged_or_others_could_write_is_not_used(tmp_path: Path) -> None:
    kept, path = KeptElements(tmp_path), tmp_path / "external-sets.json"
    assert kept.keep({PLACE: {ONE: None}})
    assert kept.known() == {PLACE: {ONE: None}}
    path.chmod(0o666)
    assert not kept.known()
    path.chmod(0o600)
    elements = ("[1, 2, Infinity]", "[1, 2, NaN]", "[Infinity, 2, null]", "[9, 2, null]", f"[1, {1 << 40}, null]", "1")
    for record in ("", *(f', "family": 4, "elements": [{element}]' for element in elements)):
        path.write_text(f'[{{"set": "banned"{record}}}]')
        assert not kept.known()


# --- connections -----------------------------------------------------------------------------------------------------


def test_connections_of_who_comes_to_be_denied_end_and_others_go_on(bench: Bench) -> None:
    bench.reconcile(STATE)
    other = replace(FLOW, source=ip_address("203.0.113.77"), client=ip_address("203.0.113.77"))
    bench.connections.flows = [FLOW, other]
    bad = SourceSet("bad", HERE, parts={(Family.IPV4, 32): {str(CLIENT): None}})
    bench.reconcile(replace(STATE, sets=(bad,), barred=Admission(denied=("bad",))))
    assert bench.connections.flows == [other]


def test_a_ban_by_another_program_ends_connections_without_another_change(bench: Bench) -> None:
    banned = SourceSet("banned", HERE, external=True)
    state = replace(STATE, sets=(banned,), barred=Admission(denied=("banned",)))
    seams, rules = bench.seams(), Netfilter(NoProgram(), among=[MemoryBackend(bench.kernel)])
    bench.reconciler = Reconciler(replace(seams, rules=rules))
    bench.reconcile(state)
    other = replace(FLOW, source=ip_address("203.0.113.77"), client=ip_address("203.0.113.77"))
    bench.connections.flows = [FLOW, other]
    bench.reconcile(state)
    assert bench.connections.flows == [FLOW, other]
    externals = rules.externals
    externals.names = frozenset({"banned"})
    externals.change(PLACE, {ONE: None}, ())
    bench.reconcile(state)
    assert bench.connections.flows == [other]
