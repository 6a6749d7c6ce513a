"""Who asked for the configuration to be read again, and waits to hear what came of it. On the loop's thread only.

Whoever asks while it is being read is answered by the next time. A configuration that is right is only worth telling
once the kernel was brought to it.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fwdaemon.errors import Problem


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What came of it: `problems` of a configuration that was refused, or why the kernel does not hold it yet."""

    problems: tuple[Problem, ...] = ()
    failure: str = ""


class Reloads:
    """Asks for a reload by calling `wake`, and answers those who asked."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._asked: list[asyncio.Future[Reloaded]] = []
        self._begun: list[asyncio.Future[Reloaded]] = []

    async def ask(self) -> Reloaded:
        """Have the configuration read again, and wait for what comes of it."""
        answer = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        self._wake()
        outcome: Reloaded = await answer
        return outcome

    def begin(self) -> None:
        """Say that the configuration is read now."""
        self._begun += self._asked
        self._asked = []

    def refused(self, problems: Iterable[Problem]) -> None:
        """Say that it is wrong, and the old one stays."""
        self._answer(Reloaded(problems=tuple(problems)))

    def looked(self, failure: str = "") -> None:
        """Say that the kernel was brought to it, or why not."""
        self._answer(Reloaded(failure=failure))

    def _answer(self, outcome: Reloaded) -> None:
        begun, self._begun = self._begun, []
        for answer in begun:
            if not answer.done():  # who asked may have gone
                answer.set_result(outcome)
