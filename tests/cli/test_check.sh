# strata check: the report as text and as JSON, errors, and that train takes the bytes that check
# prints. No launcher but where ranks are asked for.
# timeout: 300
. "$(dirname "$0")/cli.inc"
mistral=input/llava_mistral_7b.ini
run="run:run_dir=$TEST_TMP/run"
json() { "$STRATA" check "$@" --json >"$TEST_TMP/json" 2>"$TEST_TMP/stderr"; }

# ---- text ----------------------------------------------------------------------------------------------
expect 0 '^model +llava, 58 layers = 24 vision \+ 2 projector \+ 32 language; 7566219264 parameters, 7262711808 trained; bf16 on cuda$' \
    "the Mistral job is planned on any machine" "$STRATA" check $mistral
for line in '^ranks +8 = tensor 2 x pipeline 4 x data 1; split_spec = 33,9,8,8$' \
    'ASSUMED, since the data set has no index yet' \
    '^  stage 0  layers 0\.\.32: vision 0\.\.23 \+ projector 0\.\.1 \+ language 0\.\.6 \[patch embedding\] \[token embedding\]$' \
    '^  stage 3  layers 50\.\.57: language 24\.\.31 \[head\]$' \
    '^  \|        dp 0: rank 6 7$' \
    '^  v cut 33: hidden \[2048, 4096\] bf16, 16\.00 MiB, a gradient comes back$' \
    'imbalance [0-9.]+ .*bubble [0-9.]+ %'; do
    yes "and says $line" test "$(grep -cE -- "$line" <<<"$out")" = 1
done
expect 0 'split_spec = 1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2,1,1,.*,1$' "one layer per stage" \
    "$STRATA" check $mistral --ranks 57 parallel:tensor_model_parallel_size=1 \
    parallel:pipeline_model_parallel_size=57 "parallel:split_spec=$(printf '1,%.0s' $(seq 24))2$(printf ',1%.0s' $(seq 32))"
expect 0 'v cut 10: vision \[577, 1024\] bf16, 1\.13 MiB, no gradient$' "cuts in the frozen tower carry no gradient" \
    "$STRATA" check $mistral parallel:pipeline_model_parallel_size=5 parallel:split_spec=10,14,2,16,16
yes "nor does the one before the projector" grep -qE '^  v cut 24: vision \[576, 1024\] bf16, 1.12 MiB, no gradient$' <<<"$out"
yes "the one behind it does" grep -qE '^  v cut 26: image \[576, 4096\] bf16, 4.50 MiB, a gradient comes back$' <<<"$out"
expect 0 'split_spec = 34,8,8,8 \(auto\)$' "auto is solved for stage 1" "$STRATA" check input/llava_mistral_7b_stage1.ini
expect 0 'tensor ranks.* shares are uneven.*1\.[0-9]+ times the mean' "uneven shares are pointed out" \
    "$STRATA" check $mistral parallel:tensor_model_parallel_size=3
yes "a frozen tower that weights are named for is no surprise" test "$(grep -c RANDOM <<<"$out")" = 0
expect 0 'NOTICE: the vision tower is frozen .*RANDOM' "a frozen tower without weights is" \
    "$STRATA" check $tiny $run vision:freeze_ViT=true
expect 0 'dp 1: rank 2$' "rank order tensor, pipeline, data" "$STRATA" check $tiny $run --ranks 4 \
    parallel:pipeline_model_parallel_size=2 parallel:use_tp_pp_dp_mapping=true
expect 0 'dp 1: rank 1$' "rank order tensor, data, pipeline" "$STRATA" check $tiny $run --ranks 4 parallel:pipeline_model_parallel_size=2

expect 0 '^memory per rank .MiB; what generate takes for a question of 256 rows and one image' "the plan of generate" \
    "$STRATA" check $tiny $run --generate --ranks 2 parallel:pipeline_model_parallel_size=2 parallel:split_spec=5,4
yes "keys and values where the language model is" awk '
    /^ +0 +0 +0 / { first = $7 > 0 } /^ +1 +0 +1 / { second = $7 > 0 } END { exit !(!first && second) }' <<<"$out"
expect 0 '' "the same in JSON" "$STRATA" check $tiny $run --generate --json --ranks 2 parallel:pipeline_model_parallel_size=2 parallel:split_spec=5,4
yes "logits where the head is" test "$(grep -oE '"logits": *[0-9]+' <<<"$out" | sed 's/.*[: ]//' | awk '{ s = s ($1 > 0) } END { print s }')" = 01

