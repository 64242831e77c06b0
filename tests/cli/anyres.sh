#!/usr/bin/env bash
# Images of several tiles, from end to end on input/llava_next_tiny.ini: one curve in every layout, a
# run that goes on in another one, evaluation, answers, and the way over transformers' names and back.
# timeout: 600
. "$(dirname "$0")/cli.inc"
patience=$((patience * 6))
base="input/llava_next_tiny.ini run:threads_per_rank=1 data:data_cache_path=$TEST_TMP/cache
    projector:projector_hidden_size=60"
T=parallel:tensor_model_parallel_size P=parallel:pipeline_model_parallel_size S=parallel:split_spec
curve() { cut -d, -f1,3 "$TEST_TMP/$1/metrics.csv"; }
# go NAME RANKS KEY...: four steps (or $iters) in a folder of its own
iters=4
go() {
    local name=$1 ranks=$2
    shift 2
    expect 0 '' "train $name" mpirun -n "$ranks" "$STRATA" train $base "run:run_dir=$TEST_TMP/$name" \
        "training:train_iters=$iters" optimizer:lr_decay_iters=20 "$@"
}
same() { yes "$1: the bits of one rank" cmp <(curve "$1") <(curve one); }
near() {
    yes "$1: one rank's curve within 1e-5" awk '
        NR > 1 { d = ($2 - $4) / $4; if (d < 0) d = -d; if (!(d <= 1e-5)) bad = 1; n++ }
        END { exit bad || n != 4 }' <(paste -d, <(curve "$1") <(curve one) | tr , ' ')
}
go one 1
yes "what was planned was taken" awk '
    /bytes, taken [0-9]+\)/ { match($0, /last two [0-9]+ bytes, taken [0-9]+/); split(substr($0, RSTART), w, " ")
                              n++; if (w[3] + 0 != w[6] + 0) bad = 1 }
    END { exit bad || n != 1 }' <<<"$out"
go cut 3 $P=3 $S=2,4,3
same cut
go merge_apart 3 $P=3 $S=5,1,3
same merge_apart
go recomputed 2 $P=2 training:recompute_granularity=full training:recompute_method=uniform \
    training:recompute_num_layers=2 parallel:schedule=gpipe
same recomputed
go tensor 2 $T=2
near tensor
go rows 2 $T=2 parallel:sequence_parallel=true
near rows
go all 8 $T=2 $P=2 parallel:use_distributed_optimizer=true parallel:sequence_parallel=true
near all

# ---- stop, go on elsewhere --------------------------------------------------------------------------
save="checkpoint:save=$TEST_TMP/ckpt"
iters=2
go halves 1 "$save"
iters=4
yes "image_newline is in the checkpoint" sh -c "'$STRATA' checkpoint show $TEST_TMP/ckpt model/image_newline | grep -q 60"
go halves 2 $P=2 $S=3,6 "$save"
same halves
expect 0 'lm loss value' "evaluate it on tensor ranks" mpirun -n 2 "$STRATA" eval ${base%% *} "$TEST_TMP/ckpt" ${base#* } $T=2 \
    data:valid_data_path=tiny/train.json
expect 78 'image_grid_pinpoints = 28,56, but .* was trained with 28,56,56,28' "another way to cut images is another run" "$STRATA" train $base \
    "run:run_dir=$TEST_TMP/halves" "$save" data:image_grid_pinpoints=28,56

expect 0 '1 images of 5 tiles, 384 merged rows' "a question is planned with all its tiles" "$STRATA" check $base --generate

# ---- from images of one tile to several ----------------------------------------------------------------
expect 0 '' "train with images of one tile" "$STRATA" train $base "run:run_dir=$TEST_TMP/small" training:train_iters=1 \
    optimizer:lr_warmup_iters=0 data:image_aspect_ratio=pad "checkpoint:save=$TEST_TMP/small"
start="optimizer:lr_warmup_iters=0 training:train_iters=1 checkpoint:pretrained_checkpoint=$TEST_TMP/small"
expect 78 'has no tensor model/image_newline, which this model needs' "image_newline is asked for" \
    "$STRATA" train $base "run:run_dir=$TEST_TMP/later" $start
expect 0 'image_newline is not in .*: it keeps its initial values' "or starts afresh" "$STRATA" train $base \
    "run:run_dir=$TEST_TMP/later" $start projector:allow_missing_vision_projection_checkpoint=true
expect 78 'holds model/image_newline, which this job.s model does not have' "not dropped in silence" "$STRATA" generate \
    input/llava_tiny.ini --checkpoint "$TEST_TMP/ckpt" --prompt "What?" projector:projector_hidden_size=60 \
    "run:run_dir=$TEST_TMP/none"

# ---- answers ----------------------------------------------------------------------------------------
ask="--checkpoint $TEST_TMP/ckpt --image input/tiny/images/hammer.jpg --image input/tiny/images/padlock.png"
answer() { # RANKS KEY...
    local ranks=$1
    shift
    mpirun -n "$ranks" "$STRATA" generate $base $ask --prompt "What are these?" --max-new-tokens 12 --temperature 1.5 --seed 7 "$@" 2>"$TEST_TMP/err"
}
first=$(answer 1)
yes "two images of several tiles are answered" test -n "$first"
yes "three stages give the same answer" test "$(answer 3 $P=3 $S=2,4,3)" = "$first"
yes "two tensor ranks too" test "$(answer 2 $T=2)" = "$first"

# ---- transformers' names ------------------------------------------------------------------------------
expect 0 '^written: ' "export" "$STRATA" export "$TEST_TMP/ckpt" "$TEST_TMP/hf" --dtype fp32 --image-token 3
expect 0 '^written: ' "import" "$STRATA" import "$TEST_TMP/hf" "$TEST_TMP/back" vision:num_attention_heads=5
expect 0 '^written: ' "export again" "$STRATA" export "$TEST_TMP/back" "$TEST_TMP/hf2" --dtype fp32 --image-token 3
yes "the same tensors" cmp "$TEST_TMP/hf/model.safetensors" "$TEST_TMP/hf2/model.safetensors"
answers=$("$STRATA" generate $base $ask --checkpoint "$TEST_TMP/hf" --prompt "What are these?" --max-new-tokens 12 --temperature 1.5 --seed 7 2>"$TEST_TMP/err")
yes "the exported folder answers alike" test "$answers" = "$first"
exit $status
