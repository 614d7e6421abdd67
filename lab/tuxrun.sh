#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# The three boots under tuxrun, in QEMU: a rehearsal of a fleet's job. Its counts mean something; where
# QEMU emulates the CPU, its times do not. QEMU 7.2 lets the guest crash in the selftest torture, after the
# measurement (CAVEATS.md says why).
#
#   cargo xtask lab --config FILE --format tar --out DIR
#   sh lab/tuxrun.sh DIR [DEVICE [IMAGE]]
#
# DEVICE is qemu-x86_64 if it is not given, IMAGE (in DIR/build) arch/x86/boot/bzImage.
# Afterwards: cargo xtask lab --import lazy-tlb-tuxrun-*.log

dir=$(cd "${1:?which folder did cargo xtask lab write?}" && pwd) || exit
device=${2:-qemu-x86_64}
image=${3:-arch/x86/boot/bzImage}

tar -C "$dir" -cJf "$dir/lab.tar.xz" lab || exit
for policy in refcount shootdown handover; do
	tuxrun --device "$device" --kernel "$dir/build/$image" --modules "$dir"/build/linux-*.tar.xz \
		--overlay "file://$dir/lab.tar.xz" --boot-args "rw lazy_tlb=$policy" \
		--timeouts boot=15 commands=45 --log-file - -- sh /lab/job.sh |
		tee "lazy-tlb-tuxrun-$policy.log"
done
