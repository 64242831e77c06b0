# What strata train leaves behind, and that it is the same whatever the layout. A few steps of the tiny
# job; the long comparison of layouts is in tests/equal.
# timeout: 300
. "$(dirname "$0")/cli.inc"
patience=$((patience * 3))
header=iteration,consumed_samples,lm_loss,grad_norm,learning_rate,target_tokens,elapsed_ms,samples_per_s,tokens_per_s
few="training:train_iters=6"
decay="optimizer:lr_decay_iters=20 run:threads_per_rank=1"

# go NAME CODE RANKS OVERRIDES...: a run in its own folder $TEST_TMP/NAME
go() {
    local name=$1 code=$2 ranks=$3
    shift 3
    expect "$code" '' "run $name" mpirun -n "$ranks" "$STRATA" train "${job:-$tiny}" "run:run_dir=$TEST_TMP/$name" "$@"
}
losses() { cut -d, -f1,2,3,6 "$TEST_TMP/$1/metrics.csv"; }
same() { # NAME A B
    yes "$1" sh -c "[ -s '$TEST_TMP/$2/metrics.csv' ] && cut -d, -f1,2,3,6 '$TEST_TMP/$2/metrics.csv' > '$TEST_TMP/a' &&
        cut -d, -f1,2,3,6 '$TEST_TMP/$3/metrics.csv' | diff '$TEST_TMP/a' -"
}

# ---- one rank ------------------------------------------------------------------------------------------
go one 0 1 $few $decay
line=' \[[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]{15}\] iteration +6/ +6 \| consumed samples: +96 \| elapsed time per iteration \(ms\): [0-9.]+ \| throughput per GPU \(TFLOP/s/GPU\): [0-9.]+ \| learning rate: [0-9.]+E[-+][0-9]+ \| global batch size: +16 \| lm loss: [0-9.]+E[-+][0-9]+ \| loss scale: 1\.0 \| grad norm: [0-9.]+ \| number of skipped iterations: +0 \| number of nan iterations: +0 \|'
yes "the log line has Megatron-LM's fields" grep -qE "$line" <<<"$out"
yes "the log file says the same" grep -qE "$line" "$TEST_TMP/one/log"
yes "metrics.csv has its header" test "$(head -n 1 "$TEST_TMP/one/metrics.csv")" = "$header"
yes "metrics.csv has a row per step" test "$(wc -l <"$TEST_TMP/one/metrics.csv")" = 7
yes "status.json says finished" grep -q '"state": "finished"' "$TEST_TMP/one/status.json"
yes "used.ini names what was overridden" grep -qE '^train_iters *= *6' "$TEST_TMP/one/used.ini"
awk -F, 'NR == 2 { first = $3 } END { exit !($3 < first && first > 0) }' "$TEST_TMP/one/metrics.csv"
yes "the loss falls" test $? = 0

# ---- used.ini repeats the run bit for bit ---------------------------------------------------------------
cp "$TEST_TMP/one/used.ini" "$TEST_TMP/used.ini"
job=$TEST_TMP/used.ini go again 0 1
same "used.ini repeats the run bit for bit" one again

# ---- other cuts, the same bits ---------------------------------------------------------------------------
go cut3 0 3 $few $decay parallel:pipeline_model_parallel_size=3 parallel:split_spec=2,4,3
same "split 2,4,3 gives the same bits" one cut3
go cut4 0 4 $few $decay parallel:pipeline_model_parallel_size=4 parallel:split_spec=3,2,3,1 \
    training:recompute_granularity=full training:recompute_method=uniform training:recompute_num_layers=1
same "split 3,2,3,1 with recompute gives the same bits" one cut4
go auto2 0 2 $few $decay parallel:pipeline_model_parallel_size=2
same "split auto gives the same bits" one auto2
yes "used.ini has auto resolved" grep -qE '^split_spec *= *[1-8],[1-8]' "$TEST_TMP/auto2/used.ini"

# ---- stop, and go on ---------------------------------------------------------------------------------------
save="checkpoint:save=$TEST_TMP/ckpt $decay"
go part 0 2 training:train_iters=6 training:exit_interval=3 parallel:pipeline_model_parallel_size=2 parallel:split_spec=5,4 $save
yes "exit_interval stops at step 3" test "$(wc -l <"$TEST_TMP/part/metrics.csv")" = 4
yes "and leaves a checkpoint" test -f "$TEST_TMP/ckpt/iter_0000003/manifest.json"
go part 0 2 training:train_iters=6 training:exit_interval=1000 parallel:pipeline_model_parallel_size=2 parallel:split_spec=5,4 $save
same "the run that was stopped and resumed gives the same bits" one part
go part 0 3 training:train_iters=6 parallel:pipeline_model_parallel_size=3 parallel:split_spec=2,3,4 $save
yes "a finished run has nothing left to do" test "$(wc -l <"$TEST_TMP/part/metrics.csv")" = 7

touch "$TEST_TMP/one/STOP"
go one 0 1 $few $decay
yes "a STOP file burns the job off" grep -q '"state": "stopped"' "$TEST_TMP/one/status.json"

mpirun -n 2 "$STRATA" train $tiny "run:run_dir=$TEST_TMP/signal" training:train_iters=100000 \
    "checkpoint:save=$TEST_TMP/signal/ckpt" $decay >"$TEST_TMP/signal.log" 2>&1 &
pid=$!
for _ in $(seq 300); do
    [ "$(wc -l <"$TEST_TMP/signal/metrics.csv" 2>/dev/null || echo 0)" -ge 3 ] && break
    sleep 0.1
done
kill -USR1 $pid
wait $pid
yes "USR1 ends with 75" test $? = 75
yes "and a checkpoint of the step" sh -c "ls '$TEST_TMP'/signal/ckpt/iter_*/manifest.json"
yes "status.json says that the state is saved" grep -q '"exit_code": 75' "$TEST_TMP/signal/status.json"

expect 0 '' "h5dump reads a shard" h5dump -A "$(ls "$TEST_TMP"/ckpt/iter_0000003/*shard*.h5 | head -n 1)"
yes "and shows global shapes" grep -q global_shape <<<"$out"
exit $status
