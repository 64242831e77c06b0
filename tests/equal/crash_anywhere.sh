#!/usr/bin/env bash
# timeout: 14400
# Crash anywhere: a small job on four ranks (two stages, two data ranks, sharded optimizer), saving
# after every step, is ended at each fault point of build/faults/strata, on the first, the middle, the
# last and on all ranks that pass it, by SIGKILL, SIGSEGV and _exit(0). Started again it must end with
# the files of an undisturbed run: the last checkpoint byte for byte (weights, moments, counters,
# position, history), metrics.csv but for its times, nothing left over.
#
# Two beginnings: from nothing; and from what a bad day leaves (a stale lock, a folder that is complete
# but for its name, an unfinished one, half-removed rubbish, a damaged newest checkpoint).
#
# STRATA_LONG=1 takes all cases, otherwise a sample. CRASH_CASES=REGEX: those whose name matches.
# CRASH_WORKERS=N (2) run side by side. CRASH_ASYNC=true: checkpoints are written beside the training.
# CRASH_KEYS="section:key=value ...": further keys, as checkpoint:writers=node.
set -u
cd "$(dirname "$0")/../.." || exit 1
BUILD=${BUILD:-build}
case $BUILD in /*) ;; *) BUILD=$PWD/$BUILD ;; esac
strata=$BUILD/faults/strata
tmp=${TEST_TMP:-$(mktemp -d)}
ranks=4 steps=4 workers=${CRASH_WORKERS:-2} patience=${CRASH_PATIENCE:-60}
[ "${SANITIZE:-0}" = 1 ] && patience=300
[ "${STRATA_LONG:-0}" = 1 ] && wanted=all || wanted=14
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
if [ ! -x "$strata" ]; then
    echo "not ok - $strata is not built (make faults)"
    exit 1
fi

# train DIR [NAME=VALUE ...]: one start of the job in DIR; its exit code.
train() {
    local dir=$1 keys
    shift
    read -ra keys <<<"${CRASH_KEYS:-}"
    env "$@" timeout -k 5 $patience mpirun -n $ranks "$strata" train input/llava_tiny.ini \
        "run:run_dir=$dir/run" run:threads_per_rank=1 "data:data_cache_path=$tmp/cache" \
        data:num_workers=0 vision:num_layers=2 language:num_layers=1 training:train_iters=$steps \
        training:micro_batch_size=1 training:global_batch_size=4 \
        training:check_weight_hash_across_dp_replicas_interval=1 \
        parallel:pipeline_model_parallel_size=2 parallel:split_spec=2,3 \
        parallel:use_distributed_optimizer=true "checkpoint:save=$dir/save" \
        checkpoint:save_interval=1 checkpoint:most_recent_k=2 checkpoint:reproducible=true \
        "checkpoint:async_save=${CRASH_ASYNC:-false}" "${keys[@]}" \
        >"$dir/log" 2>&1 </dev/null
}

# facts DIR: what must be equal in the end. (Half-made locks stay for a minute.)
facts() {
    (cd "$1/save" && ls -A | grep -v '^run\.lock\.' && cat latest_checkpointed_iteration.txt && sha256sum iter_*$steps/*)
    cut -d, -f1-6 "$1/run/metrics.csv"
}

# begin DIR SCENARIO: the folders as they are before the crash.
begin() {
    rm -rf "$1/run" "$1/save"
    [ "$2" = new ] || cp -r "$1/bad/run" "$1/bad/save" "$1"
}

# prepare DIR: the undisturbed run of a worker and the bad day.
prepare() {
    local dir=$1 bad=$1/bad/save shard
    mkdir -p "$dir/bad"
    begin "$dir" new
    train "$dir" || { tail -n 5 "$dir/log"; return 1; }
    facts "$dir" >"$dir/wanted"
    begin "$dir" new
    train "$dir" "FAULT=finish.told:all:1:kill" && return 1 # leaves its lock behind
    cp -r "$dir/run" "$dir/save" "$dir/bad"
    mkdir "$bad/.trash-iter_0000001" "$bad/iter_0000009.tmp-7-0"
    cp -r "$bad/iter_0000003" "$bad/iter_0000003.tmp-6-0"
    rm "$bad/iter_0000003.tmp-6-0/manifest.json"
    mv "$bad/iter_0000003" "$bad/iter_0000003.tmp-8-0"
    shard=$(ls "$bad"/iter_000000$steps/*shard-*.h5 | sed -n '3p;$p' | head -n 1)
    cp "$shard" "$bad/.trash-iter_0000001/old.h5"
    cp "$shard" "$bad/iter_0000009.tmp-7-0/new.h5"
    printf 'x' | dd of="$shard" bs=1 seek=5000 conv=notrunc status=none
}

# cases: "SCENARIO POINT RANK N" for every point and the ranks that pass it, N in the middle of its
# passings; the traces of two undisturbed runs say which.
cases() {
    local dir=$1 scenario
    for scenario in new bad; do
        begin "$dir" $scenario
        rm -f "$dir"/trace.$scenario.*
        train "$dir" "FAULT_TRACE=$dir/trace.$scenario" || return 1
        facts "$dir" | cmp -s - "$dir/wanted" || { echo "# from $scenario: another result" >&2; return 1; }
    done
    awk -v ranks=$ranks -v dir="$dir" '
        BEGIN {
            split("new bad", scenario)
            for (s = 1; s <= 2; s++)
                for (r = 0; r < ranks; r++)
                    while ((getline name < (dir "/trace." scenario[s] "." r)) > 0) {
                        n[scenario[s], name, r]++
                        names[name]
                    }
            split("first middle last all", word)
            at[1] = 0; at[2] = int(ranks / 2); at[3] = ranks - 1
            for (name in names)
                for (w = 1; w <= 4; w++)
                    for (s = 1; s <= 2; s++) {
                        count = 0
                        for (r = 0; r < ranks; r++)
                            if ((w == 4 || at[w] == r) && n[scenario[s], name, r] && (count == 0))
                                count = n[scenario[s], name, r]
                        if (count) {
                            print scenario[s], name, word[w], int((count + 1) / 2)
                            break
                        }
                    }
        }' | sort -k2,2 -k3,3
}

# crash DIR SCENARIO POINT RANK N ACTION: one case, one line.
crash() {
    local dir=$1 name="$3 $4 $6 ($2, passing $5)" code tries why=
    begin "$dir" "$2"
    train "$dir" "FAULT=$3:$4:$5:$6"
    code=$?
    case $code in
    0) why="the job ended well: the fault did not fire" ;;
    124 | 137) [ $code = 124 ] && why="the job hung" ;;
    esac
    for tries in 1 2; do
        [ -n "$why" ] && break
        train "$dir" && break
        [ $tries = 2 ] && why="it does not go on: $(grep -h '^error' "$dir/log" | head -n 2 | tr '\n' ' ')"
    done
    if [ -z "$why" ]; then
        facts "$dir" >"$dir/got" 2>&1
        cmp -s "$dir/got" "$dir/wanted" ||
            why="another end: $(diff "$dir/wanted" "$dir/got" | head -n 4 | tr '\n' ' ')"
    fi
    [ -z "$why" ] && echo "ok - $name" && return
    echo "not ok - $name: $why"
    cp "$dir/log" "$tmp/failed-$(echo "$3-$4-$6" | tr ' ' -).log"
}

work() {
    local dir=$1 s p r n a
    while read -r s p r n a; do crash "$dir" "$s" "$p" "$r" "$n" "$a"; done
}

for w in $(seq "$workers"); do
    prepare "$tmp/w$w" || { echo "not ok - the undisturbed run of worker $w"; exit 1; }
done
cases "$tmp/w1" >"$tmp/passed" || { echo "not ok - the traced runs give another result"; exit 1; }

# Each point must be passed somewhere: one that is not proves nothing.
"$BUILD/faults/list_points" >"$tmp/points"
cut -d' ' -f2 "$tmp/passed" | sort -u >"$tmp/reached"
never=$(comm -23 "$tmp/points" "$tmp/reached" | tr '\n' ' ')
points=$(wc -l <"$tmp/reached")
if [ "$points" -ge 64 ]; then
    echo "ok - $points fault points are passed"
else
    echo "not ok - $points fault points are passed, 64 are wanted"
fi
[ -z "$never" ] || echo "# not passed by this job: $never"

while read -r line; do
    for action in kill segv exit0; do echo "$line $action"; done
done <"$tmp/passed" | grep -E "${CRASH_CASES:-.}" >"$tmp/all"
total=$(wc -l <"$tmp/all")
every=1
[ $wanted = all ] || every=$(((total + wanted - 1) / wanted))
while [ $((every % 2)) = 0 ] || [ $((every % 3)) = 0 ]; do every=$((every - 1)); done # all actions
awk -v every="$every" 'NR % every == int(every / 2)' "$tmp/all" >"$tmp/list"
[ "$every" -gt 1 ] || cp "$tmp/all" "$tmp/list"
for w in $(seq "$workers"); do
    awk -v w="$w" -v of="$workers" 'NR % of == w - 1' "$tmp/list" | work "$tmp/w$w" &
done | tee "$tmp/result"
wait
good=$(grep -c '^ok' "$tmp/result")
echo "# $good of $(wc -l <"$tmp/list") cases recovered bit for bit; $total cases of $points points in all"
[ "$good" = "$(wc -l <"$tmp/list")" ]
