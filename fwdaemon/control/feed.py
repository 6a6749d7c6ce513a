"""What those hear who watch: that something changed, and the last changes of openings. On the loop's thread only."""

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Final, TypeAlias

from fwdaemon.account import Change

_MOST: Final = 256

Dated: TypeAlias = tuple[datetime, Change]


class Subscription:
    """One that watches. Who does not take what there is loses the oldest, and nothing waits for it."""

    def __init__(self) -> None:
        self._changes: deque[Dated] = deque(maxlen=_MOST)
        self._missed = 0
        self._something = asyncio.Event()

    def tell(self, at: datetime, changes: Sequence[Change]) -> None:
        """Add what changed, which may be no opening."""
        kept = len(self._changes)
        self._changes.extend((at, change) for change in changes[-_MOST:])
        self._missed += kept + len(changes) - len(self._changes)
        self._something.set()

    async def wait(self) -> None:
        """Wait until there is something new."""
        await self._something.wait()

    def take(self) -> tuple[list[Dated], int]:
        """Give what there is, and how many changes were lost."""
        taken, missed = list(self._changes), self._missed
        self._changes.clear()
        self._missed = 0
        self._something.clear()
        return taken, missed


class Feed:
    """Everybody who watches; `revision` counts what they were told."""

    def __init__(self) -> None:
        self.revision = 0
        self._subscriptions: set[Subscription] = set()

    def publish(self, at: datetime, changes: Sequence[Change]) -> None:
        """Tell everybody."""
        self.revision += 1
        for subscription in self._subscriptions:
            subscription.tell(at, changes)

    def subscribe(self) -> Subscription:
        """Begin to watch; `leave` ends it."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Watch no more."""
        self._subscriptions.discard(subscription)
