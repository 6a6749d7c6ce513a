"""Figure: wiped, and healed, while something else goes on."""

from contextlib import ExitStack
from typing import Final

from bench.disturbances import DISTURBANCES, Disturbance
from bench.figure import Figure, Series, Unit, Want
from bench.setting import Setting
from bench.wiped import BUSY, EVERYTHING, OURS, Wiped, because, wipe_text

_FORWARDS: Final = 1000
_RUNS, _QUICK_RUNS = 3, 2
_LIMIT_MS: Final = {True: 1300.0, False: 100.0}
_NOTES = f"""\
`{{wipe}}`{{ours}} on a host with {_FORWARDS:,} forwards while something else goes on, which began a second before. Each
disturbance has a host of its own, and the hosts take turns. The time is what a client outside sees, from its last
connection that was answered to the first that is answered again. {{alone}}Memory is what the daemon and its
helpers have resident just after."""
_OURS = f", or where that would take the disturbance too, `{wipe_text(OURS)}`,"
_ALONE = """\
`nft -f` alone puts our table back after the same wipe, some times,
while the daemon is stopped; where forwards to a guest go, connections of that guest are listed meanwhile, as the daemon
does. When nothing else in the network namespace tracks connections any more, the kernel walks through all it tracks
before it takes the first rule that does, and for each listing it walks through them too. """


def measure(setting: Setting) -> Figure:
    """Measure on one host for each disturbance."""
    chosen = [each for each in DISTURBANCES if not (setting.legacy and each.nftables_only)]
    with ExitStack() as at_end:
        hosts = [_Disturbed(at_end, setting, each) for each in chosen]
        # The first turn warms up, and has `nft` put rules back: with very many connections, each turn takes long.
        for turn in range(1 + setting.at_most(_QUICK_RUNS if setting.quick else _RUNS)):
            for host in hosts:
                host.take_turn(counted=turn > 0)
    series = [line for host in hosts for line in host.series()]
    wants = [host.want() for host in hosts]
    notes = _NOTES.format(
        wipe=wipe_text(EVERYTHING[setting.legacy]),
        ours="" if setting.legacy else _OURS,
        alone="" if setting.legacy else _ALONE,
    )
    title = "Wiped to healed while something else goes on"
    return Figure("disturbed", title, str(setting.flavour), notes, tuple(series), tuple(wants))


class _Disturbed:
    """One host with its disturbance, and what was measured on it."""

    def __init__(self, at_end: ExitStack, setting: Setting, disturbance: Disturbance) -> None:
        scene = at_end.enter_context(setting.scene())
        disturbance.prepare(scene)
        self._disturbance = disturbance
        self._legacy = setting.legacy
        self._wipe = OURS if disturbance.ours_only else EVERYTHING[setting.legacy]
        self._wiped = Wiped(scene, _FORWARDS, disturbance.start)
        self._healed: list[float] = []
        self._alone: list[float] = []
        self._memory: list[float] = []

    def take_turn(self, *, counted: bool) -> None:
        """Wipe once with the daemon; where it does not count, and `nft` can put everything back, with that alone."""
        begin = self._disturbance.begin
        if not counted and not self._legacy:
            self._alone = self._wiped.by_hand(self._wipe, begin(self._wiped), self._disturbance.listed)
        healed = self._wiped.heal_once(self._wipe, begin(self._wiped))
        if counted:
            self._healed.append(healed)
            self._memory.append(self._wiped.memory().rss)

    def series(self) -> list[Series]:
        """Give the lines of the table."""
        label = self._disturbance.label
        found = [
            Series(label, Unit.SECONDS, {_FORWARDS: self._healed}, worst=True),
            Series(f"{label}: `nft -f` alone", Unit.SECONDS, {_FORWARDS: self._alone}, worst=True),
            Series(f"{label}: memory", Unit.BYTES, {_FORWARDS: self._memory}, worst=True),
        ]
        return [series for series in found if series.samples[_FORWARDS]]

    def want(self) -> Want:
        """Say what is wanted of it."""
        limit = _LIMIT_MS[self._legacy]
        healed, alone = ([1000 * seconds for seconds in samples] for samples in (self._healed, self._alone))
        text = f"{self._disturbance.label}: at most {limit:g} ms{'' if self._legacy else BUSY}"
        return Want(text, healed, limit, " ms", because=because(healed, alone))
