#!/usr/bin/env bash
# timeout: 600
# The whole program on storage that is ill (tests/faults/read_shim.c, preloaded) and on one without file
# locks: nothing is marked, the code is 74 or 77, the next healthy start goes on; and flock is not needed
# by a start, a save, a resume, a command, an import. Every call: tests/unit/test_read_faults.c.
set -u
cd "$(dirname "$0")/../.." || exit 1
BUILD=${BUILD:-build}
tmp=${TEST_TMP:-$(mktemp -d)}
strata=$BUILD/strata
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
if [ "${SANITIZE:-0}" = 1 ]; then
    echo "ok - storage errors # SKIP the sanitizers want to be loaded first"
    exit 0
fi
${CC:-cc} -shared -fPIC -O1 -D_GNU_SOURCE -Itests -o "$tmp/read.so" tests/faults/read_shim.c -ldl || exit 1
cat >"$tmp/flock.c" <<'C'
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
int flock(int fd, int operation) {
    (void)fd;
    (void)operation;
    errno = (int)strtol(getenv("FLOCK_ERRNO"), 0, 10);
    return -1;
}
C
${CC:-cc} -shared -fPIC -o "$tmp/flock.so" "$tmp/flock.c" || exit 1

# train ITERS [NAME=VALUE ...]: one start
train() {
    local iters=$1
    shift
    env "$@" "$strata" train input/llava_tiny.ini "run:run_dir=$tmp/run" "checkpoint:save=$tmp/save" \
        "data:data_cache_path=$tmp/cache" checkpoint:save_interval=2 optimizer:lr_warmup_iters=0 \
        training:global_batch_size=1 training:micro_batch_size=1 "training:train_iters=$iters" \
        data:num_workers=0 vision:num_layers=2 language:num_layers=1 >"$tmp/log" 2>&1
}
verdict() { # NAME CONDITION...
    local name=$1
    shift
    if "$@"; then echo "ok - $name"; else
        echo "not ok - $name"
        grep -E '^(error|warning)' "$tmp/log" | head -n 3 | cut -c1-300 | sed 's/^/# /'
    fi
}
state() { (cd "$tmp/save" && find . -type f ! -name run.lock -exec sha256sum {} + | sort) 2>&1; }
fault() { # ERRNO NAME
    echo "LD_PRELOAD=$tmp/read.so READ_FAULT=0:$1:1000000000:0 READ_FAULT_FOLDER=$tmp/save READ_FAULT_NAME=$2"
}

train 4 || { echo "not ok - a run without faults"; tail -n 3 "$tmp/log"; exit 1; }
state >"$tmp/before"
# What lies in a checkpoint: a shard, the manifest, a mark that may be there, the folder itself.
for try in "5 shard 74" "5 manifest 74" "5 .refused 74" "5 iter_0000004 74" "116 shard 74" "110 shard 74" \
    "12 manifest 74" "24 shard 74" "13 shard 77" "1 manifest 77"; do
    read -r errno name wanted <<<"$try"
    # shellcheck disable=SC2046
    train 6 $(fault "$errno" "$name")
    code=$?
    state >"$tmp/after"
    verdict "errno $errno at $name: exit $code, nothing changed" \
        test "$code" = "$wanted" -a "$(cmp "$tmp/before" "$tmp/after" && echo same)" = same
done
for command in "ls $tmp/save" "verify $tmp/save" "show $tmp/save"; do
    # shellcheck disable=SC2046,SC2086
    env $(fault 5 shard) "$strata" checkpoint $command >"$tmp/log" 2>&1
    code=$?
    verdict "checkpoint ${command%% *}: no word of damage (code $code)" \
        test "$(grep -c damaged "$tmp/log")" = 0 -a \( "$code" = 74 -o "${command%% *}" = ls \)
done
train 5
verdict "healthy again: it goes on from step 4" grep -q 'iter_0000004, step 4; 0 steps lost' "$tmp/log"

# Damage is marked, and the way back is in the sentence; the mark keeps the next start from it.
cp -r "$tmp/save/iter_0000005" "$tmp/whole"
for f in "$tmp"/save/iter_0000005/*shard*; do printf x | dd of="$f" bs=1 seek=4000 conv=notrunc 2>/dev/null; done
for time in first second; do
    rm -rf "$tmp/save/iter_0000006"
    train 6
    verdict "damage, $time start: verify --clear is named" \
        grep -q "strata checkpoint verify --clear $tmp/save/iter_0000005" "$tmp/log"
done
rm -rf "$tmp/save/iter_0000005" && mv "$tmp/whole" "$tmp/save/iter_0000005"
"$strata" checkpoint verify --clear "$tmp/save/iter_0000005" >"$tmp/log" 2>&1
verdict "repaired and cleared" test $? = 0 -a ! -e "$tmp/save/iter_0000005.refused"

# No file locks: ENOLCK, ENOSYS, EOPNOTSUPP, and the 524 of some mounts. An environment that asks for
# them changes nothing.
for errno in 37 38 95 524; do
    rm -rf "$tmp/run" "$tmp/save" "$tmp/cache"
    locks="LD_PRELOAD=$tmp/flock.so FLOCK_ERRNO=$errno"
    [ $errno = 37 ] && locks="$locks HDF5_USE_FILE_LOCKING=TRUE"
    # shellcheck disable=SC2086
    train 2 $locks
    verdict "flock answers $errno: index and save" test $? = 0 -a -d "$tmp/save/iter_0000002"
    # shellcheck disable=SC2086
    train 3 $locks
    verdict "flock answers $errno: resume" grep -q 'step 2; 0 steps lost' "$tmp/log"
    # shellcheck disable=SC2086
    env $locks "$strata" checkpoint verify --strict "$tmp/save" >"$tmp/log" 2>&1
    verdict "flock answers $errno: verify" test $? = 0
    [ $errno = 37 ] || continue
    # shellcheck disable=SC2086
    env $locks "$strata" checkpoint reshard "$tmp/save/iter_0000003" "$tmp/other" --tp 2 --pp 1 --dp 1 >"$tmp/log" 2>&1
    verdict "flock answers $errno: reshard" test $? = 0
done
