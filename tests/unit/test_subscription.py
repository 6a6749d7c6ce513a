"""A pause leaves what comes in the meantime in the kernel, and nothing of it is lost for that."""

import asyncio
import socket

from fwdaemon.kernel.netlink import Subscription

TURNS = 20


def test_a_pause_puts_reading_off_and_loses_nothing() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.settimeout(0)
        read: list[bytes] = []
        both = asyncio.Event()

        def take(source: socket.socket) -> None:
            read.append(source.recv(10))
            if len(read) == 1:
                subscription.pause(0.2)
            else:
                both.set()

        subscription = Subscription(lambda: ours, take)
        subscription.start()
        theirs.send(b"1")
        theirs.send(b"2")
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert read == [b"1"]
        await asyncio.wait_for(both.wait(), 10)
        assert read == [b"1", b"2"]
        subscription.pause(0)
        subscription.close()
        theirs.close()

    asyncio.run(scenario())
