#!/bin/sh
# Builds the initramfs of an emulated machine: initramfs.sh MODULES TARGET
#
# It lays the disks over each other, the last one on top, and what the machine writes goes to memory.
set -eu
modules=$1
target=$2
root=$target.d
mkdir -p "$root/bin" "$root/dev" "$root/modules" "$root/proc" "$root/root" "$root/sys" "$root/memory"
cp "$(command -v busybox)" "$root/bin/busybox"
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk overlay; do
    find "$modules" -name "$module.ko" -exec cp {} "$root/modules/" \;
    [ ! -e "$root/modules/$module.ko" ] || echo "$module" >>"$root/modules/order"
done
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module.ko"
done </modules/order
mount -t tmpfs -o size=75% tmpfs /memory
mkdir /memory/upper /memory/work
layers=
for disk in vda vdb vdc; do
    until [ -e "/dev/$disk" ]; do
        sleep 0.1
    done
    mkdir "/$disk"
    mount -t ext4 -o ro "/dev/$disk" "/$disk"
    layers=/$disk${layers:+:$layers}
done
mount -t overlay -o "lowerdir=$layers,upperdir=/memory/upper,workdir=/memory/work" overlay /root
mount --move /dev /root/dev
umount /proc
exec switch_root /root /usr/lib/systemd/systemd
INIT
chmod 0755 "$root/init"
(cd "$root" && find . | busybox cpio -o -H newc) >"$target"
rm -r "$root"
