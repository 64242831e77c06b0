# The runner must see a failure: planted faults, each run by tests/run.sh itself.
# timeout: 60
set -u
here=$(cd "$(dirname "$0")/../.." && pwd)
dir=$TEST_TMP/planted
mkdir -p "$dir"
failures=0

# expect NAME "LAST LINE" CODE, body of the planted program on stdin; alone, and as one of two at a time
expect() {
    local how
    cat >"$dir/$1.sh"
    for how in "--jobs 1" "--jobs 2"; do
        # shellcheck disable=SC2086
        out=$("$here/tests/run.sh" --build "$TEST_TMP/build" --timeout 2 $how "$dir/$1.sh" 2>&1)
        code=$?
        last=$(printf '%s\n' "$out" | tail -n 1)
        if [ "$last" = "$2" ] && [ "$code" = "$3" ]; then
            echo "ok - runner $how: $1"
        else
            echo "not ok - runner $how: $1: got \"$last\", code $code; expected \"$2\", code $3"
            failures=1
        fi
    done
}
export SANITIZE=0

expect passes "2 passed, 0 failed" 0 <<'BODY'
echo "ok - one"; echo "ok - two"
BODY
expect says_not_ok "1 passed, 1 failed" 1 <<'BODY'
echo "ok - one"; echo "not ok - two"; exit 1
BODY
expect says_not_ok_but_returns_0 "0 passed, 1 failed" 1 <<'BODY'
echo "not ok - one"; exit 0
BODY
expect returns_1_without_a_word "1 passed, 1 failed" 1 <<'BODY'
echo "ok - one"; exit 1
BODY
expect crashes "1 passed, 1 failed" 1 <<'BODY'
echo "ok - one"; kill -SEGV $$
BODY
expect hangs "1 passed, 1 failed" 1 <<'BODY'
echo "ok - one"; sleep 30
BODY
expect prints_nothing "0 passed, 1 failed" 1 <<'BODY'
exit 0
BODY
printf '# a comment\n*skips*|SKIP no such [a-z]+$|a reason\n' >"$TEST_TMP/skips.txt"
export STRATA_SKIPS=$TEST_TMP/skips.txt
expect unlisted_is_a_failure "1 passed, 1 failed" 1 <<'BODY'
echo "ok - one"; echo "ok - two # SKIP no such tool"
BODY
expect skips_for_another_reason "1 passed, 1 failed, 1 skipped" 1 <<'BODY'
echo "ok - one"; echo "ok - two # SKIP no such tool"; echo "ok - three # SKIP it is late"
BODY
expect skips "1 passed, 0 failed, 1 skipped" 0 <<'BODY'
echo "ok - one"; echo "ok - two # SKIP no such tool"
BODY
expect only_skips_is_no_success "0 passed, 0 failed, 1 skipped" 1 <<'BODY'
echo "ok - two # SKIP no such tool"
BODY
expect cmocka_failure "1 passed, 1 failed" 1 <<'BODY'
echo "[ RUN      ] a"; echo "[       OK ] a"; echo "[ RUN      ] b"; echo "[  FAILED  ] b"
echo "[  PASSED  ] 1 test(s)."; echo "[  FAILED  ] 1 test(s), listed below:"; echo "[  FAILED  ] b"
exit 1
BODY
expect cmocka_dies_inside "1 passed, 1 failed" 1 <<'BODY'
echo "[ RUN      ] a"; echo "[       OK ] a"; echo "[ RUN      ] b"
BODY

out=$("$here/tests/run.sh" --build "$TEST_TMP/build" "$dir/not_there.c" 2>&1)
if [ $? != 0 ] && [ "$(printf '%s\n' "$out" | tail -n 1)" = "0 passed, 1 failed" ]; then
    echo "ok - runner: a program that is not there"
else
    echo "not ok - runner: a program that is not there"
    failures=1
fi
exit $failures
