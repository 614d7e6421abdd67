#!/bin/sh
# Makes a guest's disk of a Debian system: $1 is its archive, $2 the image, $3 how large that is. Run by fakeroot, in an
# empty folder.
set -eu
here=$(dirname "$0")
PATH=$PATH:/usr/sbin:/sbin
mkdir root
tar -xf "$1" -C root --exclude='./dev/*'
units=root/etc/systemd/system

# Not a first boot, at which systemd would ask and enable everything.
echo 6c617a79746c62000000000000000001 > root/etc/machine-id
echo lazy-tlb > root/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 lazy-tlb\n' > root/etc/hosts

install -m 644 "$here/lazy-tlb-tests.service" "$units/"
mkdir -p "$units/multi-user.target.wants"
ln -s ../lazy-tlb-tests.service "$units/multi-user.target.wants/"
# They would write to the console, or only take time.
for unit in serial-getty@ttyS0.service serial-getty@ttyAMA0.service getty@tty1.service apt-daily.timer \
    apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-firstboot.service systemd-networkd-wait-online.service; do
    ln -sf /dev/null "$units/$unit"
done
# Its test starts it.
rm -f "$units/multi-user.target.wants/postgresql.service"

mke2fs -q -t ext4 -d root "$2" "$3"
