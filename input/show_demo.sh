#!/usr/bin/env bash
# What the demo's model says of some pictures it was trained on and of some it never saw, beside the
# true captions.
#
#   input/show_demo.sh FOLDER JOB.ini COMMAND...    COMMAND starts strata, as mpirun -n 2 build/strata
set -eu
demo=${1:?usage: input/show_demo.sh FOLDER JOB.ini COMMAND...}
job=$2
shift 2
each=6
# pick FOLDER: some pictures, evenly over the sorted list
pick() {
    find "$1" -name '*.png' | LC_ALL=C sort |
        awk -v each=$each '{ p[NR] = $0 } END { for (i = 1; i <= each; i++) print p[int(i * NR / (each + 1)) + 1] }'
}
quote() { sed 's/[\\"]/\\&/g'; }
ask=$demo/questions.jsonl
{ pick "$demo/data"; pick "$demo/valid"; } >"$demo/questions.txt"
while IFS= read -r picture; do
    printf '{"question_id": "%s", "prompt": "", "image": "%s"}\n' \
        "$(printf %s "$picture" | quote)" "$(printf %s "${picture#"$demo"/}" | quote)"
done <"$demo/questions.txt" >"$ask"
rm -f "$demo/answers.jsonl"
"$@" generate "$job" "generate:prompt_file=$(realpath "$ask")" \
    "generate:answer_file=$(realpath "$demo")/answers.jsonl" generate:max_new_tokens=48
show() { # HEADING FIRST LAST
    printf '\n%s\n' "$1"
    sed -n "$2,$3p" "$demo/answers.jsonl" | while IFS= read -r line; do
        picture=$(printf '%s\n' "$line" | sed 's/^{"question_id": *"\(.*\)", *"prompt": .*/\1/')
        says=$(printf '%s\n' "$line" | sed 's/.*, *"text": *"\(.*\)", *"answer_id": .*/\1/; s/\\\(["\\]\)/\1/g')
        printf '  %s\n    true   %s\n    model  %s\n' "${picture#"$demo"/*/}" \
            "$(head -n 1 "${picture%.png}.txt")" "$says"
    done
}
show "pictures it was trained on" 1 $each
show "pictures it never saw" $((each + 1)) $((2 * each))
