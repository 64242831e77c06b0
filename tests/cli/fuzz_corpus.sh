# The harnesses of tests/fuzz, without libFuzzer, over what fuzzing found and over seeds made from the
# golden files: each parser takes or refuses every one, within 2 s and 512 MiB.
# timeout: 300
set -u
cd "$(dirname "$0")/../.." || exit 1
slow=
[ "${SANITIZE:-0}" = 1 ] && slow=--slow

python3 tests/fuzz/make_seeds.py "$TEST_TMP/seeds" || { echo "not ok - seeds"; exit 1; }
failed=0
for f in tests/fuzz/fuzz_*.c; do
    name=${f#tests/fuzz/fuzz_}
    name=${name%.c}
    if TMPDIR=$TEST_TMP "$BUILD/tests/fuzz/fuzz_$name" $slow "tests/fuzz/corpus/$name" "$TEST_TMP/seeds/$name" \
        >"$TEST_TMP/out" 2>&1 && [ "$(grep -c '^# ' "$TEST_TMP/out")" -gt 1 ]; then
        echo "ok - $name: $(tail -n 1 "$TEST_TMP/out")"
    else
        echo "not ok - $name"
        grep -v '^# ' "$TEST_TMP/out" | head -n 20 | sed 's/^/#   /'
        echo "#   last file: $(grep '^# ' "$TEST_TMP/out" | tail -n 1)"
        failed=1
    fi
done

# Nothing to run is no success.
mkdir "$TEST_TMP/empty"
if "$BUILD/tests/fuzz/fuzz_job" "$TEST_TMP/empty" >/dev/null; then
    echo "not ok - an empty corpus is noticed"
    failed=1
else
    echo "ok - an empty corpus is noticed"
fi
exit $failed
