# writers = node: the ranks of a machine share a file. Here all ranks are on one; ranks_per_writer makes
# two of it, with three ranks and one. The state is that of writers = rank, every command knows it, and
# what dies in between loses nothing.
# timeout: 300
. "$(dirname "$0")/cli.inc"
patience=$((patience * 3))
faults=$(dirname "$STRATA")/faults/strata
tiny=input/llava_tiny.ini
common=("data:data_cache_path=$TEST_TMP/cache" run:threads_per_rank=1 data:num_workers=0 vision:num_layers=2
    language:num_layers=1 training:micro_batch_size=1 training:global_batch_size=4 optimizer:lr_decay_iters=20)
four=(parallel:pipeline_model_parallel_size=2 parallel:split_spec=2,3 parallel:use_distributed_optimizer=true)
node=(checkpoint:writers=node checkpoint:ranks_per_writer=3)

# job PROGRAM NAME RANKS OVERRIDES...: the command of a run in $TEST_TMP/NAME with its checkpoints in
# NAME/ckpt, in $command.
job() {
    local program=$1 name=$2 ranks=$3
    shift 3
    command=(mpirun -n "$ranks" "$program" train $tiny "run:run_dir=$TEST_TMP/$name"
        "checkpoint:save=$TEST_TMP/$name/ckpt" "${common[@]}" "$@")
}
go() {
    job "$STRATA" "$@"
    expect 0 '' "run $1" "${command[@]}"
}
shards() { ls "$TEST_TMP/$1" | grep -c shard; }
equal() { # NAME A B
    expect 0 '' "$1" "$STRATA" checkpoint diff "$TEST_TMP/$2" "$TEST_TMP/$3"
}

go alone 4 training:train_iters=3 "${four[@]}"
go shared 4 training:train_iters=3 "${four[@]}" "${node[@]}"
go beside 4 training:train_iters=3 checkpoint:save_interval=1 checkpoint:async_save=true \
    checkpoint:integrity_filter=fletcher32 checkpoint:most_recent_k=2 "${four[@]}" "${node[@]}"
last=ckpt/iter_0000003
yes "four ranks, three to a file: two files" test "$(shards alone/$last) $(shards shared/$last) $(shards beside/$last)" = "4 2 2"
equal "the state of writers = rank" alone/$last shared/$last
equal "and beside the training" alone/$last beside/$last
yes "retention counts checkpoints, not files" test "$(ls "$TEST_TMP/beside/ckpt" | grep -c '^iter_')" = 2
expect 0 'verified \(strict\), step 3' "verify --strict" "$STRATA" checkpoint verify --strict "$TEST_TMP/shared/$last"
expect 0 'TP 1  PP 2  DP 2 .*\(2 writers\)' "show" "$STRATA" checkpoint show "$TEST_TMP/shared/ckpt" --quick
if command -v h5dump >/dev/null; then
    expect 0 '^ +\(0\): 0, 0, 0, 1$' "/header says which shard has a rank's parts" h5dump -a /header/shard_of_rank \
        "$TEST_TMP/shared/$last/iter_0000003-shard-00001-of-00002.h5"
fi
expect 0 'in 2 shards$' "reshard: a file for each rank of the new layout" "$STRATA" checkpoint reshard \
    "$TEST_TMP/shared/ckpt" "$TEST_TMP/two" --tp 2 --pp 1 --dp 1
equal "with the same state" alone/$last two/iter_0000003

# Another layout, one file for all; then as from writers = rank.
mkdir "$TEST_TMP/other" && cp -r "$TEST_TMP/alone/ckpt" "$TEST_TMP/other"
go shared 3 training:train_iters=4 checkpoint:writers=node parallel:tensor_model_parallel_size=3
yes "three tensor ranks in one file" test "$(shards shared/ckpt/iter_0000004)" = 1
go other 3 training:train_iters=4 parallel:tensor_model_parallel_size=3
equal "the next step is that of writers = rank" shared/ckpt/iter_0000004 other/ckpt/iter_0000004

# Ranks 0 and 3 write; 1 and 2 hand over.
dies() { # NAME POINT RANK N OVERRIDES...
    local name=$1 point=$2 rank=$3 n=$4
    shift 4
    rm -rf "$TEST_TMP/dies"
    job "$faults" dies 4 training:train_iters=3 checkpoint:save_interval=1 "${four[@]}" "${node[@]}" "$@"
    FAULT=$point:$rank:$n:kill timeout -k 5 $patience "${command[@]}" >"$TEST_TMP/dies.log" 2>&1
    yes "$name dies" test $? = 137 -a ! -e "$TEST_TMP/dies/$last"
    go dies 4 training:train_iters=3 checkpoint:save_interval=1 "${four[@]}" "${node[@]}" "$@"
    equal "and nothing is lost" alone/$last dies/$last
}
if [ -x "$faults" ]; then
    dies "a rank that hands over" save.copy.in 2 30
    dies "the rank that writes" save.write.in 0 300
    [ "${STRATA_LONG:-0}" = 1 ] && dies "the rank that writes, beside the training" save.write.in 0 300 checkpoint:async_save=true
    [ "${STRATA_LONG:-0}" = 1 ] && dies "the other that writes" save.close.in 3 2
fi
exit $status
