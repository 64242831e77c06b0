#!/usr/bin/env bash
# timeout: 900
# kernels: all
# One curve: input/llava_tiny.ini (dropout on; samples without image, with one, with several) gives
# the same lm_loss column in every layout. Cutting the pipeline, recomputing, another schedule,
# killing and resuming change no byte; tensor and data parallelism change it by less than 1e-5.
# STRATA_LONG=1 takes all steps of the job and more layouts; STRATA_BRIEF=1, as under a further kernel
# set, one layout of each kind.
set -u
cd "$(dirname "$0")/../.." || exit 1
STRATA=${STRATA:-build/strata}
tmp=${TEST_TMP:-$(mktemp -d)}
iters=4
[ "${STRATA_LONG:-0}" = 1 ] && iters=20
export OMP_NUM_THREADS=1
T=parallel:tensor_model_parallel_size P=parallel:pipeline_model_parallel_size S=parallel:split_spec
SP=parallel:sequence_parallel=true

job=input/llava_tiny.ini threads=1

# train DIR RANKS KEY...: one run of $job; its output in DIR.log.
train() {
    local dir=$1 ranks=$2
    shift 2
    mpirun -n "$ranks" "$STRATA" train "$job" "run:run_dir=$dir" \
        run:threads_per_rank=$threads "training:train_iters=$iters" logging:log_interval=1 \
        "data:data_cache_path=$tmp/cache" "$@" >"$dir.log" 2>&1
}

curve() { cut -d, -f3 "$1/metrics.csv"; }

# same NAME REFERENCE RANKS KEY...: the column is byte-identical to the reference's.
same() {
    local name=$1 reference=$2 ranks=$3
    shift 3
    if ! train "$tmp/run" "$ranks" "$@"; then
        echo "not ok - $name: training failed"
        tail -n 5 "$tmp/run.log"
    elif ! cmp -s <(curve "$tmp/run") <(curve "$reference"); then
        echo "not ok - $name: another curve"
        paste <(curve "$tmp/run") <(curve "$reference") | tail -n +2 | head -n 3
    else
        echo "ok - $name"
    fi
    rm -rf "$tmp/run"
}

# near NAME REFERENCE RANKS KEY...: every loss within 1e-5 relative.
near() {
    local name=$1 reference=$2 ranks=$3
    shift 3
    if ! train "$tmp/run" "$ranks" "$@"; then
        echo "not ok - $name: training failed"
        tail -n 5 "$tmp/run.log"
    else
        paste -d' ' <(curve "$tmp/run") <(curve "$reference") | awk -v name="$name" -v want="$iters" '
            NR > 1 { d = ($1 - $2) / $2; if (d < 0) d = -d; if (!(d <= 1e-5)) bad = 1; if (d > m) m = d; n++ }
            END { if (bad || n != want) { printf "not ok - %s: relative difference %.1e, %d steps\n", name, m, n; exit }
                  printf "ok - %s\n", name }'
    fi
    rm -rf "$tmp/run"
}

