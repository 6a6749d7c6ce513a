#!/bin/sh
# PID 1 around a whole machine: holds its disk and its network, boots it, and boots it again when it reboots.
#
#   world.sh LOWER DIRECTORY...
#
# LOWER is the Debian to run; what the machine writes goes to memory, outlasts its reboots, and is gone with this
# process. Each DIRECTORY is shown to it at the same place, read-only. Runs in fresh mount, net, uts, ipc, cgroup and pid
# namespaces; this network namespace is what the machine finds outside.
set -eu

boot=${0%/*}/boot.sh
links=${0%/*}/..
mount -t tmpfs -o mode=0755 lab /mnt
mkdir /mnt/upper /mnt/work /mnt/root /mnt/groups
: >/mnt/console
# `ip netns` keeps its names there.
mount -t tmpfs -o mode=0755 tmpfs /run

# A group of its own for each boot, so that a machine begins without any. Controllers are handed on only from groups
# without processes.
mount -t cgroup2 cgroup2 /mnt/groups
mkdir /mnt/groups/world
echo 0 >/mnt/groups/world/cgroup.procs
for controller in $(cat /mnt/groups/cgroup.controllers); do
    echo "+$controller" >/mnt/groups/cgroup.subtree_control || :
done

# Duplicate address detection would hold every IPv6 address back for a second or two.
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad

connect() {
    ip netns add machine
    ip netns exec machine sh -c 'for scope in all default; do echo 0 >/proc/sys/net/ipv6/conf/$scope/accept_dad; done'
    for link in eth0 eth1; do
        ip link add $link type veth peer name $link netns machine
    done
    ip -batch "$links/links.outside"
    ip -n machine -batch "$links/links.host"
    # Once the way there is up.
    ip -n machine route add default via 198.51.100.2
    ip -n machine route add default via 2001:db8::2
}

disconnect() {
    ip link delete eth0
    ip link delete eth1
    ip netns delete machine
    find /mnt/groups/boot -depth -type d -exec rmdir {} +
}

# Boots the machine once, and waits for its end. reboot(2): to the parent of a process namespace, PID 1 of one that
# rebooted was killed by SIGHUP.
run_once() {
    connect
    mkdir /mnt/groups/boot
    status=0
    (
        echo 0 >/mnt/groups/boot/cgroup.procs
        exec unshare --mount --uts --ipc --pid --cgroup --fork --kill-child -- \
            nsenter --net=/run/netns/machine -- /bin/sh "$boot" "$@"
    ) &
    { wait $!; } 2>/dev/null || status=$?
    disconnect
    [ "$status" = 129 ]
}

(
    while run_once "$@"; do :; done
    echo "ended $status"
) &
# The kernel reaps orphans while their end is ignored here. At end of file this ends, and with PID 1 everything inside.
exec env --ignore-signal=CHLD cat >/dev/null
