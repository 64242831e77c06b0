# strata import and export: one model under every naming scheme, there and back, hostile folders, a
# start of the trainer from the result, and the plan of a 7B model from headers alone.
# timeout: 300
. "$(dirname "$0")/cli.inc"
patience=$((patience * 3))
names=tests/golden/hf/names
tmp=$TEST_TMP
heads=vision:num_attention_heads=3

# ---- there and back -----------------------------------------------------------------------------------------
import() { # NAME ARGUMENTS...
    local name=$1
    shift
    expect 0 '^model: 6 layers \(2 vision \+ 2 projector \+ 2 language\), 10632 parameters$' \
        "import $name" "$STRATA" import "$@" "$tmp/$name"
}
export_as() { # NAME TO ARGUMENTS...
    local name=$1 to=$2
    shift 2
    expect 0 '^written: ' "export $name as $to" "$STRATA" export "$tmp/$name" "$tmp/$to" "$@"
}
import a $names/a
import b $names/b data:image_aspect_ratio=pad
yes "image_newline is named, not dropped in silence" grep -q 'image_newline' <<<"$out"
yes "so are the tiles" grep -q 'trained on images of several tiles; the job file says one' <<<"$out"
import c $names/c
import original $names/original $heads
import hf --language $names/mistral --vision $names/clip --projector $names/projector
import raw --language $names/mistral_raw --vision $names/clip_openai \
    --projector $names/projector/mm_projector.safetensors $heads
import mixed --language $names/c --vision $names/a --projector $names/original
import tensorflow --language $names/mistral --vision $names/clip_tf --projector $names/projector
for name in a b c original hf raw mixed tensorflow; do
    export_as $name "fp32_$name" --dtype fp32 --image-token 36
    yes "$name is the same model, bit for bit" cmp "$tmp/fp32_a/model.safetensors" "$tmp/fp32_$name/model.safetensors"
done

# Header without blanks, then the data: files of other writers differ in blanks only.
parts() {
    local n
    n=$(od -An -tu8 -N8 "$1" | tr -d ' ')
    head -c $((8 + n)) "$1" | tail -c +9 | tr -d ' '
    tail -c +$((9 + n)) "$1" | od -An -tx1
}
export_as a fp16 --dtype fp16 --image-token 36
parts "$names/a/model.safetensors" >"$tmp/there"
parts "$tmp/fp16/model.safetensors" >"$tmp/back"
yes "import and export give the tensors of the source, bit for bit" cmp "$tmp/there" "$tmp/back"
export_as b sharded --dtype bf16 --max-shard-gb 0.00001
yes "a size limit makes shards with an index" test -s "$tmp/sharded/model.safetensors.index.json" \
    -a -s "$tmp/sharded/model-00003-of-00003.safetensors"
import again "$tmp/sharded"
export_as again fp32_again --dtype fp32 --image-token 36
yes "shards come back as the same model" cmp "$tmp/fp32_a/model.safetensors" "$tmp/fp32_again/model.safetensors"
export_as a names --names original --dtype fp32
import renamed "$tmp/names"
export_as renamed fp32_renamed --dtype fp32 --image-token 36
yes "the original's names come back as the same model" cmp "$tmp/fp32_a/model.safetensors" "$tmp/fp32_renamed/model.safetensors"
export_as a projector --projector-only --dtype fp32
parts "$names/projector/mm_projector.safetensors" >"$tmp/there"
parts "$tmp/projector/mm_projector.safetensors" >"$tmp/back"
yes "--projector-only is LLaVA's mm_projector, bit for bit" cmp "$tmp/there" "$tmp/back"
export_as a wider --dtype fp32 --vocab-size 40
yes "rows are added to the vocabulary" grep -q '"vocab_size": 40' "$tmp/wider/config.json"
expect 64 'none for <image>: --vocab-size N adds rows' "no row for <image>: refused" \
    "$STRATA" export "$tmp/mixed" "$tmp/never" --names hf --vocab-size 37 --image-token 37
expect 73 'is there already: give another folder' "an exported folder is not written over" \
    "$STRATA" export "$tmp/a" "$tmp/fp32_a"
expect 73 'is there already: give another folder' "an imported folder is not written over" \
    "$STRATA" import $names/a "$tmp/a"
expect 0 '4 with first values' "a fresh projector is asked for" "$STRATA" import \
    --language $names/mistral --vision $names/clip --fresh-projector "$tmp/fresh"
