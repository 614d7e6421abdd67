#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# What a job of a fleet runs on each boot, as root: the measurement, whose file goes to the console
# (`cargo xtask lab --import` takes it out of the log), and the selftests. Under LAVA each is a test case.

cd "$(dirname "$0")" || exit 1
lab=$(pwd)
failed=0

result() {
	echo "$1: $2"
	[ "$2" != fail ] || failed=1
	! command -v lava-test-case >/dev/null || lava-test-case "$1" --result "$2"
}

if file=$(cd "${TMPDIR:-/tmp}" && file=$(sh "$lab/lazy-tlb-lab.sh" "$@") && echo "$PWD/$file"); then
	cat "$file"
	result measurement pass
else
	result measurement fail
fi

log=$(mktemp) || exit 1
for test in selftests/*; do
	{
		"./$test" 2>&1
		echo $? >"$log.status"
	} | tee "$log"
	case $(cat "$log.status") in
	# The harness ends like this as well where every test was skipped.
	0) if grep -q '^# Totals: pass:0 .* skip:[1-9]' "$log"; then outcome=skip; else outcome=pass; fi ;;
	4) outcome=skip ;;
	*) outcome=fail ;;
	esac
	result "lazy_tlb-${test##*/}" "$outcome"
done
rm -f "$log" "$log.status"
exit $failed
