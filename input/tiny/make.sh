#!/usr/bin/env bash
# Makes input/tiny/images and input/tiny/tokenizer.model anew; their results are kept in the
# repository, so nobody needs this to train. Debian 12: openclipart-svg, librsvg2-bin, python3-pil,
# sentencepiece. train.json is written by hand.
set -eu
cd "$(dirname "$0")"
svg=${OPENCLIPART:-/usr/share/openclipart/svg}
mkdir -p images
while read -r name picture; do
    rsvg-convert -w 64 -h 64 -a -o "images/$name.png" "$svg/$picture.svg"
done <sources.txt
# Two of them as JPEG, on white: the other decoder is then part of every run of the tiny job.
/usr/bin/python3 - <<'PY'
import os
from PIL import Image
for name in ("house", "hammer"):
    picture = Image.open("images/%s.png" % name).convert("RGBA")
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=picture.getchannel("A"))
    white.save("images/%s.jpg" % name, quality=90)
    os.remove("images/%s.png" % name)
for name in sorted(os.listdir("images")):
    if name.endswith(".png"):
        picture = Image.open("images/" + name)
        picture.save("images/" + name, optimize=True)
PY
# The tokenizer learns from the texts and from the words of the template around them.
/usr/bin/python3 - >texts.tmp <<'PY'
import json
system = ("A chat between a curious user and an artificial intelligence assistant. The assistant "
          "gives helpful, detailed, and polite answers to the user's questions. USER: ASSISTANT:")
for record in json.load(open("train.json")):
    print(system)
    for turn in record["conversations"]:
        print(turn["value"].replace("<image>", "").strip().replace("\n", " "))
PY
spm_train --input=texts.tmp --model_prefix=tokenizer.tmp --vocab_size=400 --model_type=bpe \
    --character_coverage=1.0 --byte_fallback=true --pad_id=3 --normalization_rule_name=identity \
    --remove_extra_whitespaces=false --num_threads=1 --minloglevel=2
mv tokenizer.tmp.model tokenizer.model
rm -f texts.tmp tokenizer.tmp.vocab