expect 0 'projector +2 tensors +260 parameters' "an affine one too" "$STRATA" import \
    --language $names/mistral --vision $names/clip --fresh-projector projector:projector_type=affine "$tmp/affine"
expect 64 'no affine projector: --names original' "transformers has no affine projector" \
    "$STRATA" export "$tmp/affine" "$tmp/never"
export_as affine affine_out --names original --dtype fp32
expect 0 'projector +2 tensors +260 parameters' "it comes back" "$STRATA" import "$tmp/affine_out" "$tmp/affine_back"

# ---- images of several tiles: image_newline under every name, the list of resolutions in both readings -----
next() { # NAME ARGUMENTS...
    local name=$1
    shift
    expect 0 '^model: 6 layers \(2 vision \+ 2 projector \+ 2 language\), 10652 parameters$' \
        "import $name" "$STRATA" import "$@" "$tmp/$name"
    yes "the job of $name has its tiles" grep -qx 'image_grid_pinpoints = 12,6,6,12,12,12' "$tmp/$name/job.ini"
    yes "and anyres" grep -qx 'image_aspect_ratio = anyres' "$tmp/$name/job.ini"
}
next next_a $names/next_a
next next_b $names/b
next next_c $names/next_c
next next_original $names/next_original $heads
for name in next_a next_b next_c next_original; do
    export_as $name "fp32_$name" --dtype fp32 --image-token 36
    yes "$name is the same model, bit for bit" \
        cmp "$tmp/fp32_next_a/model.safetensors" "$tmp/fp32_$name/model.safetensors"
done
yes "it is another than without the newline" sh -c "! cmp -s $tmp/fp32_a/model.safetensors $tmp/fp32_next_a/model.safetensors"
export_as next_a fp16_next --dtype fp16 --image-token 36
parts "$names/next_a/model.safetensors" >"$tmp/there"
parts "$tmp/fp16_next/model.safetensors" >"$tmp/back"
yes "import and export give the tensors of the source, bit for bit" cmp "$tmp/there" "$tmp/back"
squeeze() { tr -d ' \n' <"$1"; }
for file in config preprocessor_config; do
    yes "$file.json has height before width" \
        grep -q '"image_grid_pinpoints":\[\[6,12\],\[12,6\],\[12,12\]\]' <(squeeze "$tmp/fp16_next/$file.json")
done
yes "the exported model is a LlavaNext" grep -q '"model_type":"llava_next"' <(squeeze "$tmp/fp16_next/config.json")
yes "and so is its processor" grep -q '"image_processor_type":"LlavaNextImageProcessor"' \
    <(squeeze "$tmp/fp16_next/preprocessor_config.json")
export_as next_a next_names --names original --dtype fp32
yes "the original has width before height" \
    grep -q '"image_grid_pinpoints":\[\[12,6\],\[6,12\],\[12,12\]\]' <(squeeze "$tmp/next_names/config.json")
yes "and unpads" grep -q '"mm_patch_merge_type":"spatial_unpad"' <(squeeze "$tmp/next_names/config.json")
next next_renamed "$tmp/next_names"
export_as next_renamed fp32_next_renamed --dtype fp32 --image-token 36
yes "the original's names come back as the same model" \
    cmp "$tmp/fp32_next_a/model.safetensors" "$tmp/fp32_next_renamed/model.safetensors"
expect 65 'tensor image_newline is missing' "anyres without image_newline is refused" \
    "$STRATA" import $names/a --dry-run data:image_aspect_ratio=anyres
expect 0 '5 with first values|1 with first values' "a fresh projector and newline" "$STRATA" import \
    --language $names/mistral --vision $names/clip --fresh-projector data:image_aspect_ratio=anyres "$tmp/fresh_next"
yes "the newline gets a first value" test "$(grep -c 'with first values' <<<"$out")" = 2
export_as fresh_next fresh_next_out --dtype fp32 --image-token 36

