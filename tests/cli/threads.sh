# How many threads a rank computes with, and that the log says why: CPU quotas of real control groups,
# the binding of mpirun, threads_per_rank and OMP_NUM_THREADS; and the speed on the log line.
# timeout: 400
. "$(dirname "$0")/cli.inc"
patience=$((patience * 8))
unset OMP_NUM_THREADS
common=("$tiny" "run:run_dir=$TEST_TMP/run" "data:data_cache_path=$TEST_TMP/cache" data:num_workers=0
    optimizer:lr_warmup_iters=0)
one=("${common[@]}" training:train_iters=1)
cores=$(nproc)

expect 0 '^2 threads per rank: threads_per_rank = 2$' "the job file says how many" \
    "$STRATA" train "${one[@]}" run:threads_per_rank=2
expect 0 '^1 thread per rank: OMP_NUM_THREADS = 1$' "the environment says how many" \
    env OMP_NUM_THREADS=1 "$STRATA" train "${one[@]}"
expect 0 '^threads +[0-9]+ per rank on this machine: ([0-9]+ cores?|CPU quota of .*) for 16 ranks$' "strata check says what a rank would get" \
    "$STRATA" check "${common[@]}" --ranks 64 --ranks-per-node 16 training:global_batch_size=128
expect 0 '"threads_from": "OMP_NUM_THREADS = 3"' "in JSON too" env OMP_NUM_THREADS=3 "$STRATA" check "${common[@]}" --json

