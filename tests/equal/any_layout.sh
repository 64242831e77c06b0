#!/usr/bin/env bash
# timeout: 3600
# A run that is stopped after two steps and goes on in another layout has the curve of the run that was
# never stopped: bit for bit where only the pipeline, its split or the sharding of the optimizer of one
# data rank differ, within 1e-5 else. Six layouts, each into the five others; a sample without
# STRATA_LONG=1. (All pairs of all layouts, without training: tests/unit/test_any_to_any.c.)
set -u
cd "$(dirname "$0")/../.." || exit 1
STRATA=${STRATA:-build/strata}
tmp=${TEST_TMP:-$(mktemp -d)}
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
T=parallel:tensor_model_parallel_size P=parallel:pipeline_model_parallel_size
S=parallel:split_spec O=parallel:use_distributed_optimizer=true

# name|ranks|keys; the first three give the same bits.
layouts=(
    "1|1|"
    "PP 2|2|$P=2 $S=5,3"
    "PP 3|3|$P=3 $S=2,3,3"
    "TP 2|2|$T=2"
    "DP 2 sharded|2|$O"
    "TP 2 PP 2 DP 2 sharded|8|$T=2 $P=2 $S=5,3 $O"
)

# train DIR LAYOUT KEY...: one start in DIR.
train() {
    local dir=$1 layout=${layouts[$2]} ranks
    shift 2
    ranks=${layout#*|}
    # shellcheck disable=SC2086
    timeout -k 5 300 mpirun -n "${ranks%|*}" "$STRATA" train input/llava_tiny.ini "run:run_dir=$dir/run" \
        run:threads_per_rank=1 "data:data_cache_path=$tmp/cache" data:num_workers=0 \
        language:num_layers=3 training:train_iters=4 training:global_batch_size=8 \
        "checkpoint:save=$dir/save" checkpoint:index=false ${layout##*|} "$@" \
        >"$dir/log" 2>&1 </dev/null
}
curve() { cut -d, -f1-4,6 "$1/run/metrics.csv"; }

# near A B: every number within 1e-5, relative.
near() {
    paste -d, "$1" "$2" | awk -F, 'NR > 1 { for (i = 1; i <= 5; i++) { d = $i - $(i + 5); if (d < 0) d = -d
        s = $i < 0 ? -$i : $i; if (!(d <= 1e-5 * s)) bad = 1 } n++ } END { exit bad || n != 4 }'
}

mkdir -p "$tmp/whole"
train "$tmp/whole" 0 || { echo "not ok - the run that is never stopped"; tail -n 5 "$tmp/whole/log"; exit 1; }
curve "$tmp/whole" >"$tmp/wanted"
pairs=0 good=0
for a in "${!layouts[@]}"; do
    mkdir -p "$tmp/a$a"
    if ! train "$tmp/a$a" "$a" training:exit_interval=2; then
        echo "not ok - two steps as ${layouts[a]%%|*}"
        continue
    fi
    for b in "${!layouts[@]}"; do
        [ "$a" != "$b" ] || continue
        [ "${STRATA_LONG:-0}" = 1 ] || [ "$b" = $(((a + 1) % 6)) ] || continue
        name="${layouts[a]%%|*} into ${layouts[b]%%|*}"
        mkdir -p "$tmp/b"
        cp -r "$tmp/a$a/run" "$tmp/a$a/save" "$tmp/b"
        pairs=$((pairs + 1))
        if ! train "$tmp/b" "$b" training:exit_interval=1000; then
            echo "not ok - $name: it does not go on: $(grep -h '^error' "$tmp/b/log" | head -n 1)"
        else
            curve "$tmp/b" >"$tmp/got"
            if [ "$a" -lt 3 ] && [ "$b" -lt 3 ]; then
                cmp -s "$tmp/got" "$tmp/wanted"
            else
                near "$tmp/got" "$tmp/wanted"
            fi && good=$((good + 1)) && echo "ok - $name" || echo "not ok - $name: another curve"
        fi
        rm -rf "$tmp/b"
    done
done
echo "# $good of $pairs pairs trained on with the curve of the unbroken run"
[ "$good" = "$pairs" ]
