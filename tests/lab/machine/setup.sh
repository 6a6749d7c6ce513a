#!/bin/sh
# Run once in a new image's chroot: makes of the installed Debian a machine of the lab.
set -eu

# A machine that has an identity has booted before, so systemd leaves the services as they are set here.
echo 6c6162000000400080000000006c6162 >/etc/machine-id
echo lab >/etc/hostname
printf '127.0.0.1 localhost lab\n::1 localhost\n' >/etc/hosts
: >/etc/resolv.conf
: >/etc/fstab
mkdir -p /var/log/journal

# Cockpit, firewalld and fail2ban are there for tests that want them. Sockets with TLS need certificates.
systemctl disable cockpit.socket fail2ban.service firewalld.service libvirtd-tls.socket libvirtd-tcp.socket
# What would reach beyond the machine: its devices, modules and kernel are those of the machine the lab runs on.
systemctl mask systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
    systemd-udev-trigger.service systemd-modules-load.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount dev-hugepages.mount dev-mqueue.mount
# What nobody waits for, and /tmp, which is there before systemd is.
systemctl mask tmp.mount console-getty.service getty.target apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer fstrim.timer man-db.timer logrotate.timer systemd-tmpfiles-clean.timer systemd-networkd.service \
    systemd-timesyncd.service

# A test makes the networks it wants.
rm -rf /etc/libvirt/qemu/networks
mkdir /etc/libvirt/qemu/networks
printf '\nsecurity_driver = "none"\nnamespaces = []\n' >>/etc/libvirt/qemu.conf
printf '\nsecurity_driver = "none"\n' >>/etc/libvirt/lxc.conf
# libvirt asks each emulator what it can do, half a second a piece.
for emulator in /usr/bin/qemu-system-*; do
    [ "${emulator##*-}" = x86_64 ] || rm -f "$emulator"
done

# This kernel may lack the checksum action libvirt's nftables backend asks `tc` for; no guest of the lab needs it.
mkdir /usr/share/lab
tc=$(readlink -f "$(command -v tc)")
dpkg-divert --local --rename --divert "$tc.real" "$tc"
printf '#!/bin/sh\ncase " $* " in *" csum "*) exit 0 ;; esac\nexec %s.real "$@"\n' "$tc" >"$tc"
chmod 0755 "$tc"

# libvirt would ask systemd-machined for control groups, and then look for them in version 1, if that has the
# controllers. Without it libvirt makes them itself.
systemctl mask systemd-machined.service
dpkg-divert --local --rename --divert /usr/share/lab/org.freedesktop.machine1.service \
    /usr/share/dbus-1/system-services/org.freedesktop.machine1.service

# libvirt 11.3 writes its rules to nftables everywhere but in Debian; 9.0 of Debian 12 ignores this file.
printf '\nfirewall_backend = "nftables"\n' >>/etc/libvirt/network.conf
