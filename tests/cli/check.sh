# strata check: what it prints, for people and for programs, on any machine and in seconds.
. "$(dirname "$0")/cli.inc"
big=input/llava_mistral_7b.ini

begin=$(date +%s%N)
expect 0 '^model +llava, 58 layers = 24 vision \+ 2 projector \+ 32 language' "the 58 layers" "$STRATA" check $big --ranks 8
took=$((($(date +%s%N) - begin) / 1000000))
yes "in under 10 s ($took ms)" test $took -lt $((patience * 500))
yes "parameters of LLaVA-Mistral-7B" grep -q '7566219264 parameters, 7262711808 trained' <<<"$out"
yes "which rank holds which layers" grep -qE 'stage 0 +layers 0\.\.32: vision 0\.\.23 \+ projector 0\.\.1 \+ language 0\.\.6' <<<"$out"
yes "the shape at a cut" grep -qE 'cut 33: hidden \[2048, 4096\] bf16, 16\.00 MiB, a gradient comes back' <<<"$out"
yes "a row per rank" test "$(grep -cE '^ +[0-7]( +[0-9]+){3} +[0-9]+\.\.[0-9]+( +[0-9.]+){9}$' <<<"$out")" = 8
yes "what is missing to train it is said" grep -q 'cannot train it.*device = cuda' <<<"$out"

# number PATH: a number from the JSON of the last --json call, by python where it is installed.
expect 0 '' "--json" "$STRATA" check $big --ranks 8 --json
printf '%s\n' "$out" | sed -n '/^{/,/^}/p' >"$TEST_TMP/plan.json"
for member in layers layer_kinds stages boundaries ranks; do
    yes "--json has $member" grep -q "^  \"$member\":" "$TEST_TMP/plan.json"
done
for member in first_layer last_layer parameters forward_flops rows columns gradient weights activations; do
    yes "--json has $member" grep -q "\"$member\":" "$TEST_TMP/plan.json"
done
if command -v python3 >/dev/null; then
    cat >"$TEST_TMP/sum.py" <<'PY'
import json, sys
p = json.load(open(sys.argv[1]))
assert p["layers"] == sum(p["layer_kinds"].values()) == sum(p["split_spec"]) == 58
assert p["parameters"] == sum(s["parameters"] for s in p["stages"])
at = 0
for s in p["stages"]:
    assert s["first_layer"] == at, s
    at = s["last_layer"] + 1
assert at == 58
assert [b["cut"] for b in p["boundaries"]] == [s["first_layer"] for s in p["stages"][1:]]
for r in p["ranks"]:
    b = dict(r["bytes"])
    assert b.pop("total") == sum(b.values()), r
assert len(p["ranks"]) == p["tensor"] * p["pipeline"] * p["data"] == 8
PY
    yes "layers, parameters, cuts and bytes add up" python3 "$TEST_TMP/sum.py" "$TEST_TMP/plan.json"
else
    echo "ok - layers, parameters, cuts and bytes add up # SKIP python3 is not installed"
fi

expect 0 'split_spec = 26,10,11,11' "another cut by override" "$STRATA" check $big --ranks 8 parallel:split_spec=26,10,11,11
yes "projector rows at cut 26, not merged" grep -qE 'cut 26: image \[576, 4096\]' <<<"$out"
expect 0 'cut 10: vision \[577, 1024\] bf16, .*no gradient' "a frozen tower sends no gradient back" \
    "$STRATA" check $big --ranks 10 parallel:pipeline_model_parallel_size=5 parallel:split_spec=10,14,2,16,16
expect 0 'split_spec = [0-9,]+ \(auto\)' "auto is solved" "$STRATA" check input/llava_mistral_7b_stage1.ini --ranks 4
expect 0 '57 layers = 24 vision \+ 1 projector \+ 32 language' "an affine projector makes 57 layers" \
    "$STRATA" check $big --ranks 8 parallel:split_spec=auto projector:projector_type=affine 
expect 0 '9 layers = 3 vision' "the tiny job" "$STRATA" check $tiny
expect 0 'dp 1: rank 3' "the tiny job on 4 ranks in 2 stages" "$STRATA" check $tiny --ranks 4 parallel:pipeline_model_parallel_size=2

# ---- refusals: all of them at once -----------------------------------------------------------------------
expect 64 'needs a job file' "check without a job file" "$STRATA" check
expect 64 '6 ranks do not fill.*start 8 ranks' "ranks that are no multiple" "$STRATA" check $big --ranks 6
expect 64 'between the two layers of the projector' "a cut inside the projector" "$STRATA" check $big parallel:split_spec=25,11,11,11
expect 64 '58 layers \(24 \+ 2 \+ 32' "a sum that is wrong names its parts" "$STRATA" check $big parallel:split_spec=30,10,9,8
cat >"$TEST_TMP/bad.ini" <<'INI'
[run]
family = llava
run_dir = x
colour = red
[parallel]
split_spec = 5,x
[training]
micro_batch_size = 0
micro_batch_size = 1
seed = 1e3
[vison]
num_layers = 3
INI
expect 64 'bad\.ini:4: .*colour' "unknown key, with file and line" "$STRATA" check "$TEST_TMP/bad.ini"
for line in 6 8 9 10 11; do
    yes "the fault of line $line is in the same answer" grep -qE "^error: .*bad\.ini:$line:" <<<"$out"
done
printf '\357\273\277[run]\nfamily = llava\n' >"$TEST_TMP/bom.ini"
expect 64 'bom\.ini:1: .*([Bb]yte.order|BOM)' "a byte order mark" "$STRATA" check "$TEST_TMP/bom.ini"
printf '[run]\r\nfamily = llava\r\n' >"$TEST_TMP/crlf.ini"
"$STRATA" check "$TEST_TMP/crlf.ini" >"$TEST_TMP/out" 2>&1
yes "CRLF line ends are named" grep -qiE 'crlf\.ini:1: .*(CR|carriage)' "$TEST_TMP/out"
expect 64 'context_parallel_size' "an option of Megatron-LM that strata has not" "$STRATA" check $tiny parallel:context_parallel_size=2
exit $status
