#!/usr/bin/env bash
# The loss on held-out data: the same in every layout, whatever the batches, and no business of the
# training; validation.csv goes along with a resume; strata eval gives the same for a checkpoint.
# timeout: 300
. "$(dirname "$0")/cli.inc"
patience=$((patience * 3))
header=iteration,consumed_samples,lm_loss,perplexity,target_tokens,samples,elapsed_ms
few="training:train_iters=4 optimizer:lr_decay_iters=20 run:threads_per_rank=1 data:data_cache_path=$TEST_TMP/cache"
valid="data:valid_data_path=tiny/train.json eval:eval_interval=2"
cut3="parallel:pipeline_model_parallel_size=3 parallel:split_spec=2,4,3"

# go NAME CODE RANKS OVERRIDES...: a run in its own folder $TEST_TMP/NAME
go() {
    local name=$1 code=$2 ranks=$3
    shift 3
    expect "$code" '' "run $name" mpirun -n "$ranks" "$STRATA" train $tiny "run:run_dir=$TEST_TMP/$name" $few "$@"
}
# losses NAME: without the times
losses() { cut -d, -f1-6 "$TEST_TMP/$1/validation.csv"; }
same() { # NAME A B
    yes "$1" diff <(losses "$2") <(losses "$3")
}
near() { # NAME A B TOLERANCE: columns 3 and 5
    paste -d, <(losses "$2") <(losses "$3") | awk -F, -v tolerance="$4" 'NR > 1 {
        d = ($3 - $9) / $3; if (d < 0) d = -d; if (!(d <= tolerance) || $5 != $11) bad = 1; n++ }
        END { exit !(n == 2 && !bad) }'
    yes "$1" test $? = 0
}

go plain 0 1
go one 0 1 $valid
yes "validation.csv has its header" test "$(head -n 1 "$TEST_TMP/one/validation.csv")" = "$header"
yes "a row every eval_interval steps" test "$(cut -d, -f1 "$TEST_TMP/one/validation.csv" | tr '\n' ' ')" = "iteration 2 4 "
yes "one pass over the 32 samples" test "$(tail -n 1 "$TEST_TMP/one/validation.csv" | cut -d, -f6)" = 32
yes "the perplexity is exp of the loss" awk -F, 'NR > 1 { d = exp($3) / $4 - 1; if (!(d * d < 1e-20)) exit 1 }' "$TEST_TMP/one/validation.csv"
yes "evaluating leaves the training alone" diff <(cut -d, -f1-6 "$TEST_TMP/plain/metrics.csv") <(cut -d, -f1-6 "$TEST_TMP/one/metrics.csv")
line=' validation loss at iteration 2 \| lm loss value: [0-9.]+E[-+][0-9]+ \| lm loss PPL: [0-9.]+E[-+][0-9]+ \| $'
yes "Megatron-LM's line" grep -qE "$line" "$TEST_TMP/one/log"
line=' validation loss at iteration 4 on validation set \| lm loss value: [0-9.]+E[-+][0-9]+ \| lm loss PPL: [0-9.]+E[-+][0-9]+ \| $'
yes "Megatron-LM's line at the end" grep -qE "$line" "$TEST_TMP/one/log"
yes "the lines stand between dashes" test "$(grep -cE '^-+$' "$TEST_TMP/one/log")" = 4

go cut3 0 3 $valid $cut3
same "split 2,4,3 gives the same bits" one cut3
go wide 0 4 $valid parallel:tensor_model_parallel_size=2 parallel:sequence_parallel=true
near "tensor 2 x data 2, sequence parallel" one wide 1e-6
# 32 samples in steps of 12: the third step is filled up, and what fills it does not count.
go uneven 0 2 $valid training:global_batch_size=12 training:micro_batch_size=3
yes "a step that is filled up counts each sample once" test "$(tail -n 1 "$TEST_TMP/uneven/validation.csv" | cut -d, -f5,6)" = "$(tail -n 1 "$TEST_TMP/one/validation.csv" | cut -d, -f5,6)"
go short 0 1 $valid eval:eval_iters=1
yes "eval_iters = 1 takes 16 samples" test "$(tail -n 1 "$TEST_TMP/short/validation.csv" | cut -d, -f6)" = 16
go none 0 1 $valid eval:eval_iters=0
yes "eval_iters = 0 takes none" test ! -e "$TEST_TMP/none/validation.csv"

save="checkpoint:save=$TEST_TMP/ckpt checkpoint:save_interval=1"
go part 0 2 $valid $save training:exit_interval=3 parallel:pipeline_model_parallel_size=2
yes "stopped at step 3 with one row" test "$(wc -l <"$TEST_TMP/part/validation.csv")" = 2
echo "4,64,9,9,9,9,9" >>"$TEST_TMP/part/validation.csv"
go part 0 2 $valid $save training:exit_interval=1000 parallel:pipeline_model_parallel_size=2
same "resumed: later rows are cut off, the rest is the same" one part

# ---- strata eval: the same figure from the checkpoint, in other layouts -----------------------------------
loss=$(grep 'iteration 4 on validation set' "$TEST_TMP/part/log")
job="$tiny $few data:valid_data_path=tiny/train.json"
evaluate() { # NAME RANKS WORDS...
    local name=$1 ranks=$2
    shift 2
    expect 0 ' validation loss at iteration 4 on validation set ' "strata eval, $name" mpirun -n "$ranks" "$STRATA" eval "$@"
    yes "strata eval, $name: the loss of the run" grep -qF -- "$loss" <<<"$out"
}
evaluate "one rank" 1 $tiny "$TEST_TMP/ckpt" $few data:valid_data_path=tiny/train.json
evaluate "one folder, 3 stages" 3 $tiny "$TEST_TMP/ckpt/iter_0000004" $few data:valid_data_path=tiny/train.json $cut3
evaluate "save of the job, tensor 2 x data 2" 4 $job "checkpoint:save=$TEST_TMP/ckpt" \
    parallel:tensor_model_parallel_size=2 parallel:sequence_parallel=true
expect 64 'valid_data_path is not set' "strata eval without data" "$STRATA" eval $tiny "$TEST_TMP/ckpt" $few
expect 64 'no checkpoint' "strata eval without a checkpoint" "$STRATA" eval $job
expect 66 'there is no such folder' "strata eval of nothing" "$STRATA" eval $job checkpoint:load=$TEST_TMP/nothing
expect 78 'lm_head/weight is 400x60' "strata eval of another model" "$STRATA" eval $job checkpoint:load=$TEST_TMP/ckpt language:hidden_size=80

expect 66 'nowhere.json' "held-out data that are not there" mpirun -n 1 "$STRATA" train $tiny \
    "run:run_dir=$TEST_TMP/x" $few data:valid_data_path=nowhere.json
exit $status
