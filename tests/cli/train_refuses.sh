# What strata train refuses: each fault has its sentence, printed once, its exit code, and the job ends
# on every rank within seconds.
# timeout: 240
. "$(dirname "$0")/cli.inc"

refuse() { # CODE REGEX NAME RANKS OVERRIDES...
    local code=$1 regex=$2 name=$3
    train "${@:4}"
    expect "$code" "$regex" "$name" "${command[@]}"
}

# ---- the job file and the command line -------------------------------------------------------------
expect 64 'needs a job file' "train without a job file" "$STRATA" train
expect 66 'nowhere.ini' "a job file that is not there" "$STRATA" train "$TEST_TMP/nowhere.ini"
refuse 64 'micro_bach_size.*micro_batch_size' "a misspelt key, with the nearest one" 2 training:micro_bach_size=2
refuse 64 'seed.*12x' "trailing garbage in a number" 1 training:seed=12x
refuse 69 'device = cuda.*built without' "a device that this build does not have" 2 run:device=cuda
refuse 64 'bf16' "bf16 on the CPU" 1 training:bf16=true

# ---- cuts ----------------------------------------------------------------------------------------------
pp() { # stages
    echo "parallel:pipeline_model_parallel_size=$1"
}
refuse 64 'sum to 8.*9 layers.*1 too few' "a split that does not add up" 2 "$(pp 2)" parallel:split_spec=4,4
refuse 64 '3 entries.*pipeline_model_parallel_size is 2' "a split of another length" 2 "$(pp 2)" parallel:split_spec=3,2,4
refuse 64 'between the two layers of the projector.*3 or 5' "a cut inside the projector" 2 "$(pp 2)" parallel:split_spec=4,5
refuse 64 'entry 1 is 0' "a stage without layers" 2 "$(pp 2)" parallel:split_spec=0,9
refuse 64 'split_spec.*5\.0' "an entry that is no whole number" 2 "$(pp 2)" parallel:split_spec=5.0,4
refuse 64 'at most 8 stages' "more stages than pieces" 9 "$(pp 9)"

# ---- ranks ------------------------------------------------------------------------------------------------
refuse 64 '3 ranks do not fill.*2 or 4 ranks' "ranks that are no multiple" 3 "$(pp 2)"
refuse 64 '1 ranks? do not fill.*start 4 ranks' "fewer ranks than the model needs" 1 "$(pp 2)" parallel:tensor_model_parallel_size=2
refuse 64 'global_batch_size.*12 or 18' "a global batch that data ranks do not divide" 3
refuse 64 'tensor_model_parallel_size = 6.*5 key/value heads' "more tensor ranks than key/value groups" 6 parallel:tensor_model_parallel_size=6

# ---- data ---------------------------------------------------------------------------------------------------
# A copy of the tiny data with one fault each.
copy() {
    rm -rf "$TEST_TMP/tiny" "$TEST_TMP/run"
    cp -r input/tiny "$TEST_TMP/tiny"
}
broken=("data:data_path=$TEST_TMP/tiny/train.json" "data:image_folder=$TEST_TMP/tiny")
image=$(grep -oE '"images?": *\[? *"[^"]*' input/tiny/train.json | head -n 1 | sed 's/.*"//')
jpeg=$(cd input/tiny && find . -name '*.jp*g' | LC_ALL=C sort | head -n 1)

copy
rm "$TEST_TMP/tiny/$image"
refuse 66 "$(basename "$image")" "a missing picture" 2 "${broken[@]}"
if [ -n "$jpeg" ]; then
    copy
    head -c "$(($(stat -c %s "$TEST_TMP/tiny/$jpeg") * 2 / 3))" "input/tiny/$jpeg" >"$TEST_TMP/tiny/$jpeg"
    refuse 65 "$(basename "$jpeg")" "a truncated JPEG" 2 "${broken[@]}"
    copy
    printf 'not a picture' >"$TEST_TMP/tiny/$jpeg"
    refuse 65 "$(basename "$jpeg")" "a JPEG that is none" 2 "${broken[@]}"
else
    echo "not ok - input/tiny has no JPEG"
    status=1
fi
copy
head -c 300 input/tiny/train.json >"$TEST_TMP/tiny/train.json"
refuse 65 'train\.json' "JSON that ends early" 2 "${broken[@]}"
copy
refuse 66 'not_there\.json' "data that are not there" 2 "data:data_path=$TEST_TMP/not_there.json"
refuse 66 'not_there\.model' "a tokenizer that is not there" 2 "data:tokenizer_model=$TEST_TMP/not_there.model"
head -c 200 input/tiny/tokenizer.model >"$TEST_TMP/cut.model"
refuse 65 'cut\.model' "a tokenizer cut short" 2 "data:tokenizer_model=$TEST_TMP/cut.model"
refuse 64 'vocab_size.*tokenizer has [0-9]+ tokens' "a tokenizer of a larger vocabulary" 2 language:vocab_size=100
: >"$TEST_TMP/file"
expect 73 "$TEST_TMP/file" "a run directory that cannot be made" mpirun -n 2 "$STRATA" train $tiny "run:run_dir=$TEST_TMP/file/run"

# ---- a checkpoint of another run -------------------------------------------------------------------------------
copy
saved=(run:threads_per_rank=1 training:train_iters=4 "checkpoint:save=$TEST_TMP/ckpt")
refuse 0 '' "a checkpoint is written" 1 "${saved[@]}"
refuse 78 '^error: .*seed = 99, but .* was trained with 1234' "another seed than the checkpoint's" 2 "${saved[@]}" training:seed=99
refuse 78 '^error: .*ffn_hidden_size = 104, but .* was trained with 100' "another model than the checkpoint's" 1 "${saved[@]}" language:ffn_hidden_size=104
# The same pieces but for one letter: a vocabulary of equal size that means something else.
LC_ALL=C sed 's/the/tqe/' input/tiny/tokenizer.model >"$TEST_TMP/other.model"
refuse 78 '^error: the data set differs' "another vocabulary than the checkpoint's" 2 "${saved[@]}" "data:tokenizer_model=$TEST_TMP/other.model"
refuse 78 'resume = never, but save = .* holds checkpoints' "resume = never on a folder in use" 1 "${saved[@]}" checkpoint:resume=never
refuse 66 'nowhere' "load from a folder that is not there" 2 training:train_iters=4 "checkpoint:load=$TEST_TMP/nowhere"
refuse 66 'resume = must' "resume = must without a checkpoint" 2 training:train_iters=4 checkpoint:resume=must "checkpoint:save=$TEST_TMP/empty"

# ---- nobody is left behind -------------------------------------------------------------------------------------
left=$(grep -lsa "$TEST_TMP" /proc/[0-9]*/cmdline | while read -r f; do
    tr '\0' ' ' <"$f" 2>/dev/null | grep -c '/strata train'; done | paste -sd+ - | sed 's/^$/0/' | bc 2>/dev/null)
yes "no rank is left running" test "${left:-0}" = 0
exit $status
