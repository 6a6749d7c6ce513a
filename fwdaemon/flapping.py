"""Keeps the audit readable when something flaps: after some lines about one opening, their number is told instead.

Pure; the time is given.
"""

from dataclasses import dataclass

from fwdaemon.desired import Opening, Owner

# So many lines about one opening within so many seconds are news; what comes after is counted.
LINES = 6
WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Flapped:
    """An opening changed `number` more times in `seconds`; the last of them was `action`, for `cause`."""

    opening: Opening
    number: int
    seconds: float
    action: str
    cause: str


@dataclass(slots=True)
class _Window:
    since: float
    lines: int = 0
    counted: int = 0
    last: tuple[Opening, str, str] | None = None


class Flapping:
    """Counts the lines about each opening, told apart by owner and where it listens."""

    def __init__(self, lines: int = LINES, window_s: float = WINDOW_S) -> None:
        self._lines = lines
        self._window_s = window_s
        self._windows: dict[tuple[Owner, str], _Window] = {}

    def admit(self, opening: Opening, action: str, cause: str, now: float) -> bool:
        """Tell whether a line is to be written; otherwise it is counted. Ask for `due` first."""
        window = self._windows.setdefault((opening.owner, opening.listens_at()), _Window(now))
        if window.lines < self._lines:
            window.lines += 1
            return True
        window.counted += 1
        window.last = (opening, action, cause)
        return False

    def due(self, now: float) -> list[Flapped]:
        """Give what was counted in windows that are over, and forget these."""
        over = [key for key, window in self._windows.items() if now >= window.since + self._window_s]
        closed = [self._windows.pop(key) for key in over]
        return [
            Flapped(window.last[0], window.counted, now - window.since, *window.last[1:])
            for window in closed
            if window.last is not None
        ]

    @property
    def ends(self) -> float | None:
        """When something counted is due to be told; `None` where nothing is."""
        counting = (window.since + self._window_s for window in self._windows.values() if window.counted)
        return min(counting, default=None)
