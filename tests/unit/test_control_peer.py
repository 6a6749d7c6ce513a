"""Who is at the other end, as the kernel says, and what that allows."""

import os
import socket

from fwdaemon.control.listener import Peer


def test_the_kernel_tells_who_it_is() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert Peer.of(ours) == Peer(os.getpid(), os.geteuid(), frozenset([os.getegid(), *os.getgroups()]))


def test_root_and_members_may_read() -> None:
    root, member, stranger = Peer(1, 0, frozenset({0})), Peer(2, 1000, frozenset({7, 8})), Peer(3, 1001, frozenset({9}))
    assert [peer.may_read(8) for peer in (root, member, stranger)] == [True, True, False]
    assert [peer.may_read(None) for peer in (root, member, stranger)] == [True, False, False]
    assert [peer.is_root for peer in (root, member, stranger)] == [True, False, False]