# split SPEC [REFERENCE KEY...]: the pipeline cut so.
split() {
    local spec=$1 reference=${2:-$tmp/one} commas
    shift; [ $# -gt 0 ] && shift
    commas=${spec//[^,]/}
    same "split_spec $spec${*:+ }${*//*:/}" "$reference" $((${#commas} + 1)) \
        "$P=$((${#commas} + 1))" "$S=$spec" "$@"
}

train "$tmp/one" 1 || { echo "not ok - one rank trains"; tail -n 5 "$tmp/one.log"; exit 1; }
if [ "$(curve "$tmp/one" | wc -l)" = $((iters + 1)) ] && ! curve "$tmp/one" | grep -qi nan; then
    echo "ok - one rank trains"
else
    echo "not ok - one rank trains"
fi
same "the same job twice" "$tmp/one" 1
threads=2
same "two threads" "$tmp/one" 1
threads=1

if [ "${STRATA_BRIEF:-0}" = 1 ]; then
    for s in 3,6 2,4,3 1,1,1,2,1,1,1,1; do split "$s"; done
    split 2,4,3 "$tmp/one" parallel:schedule=gpipe
    split 2,4,3 "$tmp/one" training:recompute_granularity=full training:recompute_num_layers=1 \
        training:recompute_method=uniform
    near "tensor 2, sequence parallel" "$tmp/one" 2 $T=2 $SP
    near "data 2, sharded states" "$tmp/one" 2 parallel:use_distributed_optimizer=true
    near "tensor 2 x pipeline 2 x data 2" "$tmp/one" 8 $T=2 $P=2 $S=3,6
    exit 0
fi

# All seven kinds of stage: vision (with head; without), vision + projector, vision + projector +
# language, projector alone, projector + language, language (embedding; tail; both; neither), all.
splits="1,8 2,7 3,6 5,4 6,3 8,1 1,2,6 2,4,3 1,5,3 3,2,4 5,2,2 1,4,4 3,3,3 1,2,2,4 5,1,1,2 3,2,2,2
1,2,2,2,2 1,1,1,2,4 5,1,1,1,1 2,1,2,2,2 1,1,1,2,1,1,1,1"
[ "${STRATA_LONG:-0}" = 1 ] && splits="$splits 7,2 1,1,7 1,7,1 2,1,6 2,3,4 2,5,2 2,6,1 3,4,2 3,5,1 5,3,1
6,1,2 6,2,1 7,1,1 1,1,1,6 1,1,3,4 1,1,5,2 1,1,6,1 1,2,3,3 1,2,4,2 1,2,5,1 2,1,4,2 3,2,1,3 5,1,2,1 6,1,1,1"
for s in $splits; do split "$s"; done
split 2,4,3 "$tmp/one" parallel:schedule=gpipe
split 2,4,3 "$tmp/one" parallel:overlap_p2p_comm=false

# Recompute gives the same bits.
recompute="training:recompute_granularity=full training:recompute_num_layers"
same "recompute uniform 1" "$tmp/one" 1 $recompute=1 training:recompute_method=uniform
same "recompute uniform 3" "$tmp/one" 1 $recompute=3 training:recompute_method=uniform
split 2,4,3 "$tmp/one" $recompute=2 training:recompute_method=uniform
split 1,5,3 "$tmp/one" $recompute=1 training:recompute_method=block

# Other models: one curve each.
model() {
    local name=$1 spec=$2
    shift 2
    train "$tmp/$name" 1 "$@" || { echo "not ok - $name trains"; tail -n 3 "$tmp/$name.log"; return; }
    for s in $spec; do split "$s" "$tmp/$name" "$@"; done
    near "$name, tensor 2" "$tmp/$name" 2 $T=2 "$@"
}
job=$tmp/affine.ini
sed "/^projector_hidden_size/d; s|= mlp|= affine|; s|= tiny|= $PWD/input/tiny|" input/llava_tiny.ini >"$job"
model affine "1,1,1,1,1,1,1,1 3,1,4"
job=input/llava_tiny.ini
model feature-1 "1,2,2,4 3,2,4" vision:vision_feature_layer=-1
model frozen-tower "2,3,4 3,2,4" vision:freeze_ViT=true
model projector-only "2,3,4 1,4,4" vision:freeze_ViT=true language:freeze_LM=true
model mean-of-means "2,4,3" training:calculate_per_token_loss=false

# Killed and resumed.
resume() {
    local name=$1 ranks=$2 dir=$tmp/resume pid
    shift 2
    train "$dir" "$ranks" "checkpoint:save=$dir/ckpt" checkpoint:save_interval=1 "$@" &
    pid=$!
    for _ in $(seq 600); do
        [ -d "$dir/ckpt/iter_0000002" ] && break
        kill -0 $pid 2>/dev/null || break
        sleep 0.05
    done
    pkill -9 -f "run:run_dir=$dir " 2>/dev/null
    wait $pid 2>/dev/null
    pkill -9 -f "run:run_dir=$dir " 2>/dev/null
    if [ "$(ls -d "$dir"/ckpt/iter_* 2>/dev/null | wc -l)" = 0 ]; then
        echo "not ok - $name: nothing was saved"
        return
    fi
    if ! train "$dir" "$ranks" "checkpoint:save=$dir/ckpt" checkpoint:resume=must "$@"; then
        echo "not ok - $name: resuming failed"
        tail -n 5 "$dir.log"
    elif cmp -s <(curve "$dir") <(curve "$tmp/one"); then
        echo "ok - $name"
    else
        echo "not ok - $name: another curve"
    fi
    rm -rf "$dir"
}
resume "killed and resumed, one rank" 1
resume "killed and resumed, split_spec 2,4,3" 3 $P=3 $S=2,4,3

# Tensor and data parallelism.
for t in 2 3 4; do
    near "tensor $t" "$tmp/one" $t $T=$t
    near "tensor $t, sequence parallel" "$tmp/one" $t $T=$t $SP
done
for d in 2 4; do
    near "data $d" "$tmp/one" $d
    near "data $d, sharded states" "$tmp/one" $d parallel:use_distributed_optimizer=true
done
near "tensor 2 x pipeline 2 x data 2" "$tmp/one" 8 $T=2 $P=2 $S=3,6
near "tensor 2 x pipeline 2 x data 2, tp-pp-dp order" "$tmp/one" 8 $T=2 $P=2 $S=3,6 \
    parallel:use_tp_pp_dp_mapping=true
near "tensor 3 x pipeline 2, sequence parallel" "$tmp/one" 6 $T=3 $P=2 $S=1,8 $SP
near "tensor 2 x pipeline 5 x data 2 on 20 ranks" "$tmp/one" 20 $T=2 $P=5 $S=1,2,2,2,2 \
    parallel:use_distributed_optimizer=true
near "tensor 2 x pipeline 5 x data 2 on 20 ranks, sequence parallel" "$tmp/one" 20 $T=2 $P=5 \
    $S=1,1,3,2,2 $SP
