#!/bin/bash
# Runs the tests beside it in a guest, and says on the console what came of each. `cargo xtask distro` makes the
# folders in tests/ from tests.toml.
cd "$(dirname "$0")" || exit 1
param=/sys/module/kernel/parameters/lazy_tlb

# A line of the kernel's log is never torn apart by another.
say() { printf '%.900s\n' "$*" > /dev/kmsg; }

policy() { cat "$param" 2> /dev/null || echo none; }

flip() {
    while sleep 0.3; do
        for policy in refcount handover shootdown; do
            echo "$policy" > "$param" || exit
            echo >> flips
            sleep 0.3
        done
    done
}

tests=(tests/*)
say "1..${#tests[@]}"
say "lazy-tlb-distro: policy=$(policy)"
say "lazy-tlb-distro: kernel=$(uname -r)"
say "lazy-tlb-distro: debian=$(cat /etc/debian_version)"
systemctl --failed --plain --no-legend | while read -r unit rest; do say "# failed at boot: $unit $rest"; done
: > flips
if [ -e flip ]; then
    flip & flipper=$!
fi
number=0
for dir in "${tests[@]}"; do
    number=$((number + 1))
    name=$(cat "$dir/name")
    if [ -e "$dir/if" ] && ! bash "$dir/if" > /dev/null 2>&1; then
        say "ok $number $name # SKIP $(cat "$dir/why")"
        continue
    fi
    say "# running $name"
    place=$PWD/place/$number
    log=$PWD/$dir/log
    mkdir -p "$place"
    chmod 777 "$place"
    limit=$(cat "$dir/seconds")
    began=$SECONDS
    # In a cgroup of its own, with which all that it leaves behind is ended, but not for one that the OOM killer ends.
    systemd-run --quiet --wait --collect --unit="lazy-tlb-test-$number" \
        -p WorkingDirectory="$place" -p StandardOutput="file:$log" -p StandardError=inherit \
        -p RuntimeMaxSec=$((limit + 60)) -p TimeoutStopSec=20 -p OOMPolicy=continue -E HOME=/root \
        timeout -k 20 "$limit" bash "$PWD/$dir/run"
    code=$?
    # What a suite says of its own tests.
    if [ -s "$place/cases" ]; then
        while IFS= read -r line; do say "case $name: $line"; done < "$place/cases"
    fi
    result="$number $name # exit $code, $((SECONDS - began)) s"
    if [ $code = 0 ]; then
        say "ok $result"
    elif [ $code = 4 ] && [ -e "$dir/kselftest" ]; then
        say "ok $number $name # SKIP not built, or all of it skipped"
    else
        tail -n 40 "$log" | while IFS= read -r line; do say "#   $line"; done
        say "not ok $result"
    fi
    rm -rf "$place"
done
if [ -n "$flipper" ]; then
    kill "$flipper"
fi
say "lazy-tlb-distro: flips=$(wc -l < flips)"
grep -E '^(lazy_tlb_|pswpout|oom_kill |numa_pages_migrated|thp_fault_alloc )' /proc/vmstat | while read -r key value; do
    say "lazy-tlb-distro: $key=$value"
done
# The build ID is a note: 4 bytes of a name, 20 of a SHA-1, type 3.
id=$(od -An -v -tx1 /sys/kernel/notes | tr -d ' \n' |
    grep -o '040000001400000003000000474e5500[0-9a-f]\{40\}' | head -n 1 | cut -c 33-)
say "lazy-tlb-guest: build_id=$id"
say "lazy-tlb-guest: cpus=$(nproc)"
say "lazy-tlb-guest: done status=0"
