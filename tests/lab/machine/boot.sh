#!/bin/sh
# Becomes PID 1 of a whole machine: builds its root, says "ready PID", and turns into systemd.
#
#   boot.sh LOWER DIRECTORY...
#
# Run by world.sh in the machine's namespaces; its links are there already.
set -eu

# The process number the machine of the lab knows this shell by: its /proc is still the one in sight.
read -r pid _ </proc/self/stat
lower=$1
shift
root=/mnt/root

mount -t overlay lab -o "lowerdir=$lower,upperdir=/mnt/upper,workdir=/mnt/work" $root
mount -t proc proc $root/proc
# Only the settings of the network are the machine's own; all others, and SysRq, would reach beyond it.
mount --bind $root/proc/sys $root/proc/sys
mount --bind $root/proc/sys/net $root/proc/sys/net
# The journal tells boots apart by this number, which is that of the kernel.
cat /proc/sys/kernel/random/uuid >"/mnt/boot_id.$pid"
mount --bind "/mnt/boot_id.$pid" $root/proc/sys/kernel/random/boot_id
mount -o remount,bind,ro $root/proc/sys
if [ -e $root/proc/sysrq-trigger ]; then
    mount --bind $root/proc/sysrq-trigger $root/proc/sysrq-trigger
    mount -o remount,bind,ro $root/proc/sysrq-trigger
fi
mount -t sysfs sysfs $root/sys

mount -t tmpfs -o mode=0755 tmpfs $root/dev
mkdir $root/dev/net $root/dev/pts $root/dev/shm
while read -r device numbers; do
    # Two words.
    # shellcheck disable=SC2086
    mknod -m 0666 "$root/dev/$device" c $numbers
done <<DEVICES
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
net/tun 10 200
fuse 10 229
DEVICES
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs $root/dev/shm
: >$root/dev/console
mount --bind /mnt/console $root/dev/console

mount -t tmpfs -o mode=0755 tmpfs $root/run
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
for directory; do
    mkdir -p "$root$directory"
    mount --bind "$directory" "$root$directory"
    mount -o remount,bind,ro "$root$directory"
done

# systemd lives in version 2 alone, whose root is the group of this boot. Where the controllers are those of version 1,
# libvirt finds them beside it, as it needs some for containers.
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
while IFS=: read -r _ names _; do
    [ -n "$names" ] || continue
    mkdir "$root/sys/fs/cgroup/${names#name=}"
    mount -t cgroup -o "$names" cgroup "$root/sys/fs/cgroup/${names#name=}"
done </proc/self/cgroup

cd $root
pivot_root . mnt
cd /
umount -l /mnt
echo "ready $pid"
# Told that it is in a container, systemd leaves clocks, kernel modules and mounts of the machine around it alone.
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /usr/lib/systemd/systemd >/dev/console 2>&1 </dev/null
