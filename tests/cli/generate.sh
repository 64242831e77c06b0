#!/usr/bin/env bash
# Answers: the same text in every layout, greedy and drawn; JSON lines; questions that cannot be
# asked. The tiny job trains until it knows some of its pictures.
# timeout: 400
. "$(dirname "$0")/cli.inc"
patience=$((patience * 6))
base="$tiny run:threads_per_rank=1 data:data_cache_path=$TEST_TMP/cache"
cut3="parallel:pipeline_model_parallel_size=3 parallel:split_spec=2,4,3"
expect 0 '' "train" mpirun -n 2 "$STRATA" train $base "run:run_dir=$TEST_TMP/run" "checkpoint:save=$TEST_TMP/ckpt" \
    training:train_iters=60 language:hidden_dropout=0 language:attention_dropout=0 parallel:pipeline_model_parallel_size=2
from="--checkpoint $TEST_TMP/ckpt"
ask="--image input/tiny/images/cherries.png"

# say NAME RANKS WORDS...: the text alone, in $said
say() {
    local name=$1 ranks=$2
    shift 2
    said=$(timeout -k 5 "$patience" mpirun -n "$ranks" "$STRATA" generate $base $from "$@" 2>"$TEST_TMP/err")
    yes "$name" test $? = 0
}
equal() { # NAME TEXT
    yes "$1" test "$said" = "$2"
}
say "one rank answers" 1 $ask --prompt "What is shown?"
greedy=$said
yes "it says something" test -n "$greedy"
say "temperature 0 three times as long" 1 $ask --prompt "What is shown?" --temperature 0 --max-new-tokens 384
equal "greedy needs no length" "$greedy"
say "drawn" 1 $ask --prompt "What is shown?" --temperature 1.5 --top-p 0.95 --seed 7 --max-new-tokens 24
drawn=$said
yes "a temperature changes it" test "$drawn" != "$greedy"
say "another seed" 1 $ask --prompt "What is shown?" --temperature 1.5 --top-p 0.95 --seed 8 --max-new-tokens 24
yes "another seed, another text" test "$said" != "$drawn"
for layout in "3 $cut3" "2 parallel:tensor_model_parallel_size=2" \
    "6 parallel:tensor_model_parallel_size=3 parallel:pipeline_model_parallel_size=2 parallel:sequence_parallel=true"; do
    ranks=${layout%% *} keys=${layout#* }
    say "$ranks ranks" "$ranks" $ask --prompt "What is shown?" $keys
    equal "$ranks ranks: the same greedy text" "$greedy"
    say "$ranks ranks, drawn" "$ranks" $ask --prompt "What is shown?" --temperature 1.5 --top-p 0.95 --seed 7 --max-new-tokens 24 $keys
    equal "$ranks ranks: the same drawn text" "$drawn"
done
say "no image" 1 --prompt "Where does a fish live?"
say "two images" 1 --image input/tiny/images/hammer.jpg --image input/tiny/images/padlock.png --prompt "What are these?"
say "one token" 1 $ask --prompt "What is shown?" --max-new-tokens 1

# ---- a list of questions --------------------------------------------------------------------------------
{
    echo '{"question_id": 7, "text": "What is shown?", "image": "images/cherries.png", "category": "x"}'
    echo
    echo '{"question_id": "b \"7\"", "prompt": "Where does a fish live?"}'
    echo '{"question_id": 9, "prompt": "And these?", "image": ["images/hammer.jpg", "images/padlock.png"]}'
} >"$TEST_TMP/q.jsonl"
list="generate:prompt_file=$TEST_TMP/q.jsonl generate:max_new_tokens=20"
expect 0 '3 questions' "a list of questions" mpirun -n 3 "$STRATA" generate $base $from $list $cut3 "generate:answer_file=$TEST_TMP/a.jsonl"
yes "three answers" test "$(wc -l <"$TEST_TMP/a.jsonl")" = 3
yes "LLaVA's fields in LLaVA's order" grep -qE '^\{"question_id": *7, *"prompt": *"What is shown\?", *"text": *".*", *"answer_id": *"[0-9a-f]{22}", *"model_id": *"ckpt/iter_0000060", *"metadata": *\{' "$TEST_TMP/a.jsonl"
yes "question_id stays a text" grep -qF '"b \"7\""' "$TEST_TMP/a.jsonl"
out=$("$STRATA" generate $base $from $list 2>/dev/null)
yes "without answer_file they go to standard output, the same in another layout" diff <(echo "$out") "$TEST_TMP/a.jsonl"
for layout in "3" "6 $cut3"; do
    ranks=${layout%% *} keys=${layout#"$ranks"}
    rm -f "$TEST_TMP/b.jsonl"
    expect 0 '3 questions' "dealt out over $((ranks == 3 ? 3 : 2)) copies of the model" mpirun -n "$ranks" "$STRATA" generate $base $from \
        $list training:global_batch_size=12 $keys "generate:answer_file=$TEST_TMP/b.jsonl"
    yes "the same answers in the same order" cmp "$TEST_TMP/a.jsonl" "$TEST_TMP/b.jsonl"
done
echo '{"prompt": "x", "image": "nowhere.png"}' >>"$TEST_TMP/q.jsonl"
expect 66 '^error: .*nowhere.png' "an image that is not there, on the second copy" mpirun -n 2 "$STRATA" generate $base $from $list
sed -i '$d' "$TEST_TMP/q.jsonl"
expect 73 'answer_file' "an answer file is not overwritten" "$STRATA" generate $base $from $list "generate:answer_file=$TEST_TMP/a.jsonl"

# ---- refusals ----------------------------------------------------------------------------------------------
one() { expect "$1" "$2" "$3" "$STRATA" generate $base "${@:4}"; }
one 64 'give --prompt' "nothing asked" $from
one 64 'no checkpoint' "no checkpoint" --prompt x
one 64 'image needs --prompt' "an image without a prompt" $from --image x.png
one 64 'knows --image' "an unknown option" $from --imag x.png --prompt x
one 64 'needs a value' "an option without a value" $from --prompt
one 64 'top-p takes a number' "top-p of 2" $from --prompt x --top-p 2
one 64 'max-new-tokens takes a whole' "no tokens" $from --prompt x --max-new-tokens 0
one 66 'nowhere.png' "an image that is not there" $from --image nowhere.png --prompt x
one 65 'markers' "a marker of its own" $from $ask --prompt 'see <image>'
one 65 'decoder_seq_length' "a prompt without room" $from --prompt "$(printf 'fish %.0s' $(seq 300))"
expect 64 'one question is answered by one copy' "one question, two copies" mpirun -n 2 "$STRATA" generate $base $from --prompt x
for bad in '[1]' '{"prompt": 5}' '{"question_id": 1}' '{"prompt": "x", "image": 3}' '{"prompt": "x"' '{"question_id": [1], "prompt": "x"}' \
    '{"prompt": "x", "text": "y"}' '{"prompt": "x", "images": ["a.png"]}' '{"prompt": "x", "Image": "a.png"}' '{"prompt": "x\u0000"}'; do
    echo "$bad" >"$TEST_TMP/bad.jsonl"
    one 65 'bad.jsonl:1' "a line that is no question: $bad" $from "generate:prompt_file=$TEST_TMP/bad.jsonl"
done
printf '\xef\xbb\xbf{"prompt": "x"}' >"$TEST_TMP/bad.jsonl"
one 65 'bad.jsonl begins with a byte order mark' "a byte order mark" $from "generate:prompt_file=$TEST_TMP/bad.jsonl"
echo '{"prompt": "x"}' | iconv -t UTF-16 >"$TEST_TMP/bad.jsonl"
one 65 'bad.jsonl is UTF-16 text; write it as UTF-8' "UTF-16" $from "generate:prompt_file=$TEST_TMP/bad.jsonl"
printf '[%06999999d]' 0 | sed 's/0/{},/g; s/,\]/]/' >"$TEST_TMP/bad.jsonl"
one 65 'bad.jsonl:1: it has .* bytes, allowed are 8388608' "a line made to take a gigabyte" $from "generate:prompt_file=$TEST_TMP/bad.jsonl"
: >"$TEST_TMP/bad.jsonl"
one 65 'holds no question' "an empty list" $from "generate:prompt_file=$TEST_TMP/bad.jsonl"

# ---- strata plot -------------------------------------------------------------------------------------------
expect 0 'loss, last [0-9.]+$' "the curve as text" "$STRATA" plot "$TEST_TMP/run" --svg "$TEST_TMP/loss.svg"
yes "and as SVG" grep -q '<polyline' "$TEST_TMP/loss.svg"
yes "the SVG is whole" test "$(tail -n 1 "$TEST_TMP/loss.svg")" = '</svg>'
yes "with a point for each of the 60 steps" test "$(sed -n '/<polyline/,/>/p' "$TEST_TMP/loss.svg" | grep -oE '[0-9.]+,[0-9.]+' | wc -l)" = 60
cp -r "$TEST_TMP/run" "$TEST_TMP/both"
printf 'iteration,consumed_samples,lm_loss,perplexity,target_tokens,samples,elapsed_ms\n30,480,2.5,12,9,9,9\n60,960,nan,12,9,9,9\n' >"$TEST_TMP/both/validation.csv"
expect 0 'o validation loss, last 2.5000$' "with a validation loss; what is not finite is left out" "$STRATA" plot "$TEST_TMP/both"
expect 66 'metrics.csv' "no run there" "$STRATA" plot "$TEST_TMP/nothing"
echo "iteration,consumed_samples,lm_loss,grad_norm" >"$TEST_TMP/both/metrics.csv"
expect 65 'no step' "a run without a step" "$STRATA" plot "$TEST_TMP/both"
echo "x" >"$TEST_TMP/both/metrics.csv"
expect 65 'does not begin' "no table" "$STRATA" plot "$TEST_TMP/both"
expect 64 'run directory' "too many words" "$STRATA" plot a b
exit $status
