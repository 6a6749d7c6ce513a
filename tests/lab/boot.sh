#!/bin/sh
# PID 1 of a lab host: builds its root and its links, says "ready PID", and then only waits for its owner to end.
#
#   boot.sh LOWER DIRECTORY...
#
# LOWER is the Debian to run; the host's own writes go to memory and are gone with it. Each DIRECTORY of the machine is
# shown at the same place, read-only. Runs in fresh mount, net, uts, ipc, cgroup and pid namespaces.
set -eu

# The process number the machine knows this shell by: its /proc is still the one in sight.
read -r pid _ </proc/self/stat
lower=$1
shift
links=${0%/*}
root=/mnt/root

mount -t tmpfs -o mode=0755 lab /mnt
mkdir /mnt/upper /mnt/work $root
mount -t overlay lab -o "lowerdir=$lower,upperdir=/mnt/upper,workdir=/mnt/work" $root
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount --rbind /dev $root/dev
mount -t tmpfs tmpfs $root/dev/shm
# Guests are emulated in software, the same on a machine without /dev/kvm as on one where it does not work. The
# emulator's user must not even be able to open it, or libvirt asks the emulator again and again what it can do.
: >/mnt/no-kvm
chmod 0 /mnt/no-kvm
[ ! -e $root/dev/kvm ] || mount --bind /mnt/no-kvm $root/dev/kvm
mount -t tmpfs -o mode=0755 tmpfs $root/run
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
mkdir $root/run/lock
for directory; do
    mkdir -p "$root$directory"
    mount --bind "$directory" "$root$directory"
    mount -o remount,bind,ro "$root$directory"
done

# The roots of the lab's own control groups, so what libvirt makes there is removed with them.
groups=$root/sys/fs/cgroup
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 $groups
    # Version 2 hands controllers on only from groups without processes.
    mkdir $groups/init
    echo 0 >$groups/init/cgroup.procs
    for controller in $(cat $groups/cgroup.controllers); do
        echo "+$controller" >$groups/cgroup.subtree_control || :
    done
else
    mount -t tmpfs -o mode=0755 tmpfs $groups
    while IFS=: read -r _ names _; do
        [ -n "$names" ] || continue
        mkdir "$groups/${names#name=}"
        mount -t cgroup -o "$names" cgroup "$groups/${names#name=}"
    done </proc/self/cgroup
fi

cd $root
pivot_root . mnt
cd /
umount -l /mnt
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
# Nobody answers for names in here: know the own one, and fail at once for all others.
echo lab >/proc/sys/kernel/hostname
rm -f /etc/hosts /etc/resolv.conf
printf '127.0.0.1 localhost lab\n::1 localhost\n' >/etc/hosts
: >/etc/resolv.conf

# Duplicate address detection would hold every IPv6 address back for a second or two.
for scope in all default; do
    echo 0 >/proc/sys/net/ipv6/conf/$scope/accept_dad
done
ip netns add outside
ip netns exec outside sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad'
for link in eth0 eth1; do
    ip link add $link type veth peer name $link netns outside
done
ip -batch "$links/links.host"
ip -n outside -batch "$links/links.outside"
# Once the way there is up.
ip route add default via 198.51.100.2
ip route add default via 2001:db8::2

echo "ready $pid"
# The kernel reaps orphans while their end is ignored here (a shell cannot be told to: it needs to hear of its own
# children). At end of file this ends, and with PID 1 everything in the host.
exec env --ignore-signal=CHLD cat >/dev/null
