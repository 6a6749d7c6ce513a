"""The helper: a program of its own that works on the legacy tables of one family, `… -m fwdaemon.legacy.helper 4`.

It answers requests (`fwdaemon.legacy.wire`) on standard input until that ends, and with it whoever started it. Signals
to end it are ignored, since it is of use until its owner is done. After the library has refused a rule it answers, and
ends, because nobody knows what state the library is in then.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from fwdaemon.legacy.errors import HelperError, LibraryError
from fwdaemon.model import Family

Do = Callable[[Mapping[str, Any]], Any]


def _prepared(family: Family) -> Do:
    """Load the library, which takes 250 ms; where that cannot be done, that is the answer to everything."""
    try:
        from fwdaemon.legacy.operations import Operations  # noqa: PLC0415  its absence is no reason to fall silent

        return Operations(family).do
    except Exception as error:  # noqa: BLE001  the library does much while it is imported, and raises anything
        reason = f"python-iptables cannot be used: {error}"

    def refuse(_: Mapping[str, Any]) -> Any:
        raise LibraryError(reason)

    return refuse


def _answer(do: Do, request: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return {"ok": do(request)}
    except HelperError as error:
        return {"error": str(error), "final": error.final, "unusable": error.unusable}


def _serve(do: Do, requests: Iterable[str], answers: TextIO) -> None:
    for line in requests:
        answer = _answer(do, json.loads(line))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer.get("final"):
            return


def _own_channels() -> tuple[TextIO, TextIO]:
    """Take standard input and output for ourselves alone: the library, and what it starts, get nothing and nowhere."""
    requests, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    return os.fdopen(requests, encoding="utf-8"), os.fdopen(answers, "w", encoding="utf-8")


def main() -> None:
    """Serve the family named on the command line until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    requests, answers = _own_channels()
    _serve(_prepared(Family(int(sys.argv[1]))), requests, answers)


if __name__ == "__main__":
    main()
