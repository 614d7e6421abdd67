#!/bin/bash
# Runs a collection of the kernel's selftests, as they are installed beside this, and writes to the file `cases` what
# came of each program. Exits with 4, as they do, where all of them were skipped.
run=$(dirname "$0")/kselftest/run_kselftest.sh
# One that did not build has no tests.
if ! "$run" --list | grep -q "^$1:"; then
    exit 4
fi
# By a pipe: some tests open their standard output anew, which would cut a file.
"$run" --collection "$1" --override-timeout 120 2>&1 | cat > log
sed -n -E \
    -e 's/^ok [0-9]+ selftests: ([^:]+): ([^ ]+) # SKIP.*/skip \1:\2/p; t' \
    -e 's/^(ok|not ok) [0-9]+ selftests: ([^:]+): ([^ ]+).*/\1 \2:\3/p' log > cases
# Why those failed that did, for who reads the console.
grep -E '^(not ok|# +not ok)' log | tail -n 40
[ -s cases ] || exit 1
grep -q -v '^skip' cases || exit 4
