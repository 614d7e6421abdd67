#!/bin/bash
# Runs collections of the kernel's selftests, as they are installed beside this, and writes to the file `cases` what
# came of each program. Succeeds if any ran.
run=$(dirname "$0")/kselftest/run_kselftest.sh
for collection in "$@"; do
    # Those that did not build have no tests.
    if "$run" --list | grep -q "^$collection:"; then
        "$run" --collection "$collection" --override-timeout 120
    else
        echo "# SKIP none of $collection was built"
    fi
done 2>&1 | cat > log # a pipe: some tests open their standard output anew, which would cut a file
sed -n -E \
    -e 's/^ok [0-9]+ selftests: ([^:]+): ([^ ]+) # SKIP.*/skip \1:\2/p; t' \
    -e 's/^(ok|not ok) [0-9]+ selftests: ([^:]+): ([^ ]+).*/\1 \2:\3/p; t' \
    -e 's/^# SKIP none of (.+) was built/skip \1/p' log > cases
# Why those failed that did, for who reads the console.
grep -E '^(not ok|# +not ok)' log | tail -n 40
grep -q -v '^skip' cases
