#!/usr/bin/env bash
# Runs the harnesses under libFuzzer: tests/fuzz/run.sh [--seconds N] [--jobs N] [NAME ...]
#
# Each begins with the stored corpus, with seeds made from the golden files, and with what earlier runs
# found (build/fuzz/corpus). Findings are left in build/fuzz/findings and make the exit code 1. At the
# end: executions, executions per second and coverage (edges) of each, and the sum.
set -u
cd "$(dirname "$0")/../.." || exit 1
seconds=30 jobs=1 build=build/fuzz
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    -*) echo "tests/fuzz/run.sh: unknown option $1" >&2; exit 64 ;;
    *) break ;;
    esac
done
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for f in tests/fuzz/fuzz_*.c; do f=${f#tests/fuzz/fuzz_}; names+=("${f%.c}"); done
fi
for name in "${names[@]}"; do
    [ -x "$build/tests/fuzz/fuzz_$name" ] && continue
    echo "there is no harness $name (make FUZZ=1 fuzzers)" >&2
    exit 66
done

# note NAME WORD: the rest of "/* WORD: ... */" near the top of its harness.
note() {
    sed -n '1,15{s|^/\* '"$2"': *\(.*\) \*/$|\1|p}' "tests/fuzz/fuzz_$1.c" | head -n 1
}

# Stacks of allocations need frame pointers, which libraries lack: what a library allocated itself and
# forgot is known by the first frame.
export ASAN_OPTIONS=detect_stack_use_after_return=0:malloc_context_size=12:quarantine_size_mb=16:check_printf=0
export LSAN_OPTIONS=suppressions=$PWD/tests/fuzz/leaks.supp:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export OPENBLAS_NUM_THREADS=1

run_one() { # NAME
    local name=$1 options=()
    mkdir -p "$build/corpus/$name" "$build/findings" "$build/logs"
    [ -z "$(note "$name" leaks)" ] || options+=("-detect_leaks=0")
    "$build/tests/fuzz/fuzz_$name" "$build/corpus/$name" "tests/fuzz/corpus/$name" "$build/seeds/$name" \
        "-dict=$build/seeds/$name.dict" "-max_total_time=$seconds" "-max_len=$(note "$name" max_len)" -rss_limit_mb=512 -timeout=60 \
        "-artifact_prefix=$build/findings/$name-" -print_final_stats=1 -close_fd_mask=2 \
        -report_slow_units=60 -entropic_scale_per_exec_time=1 "${options[@]}" >"$build/logs/$name.log" 2>&1
    echo $? >"$build/logs/$name.code"
}

rm -rf "$build/seeds"
python3 tests/fuzz/make_seeds.py "$build/seeds" "${names[@]}" || exit 1
for name in "${names[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    run_one "$name" &
done
wait

failed=0
printf '%-14s %12s %10s %9s %8s\n' harness executions "per second" coverage corpus
for name in "${names[@]}"; do
    awk -v name="$name" -v seconds="$seconds" '
        / cov: [0-9]+ / { for (i = 1; i < NF; i++) { if ($i == "cov:") cov = $(i + 1); if ($i == "corp:") corp = $(i + 1) } }
        /^stat::number_of_executed_units:/ { n = $2 }
        /^stat::average_exec_per_sec:/ { rate = $2 }
        END { sub(/\/.*/, "", corp); printf "%-14s %12d %10d %9d %8d\n", name, n, rate, cov, corp }
    ' "$build/logs/$name.log" | tee -a "$build/logs/table.new"
done
awk '{ n += $2 } END { printf "%-14s %12d\n", "all", n }' "$build/logs/table.new"
mv "$build/logs/table.new" "$build/logs/table"
for name in "${names[@]}"; do
    [ "$(cat "$build/logs/$name.code")" = 0 ] && continue
    failed=$((failed + 1))
    echo
    echo "FAILED: $name (whole log: $build/logs/$name.log)"
    grep -E 'finding:|error:|ERROR:|SUMMARY|runtime error|Test unit written|^ +#[0-9]+ ' "$build/logs/$name.log" | head -n 40
done
echo "$((${#names[@]} - failed)) harnesses without a finding, $failed with one"
[ $failed -eq 0 ]
