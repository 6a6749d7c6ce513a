"""Where control groups are, whatever else is mounted under whatever name."""

from fwdaemon.kernel.listeners import hierarchies


def test_a_mount_of_any_name_hides_no_control_groups() -> None:
    others = (
        b"\x0cx /tmp/m tmpfs",
        b"none /tmp/a\xc2\x85b tmpfs",
        b"\r /tmp/c\xff tmpfs",
        b"cgroup2 /tmp/d tmpfs",
        b" /e f",
    )
    listed = b"".join(other + b" rw 0 0\n" for other in (*others, b"cgroup2 /sys/fs/cgroup cgroup2"))
    assert hierarchies(listed) == ["/sys/fs/cgroup"]
    assert hierarchies(b"") == []
