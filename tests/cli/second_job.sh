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

# fake_squeue CODE TEXT: what squeue says from now on.
mkdir "$TEST_TMP/bin"
fake_squeue() {
    printf '#!/bin/sh\necho "$@" >"%s"\nprintf "%%s" "%s"\nexit %s\n' "$TEST_TMP/asked" "$2" "$1" >"$TEST_TMP/bin/squeue"
    chmod +x "$TEST_TMP/bin/squeue"
}
# lock_of JOB RESTART HOST SECONDS: a lock left by such a run that has shown no life for so long.
lock_of() {
    mkdir -p "$TEST_TMP/other"
    rm -rf "$TEST_TMP"/other/*
    printf 'nonce ab\njob %s\nrestart %s\nhost %s\nboot x\npid 7\npid_start 1\nstarted then\n' "$1" "$2" "$3" >"$TEST_TMP/other/run.lock"
    touch -d "-$4 seconds" "$TEST_TMP/other/run.lock"
}
# taken CODE REGEX NAME [VARIABLE=VALUE ...]: a program that wants the lock.
taken() {
    expect "$1" "$2" "$3" env "PATH=$TEST_TMP/bin:$PATH" "${@:4}" "$STRATA" checkpoint prune "$TEST_TMP/other" --keep 2
}
gone='run\.lock of a run that is gone \(pid 7, job 815, host elsewhere\) is taken over'
lock_of 815 0 elsewhere 40
fake_squeue 1 'slurm_load_jobs error: Invalid job id specified'
taken 0 "$gone" "another host's job that squeue does not know is taken over"
yes "squeue was asked for that job" grep -qx -- '-h -o %T -j 815' "$TEST_TMP/asked"
lock_of 815 0 elsewhere 40
fake_squeue 0 ''
taken 0 "$gone" "so is one that squeue does not list"
lock_of 815 0 elsewhere 40
fake_squeue 0 'CANCELLED'
taken 0 "$gone" "or lists as ended"
for state in RUNNING SUSPENDED COMPLETING PENDING nonsense; do
    lock_of 815 0 elsewhere 4000
    fake_squeue 0 $state
    taken 77 "job 815 on host elsewhere, .*squeue says \"$state\"" "not one that is $state, however long it is silent"
done
lock_of 815 0 elsewhere 40
fake_squeue 1 'slurm_load_jobs error: Unable to contact slurm controller'
taken 77 'Unable to contact' "nor one that squeue cannot tell of"
printf '#!/bin/sh\nkill -9 $$\n' >"$TEST_TMP/bin/squeue"
taken 77 'squeue says ""' "nor where squeue dies"
rm -f "$TEST_TMP/bin/squeue"
command -v squeue >/dev/null || taken 77 'squeue cannot be run' "nor without squeue"
fake_squeue 1 'slurm_load_jobs error: Invalid job id specified'
rm "$TEST_TMP/asked"
lock_of 815 0 elsewhere 20
taken 77 'it is alive' "nor one that has just shown life"
yes "and squeue is not even asked" test ! -e "$TEST_TMP/asked"
for job in none '8;touch x' ''; do
    lock_of "$job" 0 elsewhere 4000
    taken 77 'cannot be asked for' "nor job \"$job\" of another host"
done
yes "and squeue is not asked for that" test ! -e "$TEST_TMP/asked"
lock_of 815 1 elsewhere 0
taken 0 "$gone" "an earlier start of this very job is taken over at once" SLURM_JOB_ID=815 SLURM_RESTART_COUNT=2
lock_of 815 2 elsewhere 0
taken 77 'another run writes there' "a later one is not" SLURM_JOB_ID=815 SLURM_RESTART_COUNT=2
lock_of none 0 "$(hostname)" 0
taken 0 'is taken over' "a process of this host before it was started anew"

start 100000
touch -d '-1 hour' "$TEST_TMP/ckpt/run.lock"
beats() { [ $(($(date +%s) - $(stat -c %Y "$TEST_TMP/ckpt/run.lock"))) -lt 60 ]; }
for _ in $(seq 15); do beats || sleep 1; done
yes "a run that holds the lock gives signs of life" beats
holder=$(sed -n 's/^pid //p' "$TEST_TMP/ckpt/run.lock")
train 2 training:train_iters=4 "${common[@]}"
expect 77 "^error: .*run\.lock: another run writes there: job none on host .*, pid $holder," "a second job on the folder is refused" "${command[@]}"
yes "the first goes on" kill -0 "$holder"
yes "and still holds the lock" grep -q "^pid $holder$" "$TEST_TMP/ckpt/run.lock"
kill -KILL "$holder"
wait "$first"
yes "a killed job leaves its lock" test -f "$TEST_TMP/ckpt/run.lock"
train 1 training:train_iters=6 "${common[@]}"
expect 0 "run\.lock of a run that is gone \(pid $holder, job none," "and the next takes it over" "${command[@]}"
yes "a finished job leaves no lock" test ! -e "$TEST_TMP/ckpt/run.lock"
train 2 training:train_iters=3 "${common[@]}"
expect 0 'finished after step 6 of 3' "fewer steps than the checkpoint has" "${command[@]}"
train 1 training:train_iters=6 training:seed=99 "${common[@]}"
expect 78 '' "a job that is refused" "${command[@]}"
yes "leaves no lock either" test ! -e "$TEST_TMP/ckpt/run.lock"
exit $status