# ---- errors ----------------------------------------------------------------------------------------------
expect 64 '12 ranks do not fill whole copies.*start 8 or 16 ranks' "12 ranks do not fit" "$STRATA" check $mistral --ranks 12
expect 64 'ranks takes a whole number' "--ranks wants a number" "$STRATA" check $mistral --ranks 8x
expect 64 'ranks takes a whole number' "--ranks wants an argument" "$STRATA" check $mistral --ranks
expect 64 'not "--rank"' "an unknown option" "$STRATA" check $mistral --rank 8
expect 64 'needs a job file' "no job file" "$STRATA" check
expect 66 'cannot be opened' "a job file that is not there" "$STRATA" check "$TEST_TMP/none.ini"
expect 66 'vocabulary is not known' "no vocabulary and no tokenizer" "$STRATA" check $tiny $run "data:tokenizer_model=$TEST_TMP/none.model"
expect 64 'sum to 59' "errors of the job file" "$STRATA" check $mistral parallel:split_spec=33,9,8,9 vision:img_h=335
yes "all of them at once" grep -q 'img_h = 335' <<<"$out"
expect 64 'memory_limit_gib = 10: rank 2 .* needs 17\.[0-9]+ GiB: weights .* less is needed with' "more than memory_limit_gib" \
    "$STRATA" check $mistral run:memory_limit_gib=10
yes "with the table" grep -q '^memory per rank' <<<"$out"
expect 0 '' "a limit that is kept" "$STRATA" check $mistral run:memory_limit_gib=18
expect 64 'pipeline_dtype = fp32: .*working type' "another type at the cuts" "$STRATA" check $mistral parallel:pipeline_dtype=fp32

# ---- who is asked ------------------------------------------------------------------------------------------
expect 0 '^ranks +4 = tensor 1 x pipeline 1 x data 4;' "the ranks of a launcher, told once" mpirun -n 4 "$STRATA" check $tiny $run
expect 0 '^ranks +2 = ' "--ranks beats the launcher" mpirun -n 4 "$STRATA" check $tiny $run --ranks 2
expect 0 '^ranks +8 = ' "a Slurm allocation" env SLURM_NTASKS=8 SLURM_PROCID=0 "$STRATA" check $tiny $run

# ---- JSON, and what train takes ------------------------------------------------------------------------------
if ! command -v python3 >/dev/null; then
    echo "ok - JSON is one object # SKIP there is no python3"
    echo "ok - train takes what check prints # SKIP there is no python3"
    exit $status
fi
json $mistral
yes "JSON is one object" python3 -m json.tool "$TEST_TMP/json"
yes "and nothing else is said" test ! -s "$TEST_TMP/stderr"
cat >"$TEST_TMP/look.py" <<'PY'
import json, sys
d = json.load(open(sys.argv[1]))
assert d["layers"] == 58 and d["layer_kinds"] == {"vision": 24, "projector": 2, "language": 32}
assert d["family"] == "llava" and d["split_spec"] == [33, 9, 8, 8] and d["assumption"] == "worst_case"
assert [d[k] for k in ("ranks_total", "tensor", "pipeline", "data")] == [8, 2, 4, 1]
assert sum(s["parameters"] for s in d["stages"]) == d["parameters"] == 7566219264
assert sum(s["trained_parameters"] for s in d["stages"]) == 7262711808
assert [(s["first_layer"], s["last_layer"], s["in_flight"]) for s in d["stages"]] == \
    [(0, 32, 4), (33, 41, 3), (42, 49, 2), (50, 57, 1)]
assert all(s["forward_flops"] > 0 and s["backward_flops"] > 0 for s in d["stages"])
b = d["boundaries"][0]
assert (b["cut"], b["from_stage"], b["to_stage"], b["stream"]) == (33, 0, 1, "hidden")
assert (b["rows"], b["columns"], b["dtype"], b["bytes"], b["gradient"]) == (2048, 4096, "bf16", 2**24, True)
assert [r["rank"] for r in d["ranks"]] == list(range(8))
for r in d["ranks"]:
    assert sum(v for k, v in r["bytes"].items() if k != "total") == r["bytes"]["total"]
    assert r["bytes"]["optimizer"] >= 3 * r["bytes"]["gradients"] - 64 # master, m, v
assert 1 <= d["imbalance"] < 1.2 and d["largest_micro_batch"]["tokens"] == 2048
assert len(d["warnings"]) >= 1 and d["errors"] == []
PY
yes "with all its parts" python3 "$TEST_TMP/look.py" "$TEST_TMP/json"
json $mistral parallel:split_spec=1,2 vision:img_h=335
yes "errors in JSON" python3 -c "import json; d = json.load(open('$TEST_TMP/json')); assert len(d['errors']) >= 2"
json $mistral run:memory_limit_gib=10
yes "the plan and its error in JSON" python3 -c "import json; d = json.load(open('$TEST_TMP/json')); assert len(d['errors']) == 1 and len(d['ranks']) == 8"

