# Two jobs on one checkpoint folder: the second is refused and told who holds it; the lock of a job
# that was killed is taken over; a job of fewer steps than its checkpoint has ends well.
# timeout: 120
. "$(dirname "$0")/cli.inc"
common=(run:threads_per_rank=1 optimizer:lr_decay_iters=20 "checkpoint:save=$TEST_TMP/ckpt")

# start STEPS: a job in the background, once it has done a step.
start() {
    rm -rf "$TEST_TMP/first"
    mpirun -n 1 "$STRATA" train $tiny "run:run_dir=$TEST_TMP/first" "training:train_iters=$1" "${common[@]}" >"$TEST_TMP/first.log" 2>&1 &
    first=$!
    for _ in $(seq 300); do
        [ "$(cat "$TEST_TMP/first/metrics.csv" 2>/dev/null | wc -l)" -ge 2 ] && break
        sleep 0.1
    done
}

start 100000
holder=$(sed -n 's/^pid //p' "$TEST_TMP/ckpt/run.lock")
train 2 training:train_iters=4 "${common[@]}"
expect 77 "^error: .*run\.lock: another run writes there: job none on host .*, pid $holder," "a second job on the folder is refused" "${command[@]}"
yes "the first goes on" kill -0 "$holder"
yes "and still holds the lock" grep -q "^pid $holder$" "$TEST_TMP/ckpt/run.lock"
kill -KILL "$holder"
wait "$first"
yes "a killed job leaves its lock" test -f "$TEST_TMP/ckpt/run.lock"
train 1 training:train_iters=6 "${common[@]}"
expect 0 "run\.lock of a run that is gone \(pid $holder\) is taken over" "and the next takes it over" "${command[@]}"
yes "a finished job leaves no lock" test ! -e "$TEST_TMP/ckpt/run.lock"
train 2 training:train_iters=3 "${common[@]}"
expect 0 'finished after step 6 of 3' "fewer steps than the checkpoint has" "${command[@]}"
train 1 training:train_iters=6 training:seed=99 "${common[@]}"
expect 78 '' "a job that is refused" "${command[@]}"
yes "leaves no lock either" test ! -e "$TEST_TMP/ckpt/run.lock"
exit $status
