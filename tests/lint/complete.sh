# Nothing lies about unseen: tests that do not run, job files that are not valid, keys not written down.
. "$(dirname "$0")/lint.inc"

tests/run.sh --list | sort >"$TEST_TMP/run"
{
    files 'tests/*.c' | grep -E '/test_[^/]*\.c$'
    files 'tests/*/*.sh' | grep -vE '^tests/(bench|fuzz)/'
} | sort >"$TEST_TMP/there"
comm -13 "$TEST_TMP/run" "$TEST_TMP/there" | sed 's/$/: is not run by tests\/run.sh/' |
    verdict "every test program is run"

for f in $(files 'tests/mpi/test_*.c' 'tests/equal/test_*.c'); do
    sed -n '1,15p' "$f" | grep -q 'ranks: *[0-9]' || echo "$f: no /* ranks: 1 2 4 */ near the top"
done | verdict "every MPI test says its rank counts"

# Stored inputs without a harness would never be run.
{
    for f in $(files 'tests/fuzz/fuzz_*.c'); do
        name=${f#tests/fuzz/fuzz_} name=${name%.c}
        files "tests/fuzz/corpus/$name/*" | grep -q . || echo "$f: nothing in tests/fuzz/corpus/$name"
        sed -n '1,15p' "$f" | grep -q '/\* max_len: [0-9]* \*/' || echo "$f: no /* max_len: 4096 */ near the top"
        python3 tests/fuzz/make_seeds.py "$TEST_TMP/seeds" "$name" || echo "$f: no seeds or no dictionary"
    done
    for f in $(files 'tests/fuzz/corpus/*' 'tests/fuzz/*.dict'); do
        name=${f#tests/fuzz/corpus/} name=${name#tests/fuzz/} name=${name%%/*}
        [ -f "tests/fuzz/fuzz_${name%.dict}.c" ] || echo "$f: there is no harness of that name"
    done
} 2>&1 | verdict "every fuzzing harness has its dictionary, seeds and corpus, and no corpus lacks its harness"

if [ ! -x "$STRATA" ]; then
    echo "ok - job files are valid # SKIP build/strata is not built"
    echo "ok - doc/job-file.md is up to date # SKIP build/strata is not built"
    finish
fi
for f in $(files 'input/*.ini'); do
    if ! timeout 60 "$STRATA" check "$f" >"$TEST_TMP/out" 2>&1; then
        echo "$f: strata check refuses it:"
        head -n 5 "$TEST_TMP/out"
    fi
done | verdict "every input/*.ini passes strata check"

if "$STRATA" keys --markdown >"$TEST_TMP/job-file.md" 2>"$TEST_TMP/err"; then
    if [ -f doc/job-file.md ]; then
        diff "$TEST_TMP/job-file.md" doc/job-file.md | head -n 10
    else
        echo "doc/job-file.md is missing: make doc"
    fi | verdict "doc/job-file.md is what 'strata keys --markdown' prints (make doc)"
else
    sed 's/^/strata keys: /' "$TEST_TMP/err" | verdict "strata keys --markdown"
fi
finish