# The log of train: "rank N ... (without the last two B bytes, taken T)". The first run makes the index.
cat >"$TEST_TMP/compare.py" <<'PY'
import json, re, sys
d = json.load(open(sys.argv[1]))
assert d["assumption"] == "index"
found = re.findall(r"rank +(\d+) .*\(without the last two (\d+) bytes, taken (\d+)\)", open(sys.argv[2]).read())
assert len(found) == len(d["ranks"]) == int(sys.argv[3]), (len(found), len(d["ranks"]))
for rank, planned, taken in found:
    b = d["ranks"][int(rank)]["bytes"]
    checked = b["total"] - b["scratch"] - b["workspace"]
    assert int(planned) == int(taken) == checked, (rank, planned, taken, checked)
PY
compare() { # NAME RANKS OVERRIDES...
    local name=$1 ranks=$2
    shift 2
    expect 0 '' "train, $name" mpirun -n "$ranks" "$STRATA" train $tiny $run training:train_iters=3 run:threads_per_rank=1 "$@"
    printf '%s\n' "$out" >"$TEST_TMP/log"
    json $tiny $run training:train_iters=3 --ranks "$ranks" "$@"
    yes "train takes what check prints, $name" python3 "$TEST_TMP/compare.py" "$TEST_TMP/json" "$TEST_TMP/log" "$ranks"
}
compare "one rank" 1
compare "uneven tensor shares" 3 parallel:tensor_model_parallel_size=3
compare "stages, auto" 4 parallel:pipeline_model_parallel_size=4
compare "the copy of async_save" 4 parallel:pipeline_model_parallel_size=2 parallel:split_spec=5,4 \
    parallel:use_distributed_optimizer=true "checkpoint:save=$TEST_TMP/copy" checkpoint:async_save=true
yes "which is a kind of its own" python3 -c "import json; d = json.load(open('$TEST_TMP/json')); assert all(r['bytes']['snapshot'] > 0 for r in d['ranks'])"
copies=(parallel:pipeline_model_parallel_size=2 parallel:split_spec=5,4 parallel:use_distributed_optimizer=true
    checkpoint:async_save=true "checkpoint:save=$TEST_TMP/node")
node=("${copies[@]}" checkpoint:writers=node)
compare "the copy of a node's ranks" 4 "${node[@]}" checkpoint:ranks_per_writer=3
yes "with a warning that they are taken to be on one" grep -q 'as if all 4 ranks were on one node' "$TEST_TMP/json"
cat >"$TEST_TMP/node.py" <<'PY'
import json, sys
s = [[r["bytes"]["snapshot"] for r in json.load(open(f))["ranks"]] for f in sys.argv[1:4]]
alone, two, all = s
assert abs(two[0] - alone[0] - alone[1]) <= 512 and abs(two[2] - alone[2] - alone[3]) <= 512, (alone, two)
assert abs(all[0] - sum(alone)) <= 1024 and max(all[1:]) < max(alone), (alone, all)
assert two[1] == all[1] and two[3] == all[3]
PY
json $tiny $run --ranks 4 "${copies[@]}" && mv "$TEST_TMP/json" "$TEST_TMP/json1"
json $tiny $run --ranks 4 --ranks-per-node 2 "${node[@]}" && mv "$TEST_TMP/json" "$TEST_TMP/json2"
json $tiny $run --ranks 4 "${node[@]}"
expect 64 'less is needed with a smaller ranks_per_writer, ' "ranks_per_writer is a remedy" "$STRATA" check $tiny $run \
    --ranks 4 "${node[@]}" run:memory_limit_gib=0.001
yes "the first rank of a node has the copies of all" python3 "$TEST_TMP/node.py" "$TEST_TMP/json1" "$TEST_TMP/json2" "$TEST_TMP/json"
compare "all three and sharded states" 8 parallel:tensor_model_parallel_size=2 parallel:pipeline_model_parallel_size=2 \
    parallel:use_distributed_optimizer=true parallel:split_spec=5,4
compare "sequence parallel, frozen tower, recompute" 6 parallel:tensor_model_parallel_size=2 parallel:pipeline_model_parallel_size=3 \
    parallel:split_spec=2,3,4 parallel:sequence_parallel=true vision:freeze_ViT=true \
    training:recompute_granularity=full training:recompute_method=uniform training:recompute_num_layers=1
exit $status
