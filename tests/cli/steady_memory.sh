#!/usr/bin/env bash
# timeout: 300
# kernels: all
# The step takes nothing from the heap: a run of 40 steps makes as many allocations as one of 10.
# Memory does not grow: the resident set after 1000 steps is that after 100.
. "$(dirname "$0")/cli.inc"

shim=$TEST_TMP/steady_memory.so
if [ "${SANITIZE:-0}" = 1 ]; then
    echo "ok - allocations of a step # SKIP the sanitizers bring their own allocator"
    exit 0
fi
${CC:-cc} -shared -fPIC -O1 -D_GNU_SOURCE -o "$shim" tests/cli/steady_memory.c || exit 1

# count STEPS KEY...: allocations of a whole run.
count() {
    local steps=$1
    shift
    rm -f "$TEST_TMP/calls"
    STEADY_MEMORY_OUT=$TEST_TMP/calls LD_PRELOAD=$shim "$STRATA" train tests/bench/tiny.ini \
        "run:run_dir=$TEST_TMP/run$steps" "data:data_cache_path=$TEST_TMP/cache" run:threads_per_rank=1 \
        "training:train_iters=$steps" logging:log_interval=1000 data:num_workers=0 "$@" \
        >"$TEST_TMP/log" 2>&1 || tail -n 3 "$TEST_TMP/log"
    cat "$TEST_TMP/calls"
}
count 2 >/dev/null # builds the data's index
few=$(count 10) many=$(count 40)
if [ "$few" -gt 0 ] && [ "$few" -eq "$many" ]; then
    echo "ok - a step allocates nothing ($few allocations in a run)"
else
    echo "not ok - a step allocates: $few allocations in 10 steps, $many in 40"
fi

[ "${STRATA_BRIEF:-0}" = 1 ] && exit 0 # under a further kernel set

# The resident set, sampled while the run's metrics pass a step.
"$STRATA" train tests/bench/tiny.ini "run:run_dir=$TEST_TMP/long" "data:data_cache_path=$TEST_TMP/cache" \
    run:threads_per_rank=1 training:train_iters=1000 training:global_batch_size=2 \
    logging:log_interval=1000 >"$TEST_TMP/log" 2>&1 &
pid=$!
at_step() {
    while kill -0 $pid 2>/dev/null; do
        [ -f "$TEST_TMP/long/metrics.csv" ] && [ "$(wc -l <"$TEST_TMP/long/metrics.csv")" -gt "$1" ] && break
        sleep 0.02
    done
    awk '/^VmRSS/ { print $2 }' /proc/$pid/status 2>/dev/null
}
early=$(at_step 100) late=$(at_step 900)
wait $pid
if [ -n "$early" ] && [ -n "$late" ] && [ "$late" -le $((early + 1024)) ]; then
    echo "ok - memory does not grow over 1000 steps"
else
    echo "not ok - resident set of $early KiB at step 100, $late KiB at step 900"
fi