# ---- what is not whole is refused, every fault by name -----------------------------------------------------
hostile() { # NAME: a copy of scheme a (config.json) and c (shards) to be damaged
    rm -rf "$tmp/bad"
    cp -r "$names/$1" "$tmp/bad"
}
refused() { # CODE REGEX NAME
    expect "$1" "$2" "$3" "$STRATA" import "$tmp/bad" "$tmp/never" --dry-run
}
hostile a
sed -i 's/"num_hidden_layers": 2/"num_hidden_layers": 3/g' "$tmp/bad/config.json"
refused 65 'tensor language_model.model.layers.2.self_attn.q_proj.weight is missing' "a missing layer"
yes "all missing tensors are listed" test "$(grep -c 'is missing' <<<"$out")" = 25
hostile a
sed -i '0,/"num_hidden_layers": 2/s//"num_hidden_layers": 1/' "$tmp/bad/config.json"
refused 65 '"language_model.model.layers.1.mlp.down_proj.weight" is no part of the model' "an extra layer"
hostile a
sed -i 's/"intermediate_size": 24/"intermediate_size": 25/' "$tmp/bad/config.json"
refused 65 '"language_model.model.layers.0.mlp.down_proj.weight" is 20x24, the model needs 20x25' "another shape"
hostile c
rm "$tmp/bad/model-00002-of-00003.safetensors"
refused 66 'model-00002-of-00003.safetensors cannot be opened' "a missing shard"
hostile c
cp "$tmp/bad/model-00001-of-00003.safetensors" "$tmp/bad/model-00002-of-00003.safetensors"
refused 65 'is in model-0000[12]-of-00003.safetensors and in model-0000[12]-of-00003' "a shard twice"
hostile c
sed -i '0,/model-00001/s/model-00001/..\/model-00001/' "$tmp/bad/model.safetensors.index.json"
refused 65 'without a path' "a path in the index"
hostile c
sed -i 's/"total_size": [0-9]*/"total_size": 1/' "$tmp/bad/model.safetensors.index.json"
refused 0 'total_size is not the 21264 bytes' "a wrong total is a warning"
hostile a
truncate -s -1 "$tmp/bad/model.safetensors"
refused 65 'ends beyond the file' "a truncated file"
hostile a
printf x >>"$tmp/bad/model.safetensors"
refused 65 'its tensors end at byte' "a byte too many"
hostile a
rm "$tmp/bad/config.json"
refused 66 'has neither config.json nor params.json' "no configuration"
hostile a
echo '{"text_config": 7' >"$tmp/bad/config.json"
refused 65 'is no JSON' "a configuration that is none"
hostile a
sed -i 's/"hidden_size": 20/"hidden_size": "20"/' "$tmp/bad/config.json"
refused 65 'hidden_size is no whole number' "a size that is no number"
hostile a
sed -i 's/"num_attention_heads": 4/"num_attention_heads": 0/' "$tmp/bad/config.json"
refused 65 'num_attention_heads is 0, at least 1' "no heads"
hostile a
sed -i 's/"rope_theta": 1000000.0/"rope_theta": 1000000.0, "rope_scaling": {"type": "dynamic", "factor": 2}/' "$tmp/bad/config.json"
refused 65 'rope_type is "dynamic", this version builds "default", "linear", "llama3" and "yarn"' "scaled positions"
hostile a
sed -i 's/"model_type": "llava"/"model_type": "llava", "vision_feature_layer": [-2, -5]/' "$tmp/bad/config.json"
refused 65 'vision_feature_layer is a list' "several feature layers"
for list in '[[6]]' '[]' '[[6, 12, 6]]' '[[6, "12"]]' '[[6, 0]]' '[6, 12]' '"6,12"' '[[6, 100000]]'; do
    hostile next_a
    sed -i "s/\"model_type\": \"llava_next\"/\"model_type\": \"llava_next\", \"x\": 1/" "$tmp/bad/config.json"
    python3 - "$tmp/bad/config.json" "$list" <<'PY'
import json, sys
c = json.load(open(sys.argv[1]))
c["image_grid_pinpoints"] = json.loads(sys.argv[2])
json.dump(c, open(sys.argv[1], "w"))
PY
    refused 65 'image_grid_pinpoints must be 1 to 64 pairs' "resolutions $list"
done
hostile next_a
sed -i 's/"model_type": "llava_next"/"model_type": "llava_next", "use_image_newline_parameter": false/' "$tmp/bad/config.json"
refused 65 'use_image_newline_parameter is false' "a map without newlines"
hostile next_original
sed -i 's/spatial_unpad/flat/' "$tmp/bad/config.json"
refused 65 'mm_patch_merge_type is "flat", this version builds "spatial_unpad" only' "tiles that are no map"
hostile next_original
sed -i 's/"anyres"/"anyres_max_9"/' "$tmp/bad/config.json"
refused 65 'image_aspect_ratio is "anyres_max_9"' "another kind of tiles"
hostile a
mkfifo "$tmp/bad/model.safetensors.index.json"
refused 65 'is no regular file' "a pipe for an index"
hostile a
rm "$tmp/bad/model.safetensors" && ln -s "$PWD/$names/a/model.safetensors" "$tmp/bad/model.safetensors"
refused 65 'is a symbolic link' "a link"
expect 0 '^dry run' "a link that is asked for" "$STRATA" import "$tmp/bad" --follow-links --dry-run
expect 65 'model_type is "clip"; strata imports llava and llava_next' "a tower alone" \
    "$STRATA" import $names/clip --dry-run
