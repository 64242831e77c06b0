#!/usr/bin/env bash
# Speed and memory of three sizes of LLaVA on made-up data (doc/performance.md says how to read it).
#
#   tests/bench/run.sh BUILD [CORES]        called by make bench; CORES: 2 unless said otherwise
#
# FLOPs are those of `strata check --json`; the peak is sgemm, measured right before each run with as
# many processes and threads; a step's time is the median of metrics.csv without the first three.
set -u
cd "$(dirname "$0")/../.." || exit 1
build=${1:-build}
cores=${2:-2}
strata=$build/strata gemm=$build/tests/bench/bench_gemm
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm_rsh_agent=/bin/false
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_hwloc_base_binding_policy=none
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

# peak RANKS THREADS: GFLOP/s of all ranks together.
peak() {
    local pids=()
    for _ in $(seq "$1"); do
        OPENBLAS_NUM_THREADS=$2 "$gemm" >>"$tmp/peak.$1.$2" &
        pids+=($!)
    done
    wait "${pids[@]}"
    awk '{ s += $1 } END { print s }' "$tmp/peak.$1.$2"
    rm -f "$tmp/peak.$1.$2"
}

# flops JOB RANKS OVERRIDES: of one step, all ranks together.
flops() {
    "$strata" check "$1" --ranks "$2" --json "${@:3}" 2>/dev/null >"$tmp/plan.json" || return 1
    awk -F'[:,]' '
        /"forward_flops":/ || /"backward_flops":/ { s += $2 }
        /"global_batch_size":/ { batch = $2 }
        /"samples":/ && !micro { micro = $2 }
        END { print s * batch / micro }' "$tmp/plan.json"
}

# watch_memory FOLDER: the largest VmHWM (MiB) of the ranks that run in FOLDER, until told to stop.
watch_memory() {
    local most=0 f kib
    while [ ! -e "$1/done" ]; do
        for f in $(grep -lsa "$1/run" /proc/[0-9]*/cmdline); do
            grep -qsa 'orterun\|mpirun' "$f" && continue
            kib=$(awk '/VmHWM/ { print $2 }' "${f%cmdline}status" 2>/dev/null)
            [ "${kib:-0}" -gt "$most" ] && most=$kib
        done
        echo $((most / 1024)) >"$1/memory"
        sleep 0.2
    done
}

# bench SIZE RANKS LAYOUT OVERRIDES...
bench() {
    local size=$1 ranks=$2 layout=$3 threads=$((cores / $2)) job=tests/bench/$1.ini dir watcher top work
    shift 3
    dir=$tmp/$size.$layout
    mkdir -p "$dir"
    work=$(flops "$job" "$ranks" "$@") || { echo "$size $layout: strata check refuses it" >&2; return 1; }
    top=$(peak "$ranks" "$threads")
    watch_memory "$dir" &
    watcher=$!
    OMP_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads mpirun -n "$ranks" "$strata" train "$job" \
        "run:run_dir=$dir/run" "run:threads_per_rank=$threads" "$@" >"$dir/out" 2>&1
    local code=$?
    touch "$dir/done"
    wait $watcher
    if [ $code != 0 ]; then
        echo "$size $layout: train ended with code $code" >&2
        tail -n 5 "$dir/out" >&2
        return 1
    fi
    tail -n +5 "$dir/run/metrics.csv" | cut -d, -f2,7 >"$dir/rows"
    local batch
    batch=$(sed -n 's/^global_batch_size *= *//p' "$dir/run/used.ini")
    sort -t, -k2 -g "$dir/rows" | awk -F, -v batch="${batch%%[ ;]*}" -v work="$work" -v top="$top" \
        -v name="$size" -v what="$ranks x $threads" -v layout="$layout" -v memory="$(cat "$dir/memory")" '
        { ms[NR] = $2 }
        END {
            t = NR % 2 ? ms[(NR + 1) / 2] : (ms[NR / 2] + ms[NR / 2 + 1]) / 2
            printf "| %-6s | %s | %-6s | %10.2f | %8.1f | %8.1f | %5.1f %% | %6d MiB |\n", name, what, layout,
                1000 * batch / t, work / t / 1e6, top, 100 * work / t / 1e6 / top, memory
        }'
}

echo "$(date -u +%Y-%m-%d) $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $cores cores, load $(cut -d' ' -f1 /proc/loadavg), $(git describe --always --dirty 2>/dev/null)"
echo "| size   | ranks x threads | layout | samples/s | GFLOP/s | sgemm GFLOP/s | of it | peak RSS of a rank |"
echo "|---|---|---|---|---|---|---|---|"
status=0
for size in tiny small medium; do bench $size 1 one || status=1; done
if [ "$cores" -ge 2 ]; then
    bench medium 2 TP2 parallel:tensor_model_parallel_size=2 || status=1
    # Many small micro-batches: two stages stand still for one of them at either end of a step.
    bench medium 2 PP2 parallel:pipeline_model_parallel_size=2 training:micro_batch_size=1 \
        training:global_batch_size=32 training:train_iters=6 || status=1
    bench medium 2 DP2 || status=1
fi
# Saving and loading, on the file system of TMPDIR.
for ranks in 1 2; do
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 mpirun -n $ranks "$build/tests/bench/bench_checkpoint" 16 7 || status=1
done
exit $status
