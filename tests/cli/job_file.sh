# Faults of a job file, seen through strata check (the report itself: test_check.sh): all of them in one
# answer, each with file and line.
. "$(dirname "$0")/cli.inc"
big=input/llava_mistral_7b.ini

begin=$(date +%s%N)
"$STRATA" check $big --ranks 8 >"$TEST_TMP/out" 2>&1
took=$((($(date +%s%N) - begin) / 1000000))
yes "the 58 layers are planned in under 10 s ($took ms)" test $took -lt $((patience * 500))
expect 0 '57 layers = 24 vision \+ 1 projector \+ 32 language' "an affine projector makes 57 layers" \
    "$STRATA" check $big --ranks 8 parallel:split_spec=auto projector:projector_type=affine
expect 64 'between the two layers of the projector.*24 or 26' "a cut inside the projector" "$STRATA" check $big parallel:split_spec=25,11,11,11
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
