#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Has perf compare the policies in all its modes on the kernel that is running, and writes down what it
# says and what machine this is. As root, while the machine has nothing else to do:
#
#   sh lazy-tlb-lab.sh [ROUNDS]
#
# A round takes a minute; without ROUNDS there are ten. PERF= names another perf than the one beside this
# file. The file that comes out is for `cargo xtask lab --import`, and has no name of the machine.

rounds=${1:-10}
perf=${PERF:-$(dirname "$0")/perf}
# Tests put another one here.
root=${LAZY_TLB_ROOT:-}

measure() {
	echo "lazy-tlb-lab: rounds $rounds"
	echo "lazy-tlb-lab: machine $(uname -m)"
	echo "lazy-tlb-lab: release $(uname -r)"
	# Every CPU, and each other line once.
	awk '/^processor/ || (/^(vendor_id|model name|cpu[ \t]*:|CPU implementer|CPU part|flags)/ &&
	     !seen[$0]++) { print "lazy-tlb-cpuinfo: " $0 }' "$root/proc/cpuinfo"
	"$perf" bench -f simple sched lazy-tlb -i "$rounds" --compare refcount,handover,shootdown 2>&1 |
		sed 's/^/lazy-tlb-perf: /'
}

file=lazy-tlb-$(date +%s).txt
measure >"$file.part"
# perf ends with the counters where nothing went wrong, and else says why itself.
tail -n 1 "$file.part" | grep -q 'lazy-tlb-perf: vmstat' || {
	echo "error: perf did not come to its end; what there is is in $file.part" >&2
	sed -n 's/^lazy-tlb-perf: /  /p' "$file.part" | tail -n 5 >&2
	exit 1
}
mv "$file.part" "$file" || exit 1
echo "$file"
