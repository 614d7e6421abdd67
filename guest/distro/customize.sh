#!/bin/sh
# Makes a guest of a Debian system in a folder; mmdebstrap runs it.
set -eu
here=$(dirname "$0")
root=$1
install -m 644 "$here/lazy-tlb-tests.service" "$root/etc/systemd/system/"
echo lazy-tlb > "$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 lazy-tlb\n' > "$root/etc/hosts"
chroot "$root" systemctl enable lazy-tlb-tests.service
# They would write to the console, or only take time.
chroot "$root" systemctl mask serial-getty@ttyS0.service serial-getty@ttyAMA0.service getty@tty1.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-networkd-wait-online.service
# The test of it starts it.
chroot "$root" systemctl disable postgresql.service
