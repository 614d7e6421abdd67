#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Runs `perf bench sched lazy-tlb` in all its modes and the kernel's own benchmark, in turn and again and
# again, on the kernel that is running, and writes down what they print and what the kernel counts meanwhile.
# To be run once on each of the three boots, as root, while the machine has nothing else to do:
#
#   sh lazy-tlb-lab.sh [ROUNDS]
#
# A round takes ten seconds; without ROUNDS there are ten. PERF= names another perf than the one beside
# this file. The file that comes out is for `cargo xtask lab --import`, and has no name of the machine.

rounds=${1:-10}
# Tests put another one here.
root=${LAZY_TLB_ROOT:-}

die() {
	printf 'error: %s\n  remedy: %s\n' "$1" "$2" >&2
	exit 1
}

case $rounds in
'' | *[!0-9]* | 0) die "ROUNDS is '$rounds', no positive number" "leave it out" ;;
esac

[ "$(id -u)" = 0 ] ||
	die "only root can mount what is read here, and run perf on all CPUs" "run this as root"

grep -q '^lazy_tlb_final_drops ' "$root/proc/vmstat" ||
	die "this kernel has no lazy_tlb_* counters in /proc/vmstat" \
		"boot one with CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST and CONFIG_VM_EVENT_COUNTERS"

parameter=$root/sys/module/kernel/parameters/lazy_tlb
policy=$(cat "$parameter" 2>/dev/null)
[ -n "$policy" ] ||
	die "there is no $parameter" "boot a kernel with CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST, with sysfs"

asked=
cmdline=
for word in $(cat "$root/proc/cmdline"); do
	case $word in
	lazy_tlb=*) asked=${word#*=} ;;
	# Of no matter here, and other people's business.
	BOOT_IMAGE=* | initrd=* | root=* | resume=* | nfsroot=* | ip=* | *[Uu][Uu][Ii][Dd]* | *://*) continue ;;
	esac
	cmdline="$cmdline $word"
done
[ -z "$asked" ] || [ "$asked" = "$policy" ] ||
	die "lazy_tlb=$asked is on the command line, and the policy in force is $policy" \
		"boot with lazy_tlb=refcount, lazy_tlb=shootdown or lazy_tlb=handover"

beside=$(dirname "$0")/perf
[ -n "$PERF" ] || { [ -x "$beside" ] && PERF=$beside; } || PERF=$(command -v perf) ||
	die "there is no perf" "put the one that was built with this kernel beside this file"
"$PERF" bench sched 2>&1 | grep -q lazy-tlb ||
	die "$PERF has no \`bench sched lazy-tlb\`" \
		"put the perf that was built with this kernel beside this file, or name it with PERF="

# What tells the machine and its state.
facts() {
	echo "fact policy $policy"
	echo "fact started $started"
	echo "fact machine $(uname -m)"
	echo "fact release $(uname -r)"
	echo "fact version $(uname -v)"
	echo "fact cmdline$cmdline"
	for file in proc/loadavg sys/devices/system/cpu/online sys/devices/system/cpu/smt/active \
		sys/devices/system/node/online sys/devices/system/cpu/cpuidle/current_driver \
		sys/devices/system/cpu/cpu0/cpufreq/scaling_governor \
		sys/kernel/debug/x86/tlb_skip_lazy_cpus; do
		[ ! -r "$root/$file" ] || echo "fact $file $(cat "$root/$file")"
	done
	# Every CPU, and each other line once.
	awk '/^processor/ || (/^(vendor_id|model name|cpu[ \t]*:|CPU implementer|CPU part|flags)/ &&
	     !seen[$0]++) { print "cpuinfo " $0 }' "$root/proc/cpuinfo"
}

# run MODE OPTION...
run() {
	mode=$1
	shift
	set -- bench -f simple sched lazy-tlb -i 1 "$@"
	echo "run $round $mode perf $*"
	sed -n 's/^lazy_tlb_/before &/p' "$root/proc/vmstat"
	output=$("$PERF" "$@" 2>&1)
	status=$?
	printf '%s\n' "$output" | sed 's/^/perf /'
	sed -n 's/^lazy_tlb_/after &/p' "$root/proc/vmstat"
	echo "status $status"
}

# What the module prints into the kernel's log, after a line of our own; that it does not stay loaded
# is its way.
in_kernel() {
	mark="lazy-tlb-lab.sh $started round $round"
	echo "<6>$mark" >"$root/dev/kmsg"
	modprobe -q lazy_tlb_benchmark 2>/dev/null
	dmesg | awk -v mark="$mark" -v round="$round" '
		seen && sub(/^.*lazy_tlb_benchmark: /, "") { print "kernel " round " " $0 }
		index($0, mark) { seen = 1 }'
}

measure() {
	echo "begin 1"
	facts
	round=1
	while [ "$round" -le "$rounds" ]; do
		echo "round $round of $rounds" >&2
		run threads
		run futex --futex
		run process --process
		run flush --flush
		run exit --exit
		in_kernel
		round=$((round + 1))
	done
	echo "end"
}

started=$(date +%s)
file=lazy-tlb-$policy-$started.txt
measure | sed 's/^/lazy-tlb-lab: /' >"$file.part" && mv "$file.part" "$file" ||
	die "cannot write $file" "go to a folder that can be written to"
echo "$file"