expect 64 'has no option --quick' "an unknown option" "$STRATA" import $names/a "$tmp/never" --quick
expect 64 'SRC is a LLaVA folder' "no destination" "$STRATA" import $names/a
yes "none of these left a folder" test ! -e "$tmp/never"

# ---- the trainer starts from a checkpoint, from safetensors, in any layout --------------------------------
few="training:train_iters=2 optimizer:lr_decay_iters=20 run:threads_per_rank=1 language:hidden_dropout=0
     language:attention_dropout=0"
go() { # NAME RANKS CODE REGEX OVERRIDES...
    local name=$1 ranks=$2 code=$3 regex=$4
    shift 4
    expect "$code" "$regex" "train $name" mpirun -n "$ranks" "$STRATA" train $tiny "run:run_dir=$tmp/run_$name" $few "$@"
}
losses() { cut -d, -f1-4 "$tmp/run_$1/metrics.csv"; }
go first 1 0 '' "checkpoint:save=$tmp/first" projector:freeze_vision_projection=false \
    language:freeze_LM=true vision:freeze_ViT=true
expect 0 '' "export it" "$STRATA" export "$tmp/first" "$tmp/first_hf" --dtype fp32 --names original
go checkpoint 1 0 '^weights are taken from .*first' "checkpoint:pretrained_checkpoint=$tmp/first" vision:freeze_ViT=true
go safetensors 1 0 '^weights are taken from .*first_hf' "checkpoint:pretrained_checkpoint=$tmp/first_hf" vision:freeze_ViT=true
go layout 4 0 '^weights are taken from .*first_hf' "checkpoint:pretrained_checkpoint=$tmp/first_hf" vision:freeze_ViT=true \
    parallel:tensor_model_parallel_size=2 parallel:pipeline_model_parallel_size=2
go finetune 2 0 '^weights are taken from .*first' "checkpoint:load=$tmp/first" checkpoint:finetune=true \
    vision:freeze_ViT=true parallel:pipeline_model_parallel_size=2
