"""What tests of forwards that are open for a while ask for."""

from typing import Any

import pytest

from fwdaemon.control.protocol import REFUSED, CallError
from tests.unit.daemon_scene import Scene

HOUR = 3600
OTHER = "web1: tcp *:8022 -> 192.168.122.50:22"


def wish(*ports: str, **more: Any) -> dict[str, Any]:
    return {"domain": "web1", "ports": list(ports), "sources": [], **more}


async def refusal(scene: Scene, **parameters: Any) -> str:
    with pytest.raises(CallError) as refused:
        await scene.ask("Open", **parameters)
    assert refused.value.name == REFUSED
    return "\n".join(refused.value.parameters["reasons"])
