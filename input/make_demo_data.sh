#!/usr/bin/env bash
# The demo's data: Debian's tuxpaint-stamps-default (GPL-2, see /usr/share/doc/tuxpaint-stamps-default)
# as a captioned folder, and a SentencePiece tokenizer trained on its captions.
#
#   input/make_demo_data.sh FOLDER     writes FOLDER/data/**.png + .txt and FOLDER/tokenizer.model
#
# Every 20th picture goes to FOLDER/valid instead, for the loss on pictures that were never seen.
set -eu
stamps=${STAMPS:-/usr/share/tuxpaint/stamps}
out=${1:?usage: input/make_demo_data.sh FOLDER}
if [ -f "$out/tokenizer.model" ] && [ -d "$out/valid" ]; then
    echo "demo data: $out is there already"
    exit 0
fi
if [ ! -d "$stamps" ] || ! command -v spm_train >/dev/null; then
    echo "error: $stamps or spm_train is missing: run make deps-demo" >&2
    exit 66
fi
# Lines like "de.utf8=Eine Giraffe" are translations; the first other line is the English caption.
translation='^[a-z]{2,3}([_@][A-Za-z_@]+)?\.utf8=|^[[:space:]]*$'
rm -rf "$out/data" "$out/valid"
mkdir -p "$out/data" "$out/valid"
: >"$out/captions.txt"
n=0
while IFS= read -r picture; do
    caption=$(grep -m 1 -avE "$translation" "${picture%.png}.txt" 2>/dev/null) || continue
    n=$((n + 1))
    part=data
    if [ $((n % 20)) = 0 ]; then part=valid; fi
    target=$out/$part/${picture#"$stamps"/}
    mkdir -p "$(dirname "$target")"
    cp "$picture" "$target"
    printf '%s\n' "$caption" >"${target%.png}.txt"
    if [ $part = data ]; then printf '%s\n' "$caption" >>"$out/captions.txt"; fi
done < <(find "$stamps" -name '*.png' | LC_ALL=C sort)
# The model file is written last: its presence says that the folder is complete.
spm_train --input="$out/captions.txt" --model_prefix="$out/training" --vocab_size=1024 \
    --model_type=bpe --character_coverage=1.0 --byte_fallback=true --normalization_rule_name=identity \
    --remove_extra_whitespaces=false --hard_vocab_limit=false --minloglevel=2
mv "$out/training.vocab" "$out/tokenizer.vocab"
mv "$out/training.model" "$out/tokenizer.model"
echo "demo data: $n captioned pictures, $((n / 20)) of them held out, and a tokenizer in $out"