# ---- a quota ----------------------------------------------------------------------------------------------
# A control group of half a core, of version 1 or 2; it is removed at the end.
group=
make_group() {
    local d
    d=$(awk '$(NF - 2) == "cgroup" && $NF ~ /(^|,)cpu(,|$)/ { print $5; exit }' /proc/self/mountinfo)
    if [ -n "$d" ] && mkdir "$d/strata_test_$$" 2>/dev/null; then
        group=$d/strata_test_$$
        echo 50000 >"$group/cpu.cfs_quota_us" 2>/dev/null && return 0
    fi
    d=$(awk '$(NF - 2) == "cgroup2" { print $5; exit }' /proc/self/mountinfo)
    grep -qw cpu "$d/cgroup.subtree_control" 2>/dev/null && mkdir "$d/strata_test_$$" 2>/dev/null || return 1
    group=$d/strata_test_$$
    echo '50000 100000' >"$group/cpu.max" 2>/dev/null
}
drop_group() {
    [ -n "$group" ] || return 0
    for _ in $(seq 50); do
        rmdir "$group" 2>/dev/null && break
        sleep 0.1
    done
}
trap drop_group EXIT
inside() { bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" "$@"; }
export -f inside
if make_group && inside true 2>/dev/null; then
    export group
    expect 0 '^1 thread per rank: CPU quota of 0\.5 cores$' "a quota of half a core is one thread" \
        bash -c 'inside "$@"' inside "$STRATA" train "${one[@]}"
    expect 0 '^threads +1 per rank on this machine: CPU quota of 0\.5 cores for 2 ranks$' "strata check knows it" \
        bash -c 'inside "$@"' inside "$STRATA" check "${common[@]}" --ranks 2
    expect 0 'warning.*2 threads per rank are more than a CPU quota of 0\.5 cores carries' "more threads are pointed out" \
        bash -c 'inside "$@"' inside "$STRATA" check "${common[@]}" run:threads_per_rank=2
else
    echo "ok - CPU quotas of real control groups # SKIP needs root and a writable control group with the controller cpu"
fi

# ---- the binding of mpirun ---------------------------------------------------------------------------------
unset OMPI_MCA_hwloc_base_binding_policy
if [ "$cores" -ge 2 ]; then
    expect 0 "warning.*binds a rank to 1 of the $cores cores .*--bind-to none" "a rank bound to one core of several" \
        mpirun -n 1 --bind-to core "$STRATA" train "${one[@]}"
    yes "computes with one thread" grep -qE '^1 thread per rank: 1 core$' <<<"$out"
    expect 0 "^[0-9]+ threads? per rank: ($cores cores|CPU quota of .*)\$" "without binding it has them all" \
        mpirun -n 1 --bind-to none "$STRATA" train "${one[@]}"
    yes "and nothing is pointed out" test "$(grep -c 'warning' <<<"$out")" = 0
    expect 0 '' "one thread that was asked for, bound to one core" \
        mpirun -n 1 --bind-to core "$STRATA" train "${one[@]}" run:threads_per_rank=1
    yes "is as wanted" test "$(grep -c 'bind-to' <<<"$out")" = 0
else
    echo "ok - the binding of mpirun # SKIP needs two cores"
fi

# ---- the log line ------------------------------------------------------------------------------------------
# Three steps of a larger model are a hundred times the work of measuring the speed of sgemm, one step of
# the tiny one is not.
large=("${common[@]}" run:threads_per_rank=1 language:hidden_size=240 language:ffn_hidden_size=800 training:train_iters=3)
speed='throughput per GPU \(TFLOP/s/GPU\): [0-9]+\.[0-9]+ \|.* samples without target: 0 \| GFLOP/s per rank: [0-9]+\.[0-9]+ \|'
expect 0 "$speed\$" "a short run has its speed on the log line" "$STRATA" train "${one[@]}" run:threads_per_rank=1
# work: GFLOP of the one step in $out, from its time and speed.
work() { sed -n 's/.*iteration (ms): \([0-9.]*\).* GFLOP\/s per rank: \([0-9.]*\).*/\1 \2/p' <<<"$out" | awk '{ print $1 * $2 / 1000 }'; }
plain=$(work)
expect 0 "$speed\$" "a step with recompute" "$STRATA" train "${one[@]}" run:threads_per_rank=1 \
    training:recompute_granularity=full training:recompute_method=uniform training:recompute_num_layers=1
yes "counts what it repeats once" awk -v a="$plain" -v b="$(work)" 'BEGIN { exit !(a > 0 && b > 0.95 * a && b < 1.05 * a) }'
expect 0 '^peak: [0-9.]+ GFLOP/s per rank .sgemm, 2 ranks at one time.$' "a longer one measures the peak" \
    mpirun -n 2 --bind-to none "$STRATA" train "${large[@]}" \
    logging:log_interval=3 parallel:pipeline_model_parallel_size=2
line=$(grep ' iteration  *3/' <<<"$out")
yes "and says the share of it" grep -qE "$speed share of peak: [0-9]+\.[0-9] % \|\$" <<<"$line"
# The three figures are one: T = G / 1000, and the share is that of the line that says the peak.
peak=$(sed -n 's/^peak: \([0-9.]*\) .*/\1/p' <<<"$out")
yes "which fits the other figures" awk -v peak="$peak" -F'[|:]' '{
    for (i = 1; i < NF; i++) {
        if ($i ~ /TFLOP/) t = $(i + 1)
        if ($i ~ / GFLOP/) g = $(i + 1)
        if ($i ~ /share/) s = $(i + 1)
    }
    d = t * 1000 - g; e = s - 100 * g / peak
    exit !(g > 0 && d * d <= 0.01 && e * e <= 0.02)
}' <<<"$line"
# FLOPs are those of the plan: the largest micro-batch bounds each of the 16 / 2 of a step.
ms=$(sed 's/.*iteration (ms): \([0-9.]*\).*/\1/' <<<"$line")
"$STRATA" check "${large[@]}" --json 2>/dev/null >"$TEST_TMP/plan.json"
yes "and the plan" awk -v g="$(sed 's/.*GFLOP\/s per rank: \([0-9.]*\).*/\1/' <<<"$line")" -v ms="$ms" -F'[:,]' '
    /"forward_flops":/ || /"backward_flops":/ { most += $2 }
    END { done = 2 * g * 1e9 * ms / 1000; exit !(done <= 8.01 * most && done >= most) }' "$TEST_TMP/plan.json"
expect 0 '' "log_throughput = false" "$STRATA" train "${large[@]}" logging:log_throughput=false
yes "takes all of it away" test "$(grep -ciE 'throughput|FLOP|peak' <<<"$out")" = 0
exit $status
