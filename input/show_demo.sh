#!/usr/bin/env bash
# What the demo's model says of its pictures, beside the true captions: how many captions come out word
# for word, and some of them, for pictures it was trained on and for those it never saw.
#
#   input/show_demo.sh FOLDER JOB.ini COMMAND...    COMMAND starts strata, as mpirun -n 2 build/strata
set -eu
demo=${1:?usage: input/show_demo.sh FOLDER JOB.ini COMMAND...}
job=$2
shift 2
each=8
ask=$demo/questions.jsonl
find "$demo/data" -name '*.png' | LC_ALL=C sort >"$demo/questions.txt"
trained=$(wc -l <"$demo/questions.txt")
find "$demo/valid" -name '*.png' | LC_ALL=C sort >>"$demo/questions.txt"
quote() { sed 's/[\\"]/\\&/g'; }
quote <"$demo/questions.txt" | while IFS= read -r picture; do
    printf '{"question_id": "%s", "prompt": "", "image": "%s"}\n' "$picture" "${picture#"$demo"/}"
done >"$ask"
rm -f "$demo/answers.jsonl"
"$@" generate "$job" "generate:prompt_file=$(realpath "$ask")" \
    "generate:answer_file=$(realpath "$demo")/answers.jsonl" generate:max_new_tokens=64
# picture, true caption and answer, a line each; captions are one line without tabs
while IFS= read -r picture; do
    IFS= read -r caption <"${picture%.png}.txt" || true
    printf '%s\t%s\n' "$picture" "$caption"
done <"$demo/questions.txt" |
    paste - <(sed 's/.*, *"text": *"\(.*\)", *"answer_id": .*/\1/; s/\\\(["\\]\)/\1/g' "$demo/answers.jsonl") |
    awk -F'\t' -v trained="$trained" -v each=$each '
        { n = NR > trained; sub(/ +$/, "", $2); picture[NR] = $1; truth[NR] = $2; says[NR] = $3
          all[n]++; same[n] += $2 == $3 }
        function show(title, first, n,   i, k) {
            printf "\n%s, %d of %d (* word for word)\n", title, each, n
            for (i = 1; i <= each; i++) {
                k = first + int(i * n / (each + 1))
                sub(/^.*\/(data|valid)\//, "", picture[k])
                printf "  %s\n    true   %s\n    model%s %s\n", picture[k], truth[k], truth[k] == says[k] ? "*" : " ", says[k]
            }
        }
        END {
            show("pictures it was trained on", 1, all[0])
            show("pictures it never saw", trained + 1, all[1])
            printf "\ncaptions word for word: %d of the %d pictures it was trained on, %d of the %d it never saw\n",
                same[0], all[0], same[1], all[1]
        }'
