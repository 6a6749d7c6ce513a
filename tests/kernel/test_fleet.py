"""The shared table and claims of public addresses, with a real etcd."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from fwdaemon.config import parse
from fwdaemon.config.model import Config
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Origin
from fwdaemon.fleet import Fleet, Timing
from fwdaemon.fleet.claims import claim_key
from fwdaemon.fleet.etcd import Client, EtcdError, coded
from fwdaemon.status.temporary import boottime
from tests.kernel.topology import own_etcd
from tests.lab.etcd import Etcd, Relay, certificates, cluster, programs_of, running
from tests.lab.place import wait_until
from tests.lab.release import Release
from tests.unit.forwards import nat

MAIN = Path("/etc/portfwd.toml")
PREFIX = "/portfwd/v1"
PUBLIC = ip_address("198.51.100.8")
MAIL = f'[[nat]]\ndomain = "mail"\npublic = "{PUBLIC}"\nassign = "eth0"\n'
WEB = '[[forward]]\ndomain = "web"\nports = ["80"]\n'
NAT = replace(nat(str(PUBLIC), "192.168.122.50", assign="eth0"), origin=Origin(Path("etcd:mail"), 3))
WANTED = Desired(nats=frozenset({NAT}))
QUICK = Timing(lease=4, renew=0.2, margin=1.0, compare=0.4, again=0.05, again_at_most=0.2)


@pytest.fixture(scope="module", autouse=True)
def namespace(lab: None) -> Iterator[Etcd]:
    """One network for all of them, since etcd stays."""
    del lab
    with own_etcd() as member:
        yield member


@pytest.fixture
def store(namespace: Etcd) -> Etcd:
    """The member there, with nothing below the prefix."""
    namespace.ctl("del", "--prefix", PREFIX)
    return namespace


def put(store: Etcd, name: str, text: str) -> None:
    store.ctl("put", f"{PREFIX}/entries/{name}", text)


def compact(store: Etcd) -> None:
    """Have it forget all that is not so now."""
    told = store.ctl("get", PREFIX, "--write-out=json")
    store.ctl("compact", str(json.loads(told)["header"]["revision"]))


@dataclass
class Node:
    """What a host has of the fleet, without its daemon; `hold` is what a pass does."""

    fleet: Fleet
    config: Config

    def entries(self) -> list[str]:
        self.fleet.take_reasons()
        return [str(entry.origin) for entry in self.fleet.merged(self.config).entries]

    def hold(self, desired: Desired = WANTED) -> bool:
        gated = self.fleet.claims.gate(desired)
        self.fleet.applied(gated)
        return gated.nats == desired.nats

    def end(self) -> None:
        asyncio.run(self.fleet.close(10))


class Nodes:
    """Makes them."""

    def __init__(self, place: Path, etcd: Etcd, at_end: ExitStack) -> None:
        self._place, self._etcd, self._at_end = place, etcd, at_end

    def __call__(self, name: str, more: str = "", timing: Timing = QUICK, url: str = "") -> Node:
        config = parse({MAIN: f'[fleet]\netcd = ["{url or self._etcd.url}"]\n{more}'})
        place = self._place / name
        place.mkdir(exist_ok=True)
        node = Node(Fleet(MAIN, place / "state", place / "run", timing), config)
        node.fleet.begin(config, lambda: None)
        self._at_end.callback(node.end)
        return node


@pytest.fixture
def nodes_of(tmp_path: Path, at_end: ExitStack) -> Callable[[Etcd], Nodes]:
    tmp_path.chmod(0o700)
    return lambda etcd: Nodes(tmp_path, etcd, at_end)


@pytest.fixture
def nodes(store: Etcd, nodes_of: Callable[[Etcd], Nodes]) -> Nodes:
    return nodes_of(store)


def test_the_table_is_followed_and_a_wrong_one_changes_nothing(nodes: Nodes, store: Etcd) -> None:
    put(store, "mail", MAIL)
    node = nodes("one")
    wait_until(lambda: node.entries() == ["etcd:mail:3"], "what is there is read")
    put(store, "web", WEB)
    wait_until(lambda: node.entries() == ["etcd:web:1", "etcd:mail:3"] or len(node.entries()) == 2, "so is more")
    put(store, "web2", WEB.replace('"web"', '"web2"'))
    put(store, "strange name", WEB)
    wait_until(lambda: "strange name:1:" in str(node.fleet.problems), "what is wrong is told")
    assert len(node.entries()) == 2
    store.ctl("del", f"{PREFIX}/entries/strange name")
    wait_until(lambda: "etcd:web2:3: " in str(node.fleet.problems), "so is the rest of it")
    assert len(node.entries()) == 2
    store.ctl("del", f"{PREFIX}/entries/web")
    wait_until(lambda: not node.fleet.problems and len(node.entries()) == 2, "it is right again")
    state = node.fleet.state
    assert state is not None
    assert (state.answering, state.members, state.entries) == (1, 1, 2)


def test_a_start_without_etcd_goes_on_with_the_last_good_table(nodes: Nodes, store: Etcd) -> None:
    put(store, "mail", MAIL)
    node = nodes("one")
    wait_until(lambda: node.entries() == ["etcd:mail:3"], "it is read")
    node.end()
    after = nodes("one", url="http://127.0.0.1:1")
    assert after.entries() == ["etcd:mail:3"]
    wait_until(lambda: bool(after.fleet.problems), "that etcd does not answer is told")


def test_one_of_two_hosts_has_an_address(nodes: Nodes) -> None:
    first, second = nodes("one"), nodes("two")
    wait_until(first.hold, "the first has it")
    wait_until(lambda: not second.hold() and "host" in str(second.fleet.claims.gate(WANTED).waiting), "not the second")
    first.hold(Desired())
    wait_until(second.hold, "it goes to the second once the first has let it go")
    assert not first.hold()


def test_a_host_without_etcd_lets_go_before_another_can_have_it(nodes: Nodes, store: Etcd) -> None:
    first = nodes("one")
    wait_until(first.hold, "the first has it")
    store.freeze()
    try:
        wait_until(lambda: not first.hold(), "its own clock ends that")
        assert boottime() < first.fleet.claims.lease.until + QUICK.margin
    finally:
        store.thaw()
    wait_until(first.hold, "it has it again")


def test_with_keep_it_is_held_while_etcd_is_away_and_by_a_later_daemon(nodes: Nodes, store: Etcd) -> None:
    first = nodes("one", 'on_partition = "keep"\n')
    wait_until(first.hold, "the first has it")
    store.freeze()
    try:
        wait_until(lambda: bool(first.fleet.problems), "that etcd does not answer is told")
        assert first.hold()
        assert first.fleet.claims.seconds(NAT) is None
    finally:
        store.thaw()
    wait_until(lambda: not first.fleet.problems and first.hold(), "it goes on")


def test_with_keep_two_hosts_have_an_address_until_etcd_answers_the_one_that_was_cut_off(
    nodes: Nodes, store: Etcd
) -> None:
    with Relay(store) as relay:
        first = nodes("one", 'on_partition = "keep"\n', url=relay.url)
        wait_until(first.hold, "the first has it")
        relay.close()
        second = nodes("two", 'on_partition = "keep"\n')
        wait_until(second.hold, "so has the second, once the lease has ended")
        assert first.hold()
        relay.open()
        wait_until(lambda: not first.hold(), "the first lets go")
        wait_until(lambda: not first.fleet.problems, "etcd answers it")
        assert (first.hold(), second.hold()) == (False, True)


def test_a_daemon_that_is_started_again_goes_on_with_its_claims(nodes: Nodes) -> None:
    first = nodes("one")
    wait_until(first.hold, "it has it")
    lease = first.fleet.claims.lease.number
    first.end()
    after = nodes("one")
    assert after.hold()
    assert after.fleet.claims.lease.number == lease


def test_a_claim_that_etcd_has_lost_is_made_again(nodes: Nodes, store: Etcd) -> None:
    """As where an older state of it was restored."""
    node = nodes("one")
    wait_until(node.hold, "it has it")
    store.ctl("del", claim_key(PREFIX, PUBLIC).decode())
    wait_until(lambda: claim_key(PREFIX, PUBLIC).decode() in store.ctl("get", "--prefix", PREFIX), "it is there again")
    wait_until(node.hold, "it has it again")


def test_a_claim_of_another_is_never_overwritten(nodes: Nodes, store: Etcd) -> None:
    store.ctl("put", claim_key(PREFIX, PUBLIC).decode(), "not ours")
    node = nodes("one")

    def names() -> list[tuple[str, ...]]:
        return [item.reason.names for item in node.fleet.claims.gate(WANTED).waiting]

    wait_until(lambda: names() == [("",)], "it is told that another has it")
    assert store.ctl("get", "--print-value-only", claim_key(PREFIX, PUBLIC).decode()) == "not ours\n"


def test_a_store_that_went_back_gives_no_address_to_another_host(nodes: Nodes, store: Etcd) -> None:
    """As the one host would see it that is connected to etcd again first, while another one still holds the address."""
    first, second = nodes("one"), nodes("two")
    wait_until(first.hold, "the first has it")
    second.hold()
    # What it has seen of the store is beyond what is there: so it is told of nothing newer.
    second.fleet.claims.heard(1 << 40)
    first.end()
    store.ctl("del", claim_key(PREFIX, PUBLIC).decode())
    second.fleet.claims.wake()
    wait_until(lambda: second.fleet.claims.is_in_doubt, "it is noticed")
    began = boottime()
    wait_until(second.hold, "it has it after all")
    assert boottime() - began > QUICK.lease - 1


@pytest.mark.parametrize("is_compacted", [False, True])
def test_a_restored_store_that_has_overtaken_what_it_was_is_noticed(
    namespace: Etcd, nodes_of: Callable[[Etcd], Nodes], tmp_path: Path, *, is_compacted: bool
) -> None:
    """By a host that is connected late: the address has no claim any more, and is held yet by another that is later."""
    del namespace
    snapshot = tmp_path / "snapshot"
    with running(Etcd("back", "127.0.0.6")) as (member,), Relay(member) as relay:
        nodes = nodes_of(member)
        late = nodes("late", url=relay.url)
        wait_until(lambda: late.fleet.state is not None and late.fleet.state.answering == 1, "it is connected")
        member.save(snapshot)
        first = nodes("first")
        wait_until(first.hold, "the first has it")
        wait_until(lambda: not late.hold() and "host" in str(late.fleet.claims.gate(WANTED).waiting), "it knows that")
        relay.close()
        first.end()
        member.stop()
        member.restore(snapshot)
        member.start()
        member.wait_answers()
        for number in range(20):
            member.ctl("put", f"{PREFIX}/others/{number}", "")
        if is_compacted:
            compact(member)
        relay.open()
        wait_until(lambda: late.fleet.claims.is_in_doubt, "it is noticed")
        assert not late.hold()


def test_a_table_of_many_entries_is_read_in_pages(nodes: Nodes) -> None:
    client = Client(nodes("one").config.fleet)  # type: ignore[arg-type]  # it has one
    for start in range(0, 1200, 100):
        puts = [f"{PREFIX}/entries/n{number}" for number in range(start, start + 100)]
        client.transact([], [{"request_put": {"key": coded(key.encode()), "value": ""}} for key in puts])
    revision, items = client.list(f"{PREFIX}/entries/".encode())
    newest = max(item.revision for item in items)
    assert (revision >= newest, len(items)) == (True, 1200)
    assert client.newest(f"{PREFIX}/entries/".encode()) == (1200, newest)
    client.close()


def test_a_watch_of_what_was_compacted_ends_and_the_table_is_read_again(
    nodes: Nodes, store: Etcd, caplog: pytest.LogCaptureFixture
) -> None:
    """Once between what a node lists and its watch, which goes on from there, and once while it is cut off."""

    def change() -> None:
        put(store, "web", WEB)
        put(store, "mail", MAIL)
        compact(store)

    with Relay(store) as relay:
        relay.ahead_of_watch = change
        node = nodes("one", url=relay.url)
        wait_until(lambda: len(node.entries()) == 2, lambda: f"both are read: {node.fleet.problems}")
        assert "the watch was cancelled: compacted at" in caplog.text
        wait_until(node.hold, "it has a claim")
        relay.close()
        put(store, "web2", WEB.replace("web", "web2").replace("80", "81"))
        change()
        wait_until(lambda: not node.hold(), "it has noticed")
        relay.open()
        wait_until(lambda: len(node.entries()) == 3, lambda: f"all three are read: {node.fleet.problems}")
        assert not node.fleet.claims.is_in_doubt


@pytest.mark.parametrize(
    "timing", [QUICK, replace(QUICK, compare=300.0, relist=0.5)], ids=["by-what-is-newest", "by-a-whole-list"]
)
def test_a_watch_that_tells_nothing_is_noticed(nodes: Nodes, store: Etcd, timing: Timing) -> None:
    """The member that is watched by is frozen: another one, which answers, has what it does not tell."""
    with Relay(store) as relay:
        node = nodes("one", timing=timing, url=relay.url)
        wait_until(lambda: node.fleet.state is not None and node.fleet.state.answering == 1, "it is connected")
        relay.silence()
        put(store, "mail", MAIL)
        wait_until(lambda: node.entries() == ["etcd:mail:3"], "it is read all the same")


ROOT = "root:root"


@pytest.fixture(params=Release)
def members(request: pytest.FixtureRequest, namespace: Etcd, tmp_path: Path) -> Iterator[Sequence[Etcd]]:
    """Three of them, as a release of Debian has them, with TLS, users and rights below the prefix."""
    del namespace
    tmp_path.chmod(0o700)
    addresses = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
    tls = certificates(tmp_path, *addresses)
    with running(*cluster(addresses, lambda _: (), tls, programs_of(request.param))) as members:
        members[0].permit("host", "secret", f"{PREFIX}/")
        yield members


def test_users_have_rights_below_a_prefix_over_tls(
    members: Sequence[Etcd], nodes_of: Callable[[Etcd], Nodes], tmp_path: Path
) -> None:
    members[0].ctl("put", f"{PREFIX}/entries/mail", MAIL, user=ROOT)
    urls = '", "'.join(member.url for member in members)
    more = as_user(tmp_path)
    nodes = nodes_of(members[0])
    node = nodes("one", more, url=urls)
    wait_until(lambda: node.entries() == ["etcd:mail:3"], lambda: f"it is read: {node.fleet.problems}")
    wait_until(node.hold, "so is a claim made")
    assert node.fleet.state is not None
    assert (node.fleet.state.answering, node.fleet.state.members) == (3, 3)
    goes_on_with_two(node, members)
    outside_of_the_prefix(more, urls)
    (tmp_path / "password").write_text("another")
    wrong = nodes("two", more, url=urls)
    wait_until(lambda: "authentication failed" in str(wrong.fleet.problems), "a wrong password is told")
    assert "another" not in str(wrong.fleet.problems)
    unknown = nodes("three", more.replace("ca.pem", "etcd.pem"), url=urls)
    wait_until(lambda: "certificate" in str(unknown.fleet.problems).lower(), "so is an unknown authority")


def as_user(place: Path) -> str:
    """Give what a node says that the member lets in; its certificates are there already."""
    password = place / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    return f'ca = "{place}/ca.pem"\nuser = "host"\npassword_file = "{password}"\n'


@pytest.mark.parametrize("release", Release)
def test_a_token_from_before_a_user_was_changed_is_replaced(
    namespace: Etcd, nodes_of: Callable[[Etcd], Nodes], tmp_path: Path, release: Release
) -> None:
    """With `--auth-token=jwt`, which has the state of all users and roles in it, as at the time when it was given."""
    del namespace
    tls, key = certificates(tmp_path, "127.0.0.5"), tmp_path / "key"
    key.write_text("a secret of the members")
    token = f"--auth-token=jwt,priv-key={key},sign-method=HS256,ttl=10m"
    with running(Etcd("jwt", "127.0.0.5", tls=tls, programs=programs_of(release), options=(token,))) as (member,):
        member.permit("host", "secret", f"{PREFIX}/")
        node = nodes_of(member)("one", as_user(tmp_path))
        wait_until(node.hold, lambda: f"it has the address: {node.fleet.problems}")
        member.ctl("user", "add", "other:secret", user=ROOT)
        another = replace(NAT, public=ip_address("198.51.100.9"))
        wait_until(lambda: node.hold(Desired(nats=frozenset({NAT, another}))), lambda: str(node.fleet.problems))
        assert not node.fleet.problems


def goes_on_with_two(node: Node, members: Sequence[Etcd]) -> None:
    """The one that it talks to is the first of them."""
    members[0].stop()
    wait_until(lambda: node.fleet.state is not None and node.fleet.state.answering == 2, "two answer")
    members[1].ctl("put", f"{PREFIX}/entries/web", WEB, user=ROOT)
    wait_until(lambda: len(node.entries()) == 2, "what they have is read")
    wait_until(node.hold, "the address is there")


def outside_of_the_prefix(more: str, urls: str) -> None:
    settings = parse({MAIN: f'[fleet]\netcd = ["{urls}"]\n{more}'}).fleet
    assert settings is not None
    client = Client(settings)
    for prefix in (b"/portfwd/v2/", b"/"):
        with pytest.raises(EtcdError, match="permission denied"):
            client.list(prefix)
    client.close()
