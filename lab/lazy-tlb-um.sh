#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Times, on this machine's CPUs, what a lazy use of an mm costs under each policy: the kernel beside
# this file is a program (user-mode Linux), and its own benchmark runs at boot. Nothing is installed, and
# root is not needed:
#
#   sh lazy-tlb-um.sh [BOOTS [CPUS]]
#
# Without arguments: five boots, with all CPUs that there are, 64 at most. It prints a table and writes
# the samples to a file for results/, which has no name of the machine.

boots=${1:-5}
cpus=${2:-$(nproc)}
for number in "$boots" "$cpus"; do
	case $number in
	*[!0-9]* | 0*) echo "usage: sh lazy-tlb-um.sh [BOOTS [CPUS]]" >&2; exit 2 ;;
	esac
done
[ "$cpus" -le 64 ] || cpus=64
[ "$(uname -m)" = x86_64 ] || { echo "error: this kernel is a program for x86_64" >&2; exit 3; }

here=$(dirname "$0")
# As `cargo xtask report` knows them.
file=paired-kernel-um-$cpus-$(date +%s).json
said=$(mktemp) || exit 9
trap 'rm -f "$said"' EXIT

boot=1
while [ "$boot" -le "$boots" ]; do
	echo "boot $boot of $boots, $cpus CPUs" >&2
	timeout 300 "$here/linux" mem=2G ncpus="$cpus" initrd="$here/initramfs" con0=fd:0,fd:1 con=null \
		seccomp=on noreboot panic=-1 rdinit=/init \
		</dev/null >"$said.boot" 2>&1
	# As many lines as policies, of each thing on the most CPUs as well.
	if [ "$(grep -c "lazy_tlb_benchmark: what=.* cpus=$cpus " "$said.boot")" -lt 9 ]; then
		echo "error: boot $boot did not come to its end; it said at last:" >&2
		tail -n 5 "$said.boot" >&2
		rm -f "$said.boot"
		exit 7
	fi
	sed "s/^/boot=$boot /" "$said.boot" >>"$said"
	rm -f "$said.boot"
	boot=$((boot + 1))
done

awk -v command="cargo xtask bench kernel --arch um --variant default --bundle DIR; sh DIR/lazy-tlb-um.sh $boots $cpus" -v host="$(uname -r)" -v arch="$(uname -m)" -v json="$file" '
function quoted(text) { gsub(/["\\]/, "", text); return "\"" text "\"" }
function pair(name, value) { return quoted(name) ": " value }
function median(row, policy,    n, i, j, x, v) {
	n = count[row, policy]
	for (i = 1; i <= n; i++) {
		x = value[row, policy, i]
		for (j = i - 1; j && v[j] > x; j--)
			v[j + 1] = v[j]
		v[j + 1] = x
	}
	return sprintf("%.1f (%.1f..%.1f)", v[int((n + 1) / 2)], v[1], v[n])
}
FILENAME == "/proc/cpuinfo" {
	if (/^processor/)
		all++
	else if (/^model name/ && model == "")
		model = substr($0, index($0, ":") + 2)
	else if (/^flags/ && / hypervisor/)
		virtual = "true"
	next
}
match($0, /Linux version [^ ]+/) { kernel = substr($0, RSTART + 14, RLENGTH - 14) }
/lazy_tlb_benchmark: what=/ {
	for (i = 1; i <= NF; i++)
		if (split($i, part, "=") == 2)
			of[part[1]] = part[2]
	ns = of["ps_median"] / 1000
	row = of["what"] ", " of["cpus"] " CPUs, ns"
	if (!(row in seen))
		rows[++nr] = row
	seen[row]
	value[row, of["policy"], ++count[row, of["policy"]]] = ns
	samples = samples (samples == "" ? "" : ",\n") "    {" pair("policy", quoted(of["policy"])) ", " \
		pair("boot", of["boot"]) ", " pair("round", 1) ", " pair("what", quoted(of["what"])) ", " \
		pair("cpus", of["cpus"]) ", " pair("unit", "\"ns\"") ", " pair("value", ns) "}"
}
END {
	print "{\n  " pair("command", quoted(command)) ",\n  " pair("machine", "{" pair("arch", quoted(arch)) ", " \
		pair("cpus", all) ", " pair("cpu_model", quoted(model)) ", " \
		pair("virtual", virtual == "" ? "false" : virtual) ", " pair("host_kernel", quoted(host)) "}") ",\n  " \
		pair("guest", "\"um\"") ",\n  " pair("append", "\"\"") ",\n  " pair("kernel", quoted(kernel)) ",\n  " \
		pair("variant", "\"default\"") ",\n  " pair("clock", quoted("this machine\047s")) ",\n  " \
		pair("samples", "[\n" samples "\n  ]") "\n}" >json
	format = "| %-22s | %-26s | %-26s | %-26s |\n"
	printf format, "median (least..most)", "refcount", "handover", "shootdown"
	print "|---|---|---|---|"
	for (i = 1; i <= nr; i++)
		printf format, rows[i], median(rows[i], "refcount"), median(rows[i], "handover"), \
			median(rows[i], "shootdown")
}' /proc/cpuinfo "$said" || exit 9
echo
echo "A trip is a borrow and its return, a switch also the scheduler and two wake-ups, a drop the end of an mm."
echo "$file"
