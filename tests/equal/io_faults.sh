#!/usr/bin/env bash
# timeout: 3600
# A training job on two ranks whose calls go wrong below the checkpoint folder (tests/faults/io_shim.c,
# preloaded): one failed save is told and training goes on; save_max_failures of them in a row end the
# job with 74 and the older checkpoint; a rank killed in a call ends the job; started again without the
# faults it ends as an undisturbed one. Also under a file size limit. Every single call of a save is in
# tests/unit/test_io_faults.c; here it is the whole program. STRATA_LONG=1 tries more calls.
set -u
cd "$(dirname "$0")/../.." || exit 1
BUILD=${BUILD:-build}
case $BUILD in /*) ;; *) BUILD=$PWD/$BUILD ;; esac
strata=$BUILD/strata
tmp=${TEST_TMP:-$(mktemp -d)}
dir=$tmp/w shim=$tmp/io_shim.so
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
if [ "${SANITIZE:-0}" = 1 ]; then
    echo "ok - I/O faults in a training job # SKIP the sanitizers want to be loaded first"
    exit 0
fi
${CC:-cc} -shared -fPIC -O1 -D_GNU_SOURCE -Itests -o "$shim" tests/faults/io_shim.c || exit 1
mkdir -p "$dir"

# train [NAME=VALUE ...] -- [KEY ...]: one start; its exit code.
train() {
    local set=()
    while [ "$1" != -- ]; do set+=("$1"); shift; done
    shift
    timeout -k 5 100 mpirun -n 2 env "${set[@]}" "$strata" train input/llava_tiny.ini \
        "run:run_dir=$dir/run" run:threads_per_rank=1 "data:data_cache_path=$tmp/cache" \
        data:num_workers=0 vision:num_layers=2 language:num_layers=1 training:train_iters=4 \
        training:micro_batch_size=1 training:global_batch_size=2 \
        parallel:use_distributed_optimizer=true "checkpoint:save=$dir/save" \
        checkpoint:save_interval=1 checkpoint:reproducible=true checkpoint:save_max_failures=2 "$@" \
        >"$dir/log" 2>&1 </dev/null
}
facts() {
    (cd "$dir/save" && sha256sum iter_0000004/*) 2>&1
    cut -d, -f1-6 "$dir/run/metrics.csv"
}
fresh() { rm -rf "$dir/run" "$dir/save" "$dir/fired"; }

# verdict NAME CONDITION...: the command says whether.
verdict() {
    local name=$1
    shift
    if "$@"; then echo "ok - $name"; else
        echo "not ok - $name"
        grep -E '^(error|warning)|not saved' "$dir/log" | head -n 3 | sed 's/^/# /'
    fi
}
# as_wanted: what the run left is what the undisturbed one leaves. If it warned that the last checkpoint
# goes without its index, that is for people only: the file is away and all else must be the same.
as_wanted() {
    facts >"$dir/got"
    cmp -s "$dir/got" "$dir/wanted" && return
    grep -q 'checkpoint of step 4 goes without its index' "$dir/log" && [ ! -e "$dir/save/iter_0000004/index.h5" ] &&
        "$strata" checkpoint verify "$dir/save/iter_0000004" >/dev/null 2>&1 &&
        cmp -s <(without_index <"$dir/got") <(without_index <"$dir/wanted")
}
without_index() { grep -v 'index\.h5\|manifest\.json'; }
# goes_on: without the fault it ends as the undisturbed run.
goes_on() { train -- && as_wanted; }

fresh
train -- || { echo "not ok - the undisturbed run"; tail -n 5 "$dir/log"; exit 1; }
facts >"$dir/wanted"
fault() { # K KIND RANK
    echo "LD_PRELOAD=$shim IO_FAULT=$1:$2:$3 IO_FAULT_FOLDER=$dir/save IO_FAULT_LOG=$dir/fired"
}

# How many calls each rank makes in the whole job; four saves lie in it.
fresh
for rank in 0 1; do
    rm -rf "$dir/save"
    # shellcheck disable=SC2046
    train $(fault -1 EIO $rank) -- || { echo "not ok - the run with the shim"; exit 1; }
    n[rank]=$(cat "$dir/fired")
    echo "# rank $rank: ${n[rank]} calls"
    fresh
done

# One call fails: the job ends well and the last checkpoint is the undisturbed one's; a save that
# failed is told. Rank 1 writes its shard only; rank 0 also the lock, where a failure ends the job.
places=45 # in hundredths
[ "${STRATA_LONG:-0}" = 1 ] && places=$(seq 26 3 99)
for kind in ENOSPC EIO EDQUOT EINTR SHORT; do
    for place in $places; do
        [ "${STRATA_LONG:-0}" = 1 ] || [ $kind != EDQUOT -a $kind != EINTR ] || continue
        for rank in 0 1; do
            k=$((n[rank] * place / 100))
            fresh
            # shellcheck disable=SC2046
            train $(fault "$k" $kind $rank) --
            code=$?
            told=fine
            grep -q 'was not saved' "$dir/log" && told=told
            verdict "$kind at call $k of rank $rank: the job goes on ($told)" \
                test $code = 0 -a -s "$dir/fired" -a "$(as_wanted && echo same)" = same
        done
    done
done

# A full disk: every save fails from there on; two in a row are allowed.
for rank in 0 1; do
    fresh
    # shellcheck disable=SC2046
    train $(fault $((n[rank] * 45 / 100)) FULL $rank) --
    code=$?
    verdict "a full disk on rank $rank ends the job with 74 after two failures (code $code)" \
        test $code = 74 -a "$(grep -c 'was not saved' "$dir/log")" = 1
    verdict "the sentence names save_max_failures" grep -q 'save_max_failures' "$dir/log"
    verdict "the older checkpoint stands, nothing is left over" \
        test "$(cd "$dir/save" && ls | tr '\n' ' ')" = "iter_0000001 latest_checkpointed_iteration.txt "
    verdict "and the job goes on from there" goes_on
done

# A second folder: the same full disk stops nothing, and the next start finds what was saved there.
for rank in 0 1; do
    fresh
    rm -rf "$dir/second"
    # shellcheck disable=SC2046
    train $(fault $((n[rank] * 45 / 100)) FULL $rank) -- "checkpoint:save_second=$dir/second"
    code=$?
    verdict "save_second: a full disk on rank $rank is survived (code $code)" \
        test $code = 0 -a "$(grep -c 'the save failed and is tried in' "$dir/log")" -ge 2
    verdict "and what is there is named" grep -q "saved step 4 in $dir/second" "$dir/log"
    train -- "checkpoint:save_second=$dir/second"
    verdict "and gone on from" grep -q "resumed from $dir/second/iter_0000004, step 4; 0 steps lost" "$dir/log"
done

for place in $places; do
    for rank in 0 1; do
        k=$((n[rank] * place / 100))
        fresh
        # shellcheck disable=SC2046
        train $(fault "$k" KILL $rank) --
        code=$?
        verdict "rank $rank killed in call $k (code $code): recovers" \
            test $code != 0 -a -s "$dir/fired" -a "$(goes_on && echo same)" = same
    done
done

# Files may not grow: said before the first byte, no signal, no half file.
fresh
strata=$tmp/limited
printf '#!/bin/sh\nulimit -f 600\nexec "%s" "$@"\n' "$BUILD/strata" >"$strata"
chmod +x "$strata"
train OMPI_MCA_btl=self,tcp --
code=$?
strata=$BUILD/strata
verdict "ulimit -f ends the job with 74 (code $code)" test $code = 74
verdict "and is named" grep -q 'ulimit -f' "$dir/log"
verdict "without it the job runs" goes_on
