"""The methods that look at the whole host: `Explain`, `Check`, `Plan` and `Inventory` of `kvm.portfwd.Manager`.

Each is answered by a process of its own, `fwdaemon.commands.answer`, and one at a time: they list all rules and
domains, for which no pass is to wait. They change nothing.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from fwdaemon.control.listener import Peer
from fwdaemon.control.protocol import REFUSED, CallError, Method, Parameters, encoded, read_reply
from fwdaemon.errors import KernelError, PortfwdError
from fwdaemon.kernel.process import Companion, Worker

# What answers, and how many may wait for it; root always finds room beside the members of the group.
_ANSWER: Final = "fwdaemon.commands.answer"
_MOST_WAITING: Final = 8
_DROP_IN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.toml", re.ASCII)
_TEXT: Final = re.compile(r".*", re.DOTALL)


class Questions:
    """The methods, for the configuration whose file `main` gives."""

    def __init__(self, main: Callable[[], Path]) -> None:
        self._main, self._worker, self._waiting = main, Worker("questions"), 0

    def methods(self) -> dict[str, Method]:
        """Give them."""
        draft = {"drop_in": _DROP_IN, "text": _TEXT}
        check, plan = (Method(to=partial(self._ask, name), texts=draft) for name in ("Check", "Plan"))
        explain = Method(to=partial(self._ask, "Explain"), takes=("connection",), texts={"source": _TEXT})
        return {
            "Explain": explain,
            "Check": check,
            "Plan": plan,
            "Inventory": Method(to=partial(self._ask, "Inventory")),
        }

    async def close(self, patience: float) -> bool:
        """End the thread, or leave it where it waits for an answer."""
        return await self._worker.close(patience)

    async def _ask(self, name: str, parameters: Parameters, peer: Peer) -> bytes:
        if self._waiting >= (_MOST_WAITING if peer.is_root else _MOST_WAITING // 2):
            raise CallError(REFUSED, {"reasons": ["others wait for an answer of this kind already; ask again soon"]})
        self._waiting += 1
        try:
            line = json.dumps([name, parameters])
            answered = await self._worker.submit(partial(_asked, str(self._main()), line))
        except (PortfwdError, OSError) as error:  # it hung, or no process or no descriptor is to be had
            raise CallError(REFUSED, {"reasons": [str(error)]}) from error
        finally:
            self._waiting -= 1
        return encoded(**read_reply(answered.encode()).parameters)


def _asked(main: str, line: str) -> str:
    # What a client asks is no work for guests, and takes nothing of their share.
    answering = Companion(_ANSWER, main, {}, counted=False)
    try:
        if not (answered := answering.exchange(line)):
            raise KernelError("the process that looks at the host ended without an answer; see the journal")
    finally:
        answering.close()
    return answered