yes "a checkpoint and its safetensors begin the same run" test "$(losses checkpoint)" = "$(losses safetensors)"
yes "so does finetune, on two stages" test "$(losses checkpoint)" = "$(losses finetune)"
near() { awk -F, 'NR == FNR { a[FNR] = $3; next } FNR > 1 { d = a[FNR] - $3; if (!(d * d < 1e-12)) bad = 1; n++ }
    END { exit !(n == 2 && !bad) }' "$tmp/run_$1/metrics.csv" "$tmp/run_$2/metrics.csv"; }
yes "and two by two ranks within rounding" near checkpoint layout
go rotary 2 78 'rotary_base = 500, but .*first_hf was made with 10000' \
    "checkpoint:pretrained_checkpoint=$tmp/first_hf" language:rotary_base=500
go shape 2 78 'ffn_hidden_size = 96, but .*first_hf was made with 100' \
    "checkpoint:pretrained_checkpoint=$tmp/first_hf" language:ffn_hidden_size=96
go other 1 78 'rotary_base = 500, but the weights of .*first.* were trained with 10000' \
    "checkpoint:pretrained_checkpoint=$tmp/first" language:rotary_base=500
go both 1 64 'pretrained_checkpoint.*load is given too' "checkpoint:pretrained_checkpoint=$tmp/first" \
    "checkpoint:load=$tmp/first"
go alone 1 64 'finetune.*load is not given' checkpoint:finetune=true

# ---- 7B from headers alone --------------------------------------------------------------------------------------
mkdir "$tmp/7b"
cat >"$tmp/7b/config.json" <<'JSON'
{"model_type": "llava_next", "image_token_index": 32000,
 "text_config": {"model_type": "mistral", "intermediate_size": 14336, "num_key_value_heads": 8,
                 "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
                 "sliding_window": null, "vocab_size": 32064},
 "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                   "num_hidden_layers": 24, "image_size": 336, "patch_size": 14}}
JSON
awk '
function put(name, rows, cols,   n, shape) {
    n = cols ? rows * cols : rows; shape = cols ? rows "," cols : rows
    if (name ~ /patch_embedding/) { n = 1024 * 588; shape = "1024,3,14,14" }
    printf "%s\"%s\":{\"dtype\":\"F16\",\"shape\":[%s],\"data_offsets\":[%.0f,%.0f]}", sep, name, shape, at, at + 2 * n
    sep = ","; at += 2 * n
}
function both(name, rows, cols) { put(name ".weight", rows, cols); put(name ".bias", rows) }
BEGIN {
    printf "{"
    L = "language_model.model."; T = "vision_tower.vision_model."
    put(L "embed_tokens.weight", 32064, 4096); put("language_model.lm_head.weight", 32064, 4096)
    put(L "norm.weight", 4096); put("image_newline", 4096)
    for (i = 0; i < 32; i++) {
        p = L "layers." i "."
        put(p "input_layernorm.weight", 4096); put(p "post_attention_layernorm.weight", 4096)
        put(p "self_attn.q_proj.weight", 4096, 4096); put(p "self_attn.o_proj.weight", 4096, 4096)
        put(p "self_attn.k_proj.weight", 1024, 4096); put(p "self_attn.v_proj.weight", 1024, 4096)
        put(p "mlp.gate_proj.weight", 14336, 4096); put(p "mlp.up_proj.weight", 14336, 4096)
        put(p "mlp.down_proj.weight", 4096, 14336)
    }
    put(T "embeddings.class_embedding", 1024); put(T "embeddings.patch_embedding.weight")
    put(T "embeddings.position_embedding.weight", 577, 1024)
    both(T "pre_layrnorm", 1024); both(T "post_layernorm", 1024)
    for (i = 0; i < 24; i++) {
        p = T "encoder.layers." i "."
        both(p "layer_norm1", 1024); both(p "layer_norm2", 1024)
        both(p "self_attn.q_proj", 1024, 1024); both(p "self_attn.k_proj", 1024, 1024)
        both(p "self_attn.v_proj", 1024, 1024); both(p "self_attn.out_proj", 1024, 1024)
        both(p "mlp.fc1", 4096, 1024); both(p "mlp.fc2", 1024, 4096)
    }
    both("multi_modal_projector.linear_1", 4096, 1024); both("multi_modal_projector.linear_2", 4096, 4096)
    printf "}"
    printf "%.0f", at > "/dev/stderr"
}' >"$tmp/header" 2>"$tmp/bytes"
n=$(wc -c <"$tmp/header")
{
    for i in 0 8 16 24 32 40 48 56; do printf "\\x$(printf %02x $((n >> i & 255)))"; done
    cat "$tmp/header"
} >"$tmp/7b/model.safetensors"
truncate -s $((8 + n + $(cat "$tmp/bytes"))) "$tmp/7b/model.safetensors"
patience=20
start=$(date +%s)
expect 0 '^model: 58 layers \(24 vision \+ 2 projector \+ 32 language\), 7566747648 parameters$' \
    "the plan of LLaVA-1.6-Mistral-7B" "$STRATA" import "$tmp/7b" --dry-run
yes "in a few seconds" test $(($(date +%s) - start)) -le 5
yes "its weights have the published bytes, image_newline's among them" grep -q '14484520960 bytes of F16' <<<"$out"
expect 0 '^dry run: nothing but the job file was written$' "and its job file" \
    "$STRATA" import "$tmp/7b" --dry-run --job "$tmp/7b.ini"
expect 73 '7b.ini is there already' "which is not written over" \
    "$STRATA" import "$tmp/7b" --dry-run --job "$tmp/7b.ini"
for layout in "1 1" "2 4"; do
    set -- $layout
    expect 0 "^ranks +$(($1 * $2)) = tensor $1 x pipeline $2 x data 1" "check plans it on $1 x $2 ranks" \
        "$STRATA" check "$tmp/7b.ini" --ranks $(($1 * $2)) "parallel:tensor_model_parallel_size=$1" \
        "parallel:pipeline_model_parallel_size=$2"
    yes "58 layers and all parameters" grep -qE '58 layers .*; 7566747648 parameters' <<<"$out"
    # Four bytes a parameter; what tensor ranks hold alike (norms, biases) counts again.
    yes "every rank says what it needs, the weights make 7B" awk -v ranks=$(($1 * $2)) '
        /^ +rank +tp +pp/ { table = 1; next }
        table && NF >= 15 && $1 == n { n++; weights += $6; if (!($NF > $6)) bad = 1; next }
        { table = 0 }
        END { p = weights * 1048576 / 4 / 7566743552
              exit !(n == ranks && !bad && p > 0.9999 && p < 1.01) }' <<<"$out"
done
exit $status
