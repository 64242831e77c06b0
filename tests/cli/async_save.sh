# Checkpoints written while training goes on: the same curve and the same state as with training that
# waits, one save at a time, and nothing lost when the job is killed in between.
# timeout: 300
. "$(dirname "$0")/cli.inc"
patience=$((patience * 3))
common=(run:threads_per_rank=1 optimizer:lr_decay_iters=20 checkpoint:save_timeout=600)
two=(parallel:pipeline_model_parallel_size=2 parallel:split_spec=5,4)

# go NAME RANKS OVERRIDES...: a run in $TEST_TMP/NAME with its checkpoints in NAME/ckpt.
go() {
    local name=$1 ranks=$2
    shift 2
    expect 0 '' "run $name" mpirun -n "$ranks" "$STRATA" train $tiny "run:run_dir=$TEST_TMP/$name" \
        "checkpoint:save=$TEST_TMP/$name/ckpt" "${common[@]}" "$@"
}
losses() { cut -d, -f1,2,3,4,6 "$TEST_TMP/$1/metrics.csv"; }
same() { # NAME A B
    losses "$2" >"$TEST_TMP/a"
    losses "$3" >"$TEST_TMP/b"
    yes "$1" diff "$TEST_TMP/a" "$TEST_TMP/b"
}

# ---- the same as with training that waits -------------------------------------------------------------
go waits 2 training:train_iters=7 checkpoint:save_interval=3 "${two[@]}"
go beside 2 training:train_iters=7 checkpoint:save_interval=3 checkpoint:async_save=true "${two[@]}"
same "the same curve" waits beside
for step in 3 6 7; do
    expect 0 '' "the same state of step $step" "$STRATA" checkpoint diff "$TEST_TMP/waits/ckpt/iter_000000$step" "$TEST_TMP/beside/ckpt/iter_000000$step"
done
yes "three saves are counted" grep -qE '^3 saves; training stood still for [0-9.]+ s \(p50\), [0-9.]+ s \(p99\)' "$TEST_TMP/beside/log"
yes "each is told with what training waited" test "$(grep -cE '^saved step [367] in .* GB/s; training stood still for [0-9.]+ s\)' "$TEST_TMP/beside/log")" = 3
yes "nothing is left" sh -c "! ls -a '$TEST_TMP/beside/ckpt' | grep -E 'tmp|trash|run.lock'"

# ---- a save at every step: one at a time ----------------------------------------------------------------
go every 2 training:train_iters=5 checkpoint:save_interval=1 checkpoint:async_save=true checkpoint:most_recent_k=2 "${two[@]}"
yes "a save that falls due while one runs waits and says so" grep -qE '^step [2-5] waits to be saved: step [1-4] is still being written' "$TEST_TMP/every/log"
yes "every step was saved" test "$(grep -c '^saved step' "$TEST_TMP/every/log")" = 5
yes "retention keeps two" sh -c "ls '$TEST_TMP/every/ckpt' | grep -c '^iter_' | grep -qx 2"

# ---- killed while it writes -------------------------------------------------------------------------------
go whole 1 training:train_iters=12
killed=0
for try in 1 2 3 4 5 6; do
    setsid mpirun -n 1 "$STRATA" train $tiny "run:run_dir=$TEST_TMP/killed" "checkpoint:save=$TEST_TMP/killed/ckpt" "${common[@]}" \
        training:train_iters=12 checkpoint:save_interval=1 checkpoint:async_save=true >"$TEST_TMP/killed.log" 2>&1 &
    pid=$!
    for _ in $(seq 500); do # until it writes into a folder of its own
        kill -0 $pid 2>/dev/null || break
        worker=$(sed -n 's/^pid //p' "$TEST_TMP/killed/ckpt/run.lock" 2>/dev/null)
        ls -d "$TEST_TMP"/killed/ckpt/*".tmp-pid$worker-"*/*.h5 >/dev/null 2>&1 && kill -KILL "$worker" 2>/dev/null &&
            killed=$((killed + 1)) && break
        sleep 0.02
    done
    wait $pid
done
yes "killed while a checkpoint is written ($killed times)" test $killed -ge 3
go killed 1 training:train_iters=12 checkpoint:save_interval=100 checkpoint:async_save=true
same "the run goes on and gives the same curve" whole killed
newest() { ls -d "$TEST_TMP/$1"/ckpt/iter_*[0-9] | tail -n 1; }
expect 0 '' "and the same state" "$STRATA" checkpoint diff "$(newest whole)" "$(newest killed)"

# ---- a signal while one is written -------------------------------------------------------------------------
mpirun -n 2 "$STRATA" train $tiny "run:run_dir=$TEST_TMP/signal" "checkpoint:save=$TEST_TMP/signal/ckpt" "${common[@]}" "${two[@]}" \
    training:train_iters=100000 checkpoint:save_interval=1 checkpoint:async_save=true >"$TEST_TMP/signal.log" 2>&1 &
pid=$!
for _ in $(seq 300); do
    [ "$(cat "$TEST_TMP/signal/metrics.csv" 2>/dev/null | wc -l)" -ge 3 ] && break
    sleep 0.1
done
kill -USR1 $pid
wait $pid
yes "USR1 ends with 75" test $? = 75
last=$(tail -n 1 "$TEST_TMP/signal/metrics.csv" | cut -d, -f1)
yes "and the last step is saved" test -f "$TEST_TMP/signal/ckpt/iter_$(printf %07d "$last")/manifest.json"
exit $status
