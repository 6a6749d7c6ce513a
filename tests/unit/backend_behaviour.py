"""What every backend does: run in memory by `test_backend_behaviour`, and on the kernel by that of `tests/kernel`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from fwdaemon.core.admission import Admission, Need, Rate, SourceSet
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Origin, PortRange, Presence, Protocol
from fwdaemon.netfilter import Backend
from fwdaemon.resolve.flows import Flow
from tests.unit.forwards import forward, nat, route

WEB = forward("tcp *:80", "192.168.122.50:8080")
DNS = forward("udp 198.51.100.7:53", "192.168.122.50:53", sources=("203.0.113.0/24",))
SIX = forward("tcp *:80", "[2001:db8:5::50]:8080")
MAIL = nat("198.51.100.8", "192.168.122.51")
ROUTED = route("203.0.113.64/29")
OTHER = forward("tcp *:25", "192.168.122.53:25", domain="other", interface="eth1")
STATE = Desired(
    guest_subnets=frozenset({ip_network("192.168.122.0/24"), ip_network("2001:db8:5::/64")}),
    uplinks=frozenset({"eth0"}),
).having([WEB, DNS, SIX, MAIL, ROUTED])
WITHOUT_DNS = replace(STATE, forwards=frozenset({WEB, SIX}))
HERE = Origin(Path("/etc/portfwd.toml"), 1)
BAD = SourceSet.of("bad", HERE, [ip_network("203.0.113.0/24"), ip_network("2001:db8:9::/48")])
ASKED = Admission(denied=("bad",), rate=Rate(30, "minute"), max_open=20)
GUARDED = replace(
    STATE.having(replace(item, admission=ASKED) for item in (OTHER, nat("198.51.100.9", "192.168.122.54"))),
    sets=(BAD, SourceSet("banned", HERE, external=True)),
    barred=Admission(denied=("banned",)),
)
_CLIENT, _GUEST = ip_address("203.0.113.9"), ip_address("192.168.122.50")
FLOW = Flow(Protocol.TCP, _CLIENT, ip_address("198.51.100.7"), 80, _GUEST, 8080, _CLIENT, 40000)


@dataclass
class Scene:
    """A rule system: `another` makes a backend on it, `wipe` takes our rules away, and `ours` shows all of them."""

    another: Callable[[], Backend]
    wipe: Callable[[], None]
    ours: Callable[[], object]


class BackendBehaviour(ABC):
    """Tests of one backend; a fixture `scene` gives what is needed."""

    def test_what_sets_and_limits_need_is_there_and_nothing_is_touched_to_tell(self, scene: Scene) -> None:
        backend, before = scene.another(), scene.ours()
        assert backend.lacks([*Need]) == {}
        assert scene.ours() == before

    @abstractmethod
    def scene(self) -> Scene:
        """Give the rule system, as a fixture."""

    def test_what_is_lacking_is_mended_and_then_nothing_is_done(self, scene: Scene) -> None:
        backend = scene.another()
        first = backend.apply(STATE, full=False)
        assert (first.mended, first.damaged, first.changed, first.faults) == (STATE.exposures, frozenset(), True, ())
        held = scene.ours()
        for full in (False, True):
            again = backend.apply(STATE, full=full)
            assert (again.mended, again.stale, again.changed) == (frozenset(), frozenset(), False)
        assert scene.ours() == held

    def test_what_others_take_away_is_damage_and_comes_back(self, scene: Scene) -> None:
        backend = scene.another()
        backend.apply(STATE, full=False)
        held = scene.ours()
        scene.wipe()
        assert scene.ours() != held
        result = backend.apply(STATE, full=False)
        assert (result.mended, result.damaged) == (STATE.exposures, STATE.exposures)
        assert scene.ours() == held

    def test_what_an_earlier_run_left_is_found_and_what_is_not_wanted_of_it_is_named(self, scene: Scene) -> None:
        scene.another().apply(STATE, full=True)
        assert not scene.another().apply(STATE, full=True).changed
        result = scene.another().apply(WITHOUT_DNS, full=True)
        assert (result.mended, len(result.stale), result.changed) == (frozenset(), 1, True)
        assert not scene.another().apply(WITHOUT_DNS, full=True).stale

    def test_what_leads_elsewhere_than_an_earlier_run_left_it_is_told_and_nothing_else(self, scene: Scene) -> None:
        state = STATE.having([OTHER])
        bound = replace(WEB, interface="eth0")
        narrowed = replace(state, forwards=state.forwards - {WEB} | {bound})
        assert not scene.another().apply(state, full=True).altered
        assert not scene.another().apply(state, full=True).altered
        assert OTHER not in (told := scene.another().apply(narrowed, full=True).altered)
        assert bound in told
        assert not scene.another().apply(narrowed, full=True).altered
        scene.wipe()
        assert not scene.another().apply(narrowed, full=True).altered

    def test_what_may_have_led_there_by_an_exposure_that_went_is_told(self, scene: Scene) -> None:
        """A connection by any interface to that one address may go on by the other exposure, which is bound to one."""
        bound, gone = replace(WEB, interface="eth0"), replace(WEB, listen=ip_address("198.51.100.7"))
        for other in (gone, replace(gone, ports=PortRange(79, 80), target_ports=PortRange(8079, 8080))):
            scene.another().apply(Desired().having([bound, OTHER, other]), full=True)
            told = scene.another().apply(Desired().having([bound, OTHER]), full=True).altered
            assert bound in told
            assert OTHER not in told
            assert not scene.another().apply(Desired().having([bound, OTHER]), full=True).altered

    def test_by_which_label_an_earlier_run_went_is_told_once(self, scene: Scene) -> None:
        assert not scene.another().apply(STATE, full=True).labels
        backend = scene.another()
        assert backend.apply(replace(STATE, label=30), full=True).labels == {25}
        assert not backend.apply(replace(STATE, label=31), full=True).labels
        assert scene.another().apply(Desired(label=25, kept=frozenset(Family)), full=True).labels == {31}

    def test_under_which_addresses_guests_of_an_earlier_run_opened_connections_is_told_once(self, scene: Scene) -> None:
        """Such connections have no label to be found by."""
        other, six = nat("198.51.100.9", "192.168.122.52"), nat("2001:db8::8", "2001:db8:5::51")
        backend = scene.another()
        assert not backend.apply(STATE.having([other, six]), full=True).renamings
        assert not backend.apply(STATE, full=True).renamings
        scene.another().apply(STATE.having([other, six]), full=True)
        backend = scene.another()
        told = backend.apply(STATE, full=True).renamings
        assert told == {exposure.renaming for exposure in (MAIL, other, six)}
        assert not backend.apply(STATE, full=True).renamings
        assert scene.another().apply(Desired(kept=frozenset(Family)), full=True).renamings == {MAIL.renaming}

    def test_by_which_uplinks_an_earlier_run_let_guests_out_is_told_once(self, scene: Scene) -> None:
        """`lo` is there everywhere; by what has gone nothing goes on."""
        more = replace(STATE, uplinks=STATE.uplinks | {"lo"})
        assert not scene.another().apply(more, full=True).uplinks
        backend = scene.another()
        assert backend.apply(STATE, full=True).uplinks - STATE.uplinks == {"lo"}
        assert not backend.apply(more, full=True).uplinks
        assert not scene.another().apply(more, full=True).uplinks - more.uplinks
        for exposure in (MAIL, ROUTED):
            scene.another().apply(Desired(uplinks=more.uplinks).having([exposure]), full=True)
            backend = scene.another()
            assert "lo" in backend.apply(Desired(uplinks=STATE.uplinks).having([exposure]), full=True).uplinks

    def test_by_which_uplinks_a_route_to_another_bridge_let_guests_out_is_told(self, scene: Scene) -> None:
        more, elsewhere = STATE.uplinks | {"lo"}, replace(ROUTED, bridge="virbr9")
        scene.another().apply(Desired(uplinks=more).having([elsewhere]), full=True)
        result = scene.another().apply(Desired(uplinks=STATE.uplinks).having([ROUTED]), full=True)
        assert "lo" in result.uplinks

    def test_what_comes_is_mended_and_what_goes_is_none_of_it(self, scene: Scene) -> None:
        backend = scene.another()
        backend.apply(WITHOUT_DNS, full=False)
        result = backend.apply(STATE, full=False)
        assert (set(result.mended), result.damaged) == ({DNS}, frozenset())
        result = backend.apply(WITHOUT_DNS, full=False)
        assert (result.mended, result.damaged, result.changed) == (frozenset(), frozenset(), True)

    def test_what_an_imminent_guest_needs_is_no_exposure_until_it_runs(self, scene: Scene) -> None:
        before = replace(STATE, nats=frozenset(), imminent=frozenset({MAIL}))
        backend = scene.another()
        assert backend.apply(before, full=True).mended == STATE.exposures - {MAIL}
        assert not scene.another().apply(before, full=True).changed
        assert MAIL not in backend.counters(before)
        arrived = backend.apply(STATE, full=False)
        assert (set(arrived.mended), arrived.damaged) == ({MAIL}, frozenset())
        left = backend.apply(before, full=False)
        assert (left.mended, left.damaged, left.changed) == (frozenset(), frozenset(), True)

    def test_a_preview_tells_of_the_same_and_touches_nothing(self, scene: Scene) -> None:
        before = scene.ours()
        plan = scene.another().preview(STATE)
        assert (plan.mended, plan.changed, bool(plan.script)) == (STATE.exposures, True, True)
        assert scene.ours() == before
        scene.another().apply(STATE, full=True)
        assert not scene.another().preview(STATE).changed

    def test_the_text_is_given_without_a_look_at_the_kernel(self, scene: Scene) -> None:
        before = scene.ours()
        text = scene.another().render(STATE)
        assert all(str(target) in text for target in ("192.168.122.50", "2001:db8:5::50", "192.168.122.51"))
        assert scene.ours() == before

    def test_nothing_is_left_after_the_removal(self, scene: Scene) -> None:
        before = scene.ours()
        scene.another().apply(STATE, full=True)
        assert scene.another().remove().changed
        assert scene.ours() == before
        assert not scene.another().remove().changed

    def test_rules_that_went_elsewhere_go_from_here(self, scene: Scene) -> None:
        backend, before = scene.another(), scene.ours()
        backend.apply(STATE, full=True)
        assert not backend.apply_gates(STATE, full=True).faults
        assert not backend.leave().faults
        assert scene.ours() == before
        # That they went is no damage once they come back.
        result = backend.apply(STATE, full=True)
        assert (result.mended, result.damaged) == (STATE.exposures, frozenset())

    def test_where_nobody_else_filters_no_gate_is_made_beside_rules_elsewhere(self, scene: Scene) -> None:
        backend = scene.another()
        assert not backend.preview_gates(STATE).changed
        assert not backend.apply_gates(STATE, full=True).gates

    def test_what_guests_still_send_is_refused_and_that_is_no_damage(self, scene: Scene) -> None:
        backend = scene.another()
        backend.apply(STATE, full=True)
        backend.refuse([FLOW])
        result = backend.apply(STATE, full=True)
        assert (result.mended, result.damaged) == (frozenset(), frozenset())

    def test_a_change_by_others_is_stamped(self, scene: Scene) -> None:
        backend = scene.another()
        backend.apply(STATE, full=True)
        before = backend.stamp()
        assert backend.stamp() == before
        scene.wipe()
        assert backend.stamp() != before

    def test_where_rules_are_held_is_found_whoever_put_them_there(self, scene: Scene) -> None:
        assert not scene.another().held()
        backend = scene.another()
        backend.apply(replace(STATE, forwards=frozenset({WEB, DNS})), full=True)
        assert scene.another().held() == {Family.IPV4}
        backend.apply(Desired(kept=frozenset(Family)), full=True)
        assert scene.another().held() == set(Family)
        backend.remove()
        assert not scene.another().held()

    def test_the_rules_tell_where_the_host_is_confined(self, scene: Scene) -> None:
        backend = scene.another()
        backend.apply(STATE, full=True)
        assert not backend.confined()
        families = frozenset(Family)
        backend.apply(replace(STATE, confined=families, kept=families), full=True)
        assert scene.another().confined() == families

    def test_the_rules_tell_where_what_comes_in_is_confined(self, scene: Scene) -> None:
        """`lo` is there everywhere; what has gone has no setting that a later run could give back."""
        backend = scene.another()
        backend.apply(STATE, full=True)
        assert not backend.switched()
        switched = frozenset((family, "lo") for family in Family)
        backend.apply(replace(STATE, switched=switched, kept=frozenset(Family)), full=True)
        assert (scene.another().switched(), scene.another().confined()) == (switched, frozenset())
        backend.apply(replace(STATE, confined=frozenset(Family), kept=frozenset(Family)), full=True)
        assert not scene.another().switched()

    def test_sets_and_limits_are_there_once_and_go_with_the_rest(self, scene: Scene) -> None:
        backend, before = scene.another(), scene.ours()
        assert backend.apply(GUARDED, full=True).mended == GUARDED.exposures
        held = scene.ours()
        assert not backend.apply(GUARDED, full=True).changed
        assert not scene.another().apply(GUARDED, full=True).changed
        scene.wipe()
        assert backend.apply(GUARDED, full=False).damaged == GUARDED.exposures
        assert scene.ours() == held
        assert not any([*backend.dropped(GUARDED).by_exposure.values(), *backend.dropped(GUARDED).by_set.values()])
        backend.remove()
        assert scene.ours() == before

    def test_nothing_was_counted_at_first(self, scene: Scene) -> None:
        backend = scene.another()
        assert not any(backend.counters(STATE).values())
        backend.apply(STATE, full=True)
        assert backend.counters(STATE) == dict.fromkeys([WEB, DNS, SIX, MAIL], 0)

    def test_it_serves_every_family_and_finds_no_libvirt_where_there_is_none(self, scene: Scene) -> None:
        backend = scene.another()
        backend.apply(STATE, full=True)
        assert (dict(backend.unusable), backend.libvirt()) == ({}, Presence.NOTHING)
