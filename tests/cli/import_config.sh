# What the JSON files of a foreign folder say is read, or refused by name: each key of each file; the
# proposals that import makes of them. Models: tests/golden/hf (odd/ was made by make_odd.py there).
# timeout: 400
. "$(dirname "$0")/cli.inc"

golden=tests/golden/hf
names=$golden/names
tmp=$TEST_TMP
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# change FOLDER FILE PYTHON: the file of a copy of FOLDER in $tmp/f, changed by statements on c
change() {
    rm -rf "$tmp/f" "$tmp/job.ini"
    cp -r "$1" "$tmp/f"
    python3 - "$tmp/f/$2" "$3" <<'PY'
import json, os, sys
c = json.load(open(sys.argv[1])) if os.path.exists(sys.argv[1]) else {}
t, v = c.get("text_config", {}), c.get("vision_config", {})
exec(sys.argv[2])
json.dump(c, open(sys.argv[1], "w"))
PY
}
run=("$STRATA" import "$tmp/f" --dry-run --job "$tmp/job.ini")
refuses() { # FOLDER FILE PYTHON REGEX: exit 65, one sentence of that form
    change "$1" "$2" "$3"
    expect 65 "$4" "$2: $3" "${run[@]}"
}
accepts() { # FOLDER FILE PYTHON LINE...: exit 0, the job file has these lines
    change "$1" "$2" "$3"
    expect 0 '^dry run' "$2: $3" "${run[@]}"
    shift 3
    for line in "$@"; do yes "  means $line" grep -qx "$line" "$tmp/job.ini"; done
}
single() { yes "  in one sentence" test "$(grep -c '^error' <<<"$out")" = 1; }

# ---- models that this version does not build ---------------------------------------------------------------
for type in video_llava llava_next_video llava_onevision idefics; do
    refuses $names/a config.json "c['model_type'] = '$type'" "model_type is \"$type\"; strata imports llava and llava_next"
    single
done
refuses $names/a config.json "t['model_type'] = 'gemma'" 'text_config.model_type is "gemma"; strata imports'
single
refuses $names/a config.json "v['model_type'] = 'siglip_vision_model'" 'vision_config.model_type is "siglip_vision_model": a CLIP tower'
refuses $names/original config.json "c['model_type'] = 'llava_qwen'" 'model_type is "llava_qwen"; strata imports'

# ---- unknown keys, all of them by name --------------------------------------------------------------------------
change $names/a config.json "c['magic'] = 1; t['residual_scale'] = 2.0; v['window'] = [1]; t['nothing'] = None"
echo '{"odd_one": 1, "temperature": 0.5}' >"$tmp/f/generation_config.json"
echo '{"blur": true}' >"$tmp/f/preprocessor_config.json"
echo '{"dream": 0}' >"$tmp/f/tokenizer_config.json"
expect 65 'does not know the key magic: it may change the model' "unknown keys of five objects" "${run[@]}"
for one in 'residual_scale of text_config' 'window of vision_config' 'generation_config.json: .*odd_one' \
    'preprocessor_config.json: .*blur' 'tokenizer_config.json: .*dream'; do
    yes "  with $one" grep -q "$one" <<<"$out"
done
yes "  and nothing of what is null" sh -c "! grep -q nothing <<EOF
$out
EOF"
refuses $names/a config.json "c.update({'k%02d' % i: i for i in range(30)})" 'k15 and 14 more'
single
refuses $names/a config.json "t['quantization_config'] = {'bits': 4}" 'quantization_config of text_config'
refuses $names/mistral_raw params.json "c['moe'] = {}" 'does not know the key moe'

# ---- one value alone, and null ----------------------------------------------------------------------------------
refuses $names/a config.json "v['attention_dropout'] = 0.1" 'vision_config.attention_dropout is 0.1, this version has 0 only'
refuses $names/a config.json "t['partial_rotary_factor'] = 0.5" 'text_config.partial_rotary_factor is 0.5'
refuses $names/a config.json "c['is_encoder_decoder'] = True" 'is_encoder_decoder is true, this version has false only'
refuses $names/original config.json "c['mm_use_im_start_end'] = True" 'mm_use_im_start_end is true'
refuses $names/original config.json "c['mm_projector_type'] = 'mlp3x_gelu'" 'mm_projector_type is "mlp3x_gelu"'
refuses $names/a config.json "t['hidden_size'] = None" 'text_config.hidden_size is null'
refuses $names/a config.json "c['text_config'] = 7" 'text_config is no object'
refuses $names/a config.json "c['projector_hidden_act'] = 'relu'" 'projector_hidden_act is "relu"'
refuses $names/a config.json "c['multimodal_projector_bias'] = False" 'multimodal_projector_bias is false, but the weights have such biases'
refuses $names/a config.json "t['layer_types'] = ['full_attention', 'sliding_attention']" 'layer_types has layers'
refuses $names/a config.json "t['attention_bias'] = True" "attention_bias is true: transformers' mistral has no such key"
refuses $names/a config.json "t.update(model_type='llama', mlp_bias=True)" 'mlp_bias is true and attention_bias is not'
refuses $names/a config.json "t['sliding_window'] = 0" 'sliding_window is 0'

# ---- rotary positions --------------------------------------------------------------------------------------------
refuses $names/a config.json "t['rope_scaling'] = {'rope_type': 'longrope'}" 'rope_type is "longrope"'
refuses $names/a config.json "t['rope_parameters'] = {'rope_type': 'linear'}" 'rope_parameters.factor is missing'
refuses $names/a config.json "t['rope_scaling'] = {'type': 'linear', 'factor': 2, 'alpha': 1}" 'the key alpha of rope_scaling'
accepts $names/a config.json "t['rope_scaling'] = {'type': 'linear', 'factor': 2, 'rope_theta': 77}" \
    'rope_type = linear' 'rotary_scaling_factor = 2' 'rotary_base = 77'
accepts $names/a config.json "t['rope_parameters'] = {'rope_type': 'default', 'rope_theta': 88}" 'rope_type = rope' 'rotary_base = 88'
accepts $names/a config.json "t['rope_scaling'] = {}; t['rope_parameters'] = {'rope_theta': 99}" 'rotary_base = 99'
accepts $names/a config.json "t['rope_scaling'] = None" 'rotary_base = 1000000'
accepts $names/a config.json "t['rope_scaling'] = {'rope_type': 'yarn', 'factor': None, 'original_max_position_embeddings': 64}; t['max_position_embeddings'] = 256" \
    'rope_type = yarn' 'rotary_scaling_factor = 4' 'original_max_position_embeddings = 64'

# ---- other keys that were passed over --------------------------------------------------------------------------
accepts $names/a config.json "t['attention_dropout'] = 0.25" 'attention_dropout = 0.25'
accepts $names/a config.json "c['unsloth_version'] = 'x'; c['dtype'] = 'float16'; t['pretraining_tp'] = 2"
refuses $names/a config.json "t['num_key_value_heads'] = None" 'layers.0.self_attn.k_proj.weight" is 12x20, the model needs 24x20'

# ---- images -------------------------------------------------------------------------------------------------------
clip="c.update(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711], size={'shortest_edge': 6}, crop_size={'height': 6, 'width': 6}, do_resize=True, resample=3, rescale_factor=1/255, image_processor_type='CLIPImageProcessor')"
accepts $names/a preprocessor_config.json "$clip" 'image_aspect_ratio = pad'
yes "  and CLIP's mean is the job file's own" sh -c "! grep -q image_mean '$tmp/job.ini'"
accepts $names/a preprocessor_config.json "$clip; c['image_mean'] = [0.5, 0.5, 0.25]" 'image_mean = 0.5,0.5,0.25'
accepts $names/a processor_config.json "c.update(patch_size=3, image_processor={'image_std': [0.5, 0.5, 0.5]})" 'image_std = 0.5,0.5,0.5'
accepts $names/a preprocessor_config.json "c.update(image_processor_type='LlavaImageProcessorFast', do_pad=False)" 'image_aspect_ratio = square'
refuses $names/a preprocessor_config.json "c['size'] = {'shortest_edge': 7}" "size is not the tower's image_size 6"
refuses $names/a preprocessor_config.json "c['size'] = {'height': 6, 'width': 6}" 'resized by their shorter edge'
refuses $names/a preprocessor_config.json "c['resample'] = 2" 'resample is 2, this version has 3 only'
refuses $names/a preprocessor_config.json "c['do_normalize'] = False" 'do_normalize is false'
refuses $names/a preprocessor_config.json "c['image_processor_type'] = 'SiglipImageProcessor'" 'image_processor_type is "SiglipImageProcessor"'
refuses $names/next_a preprocessor_config.json "c['image_grid_pinpoints'] = [[6, 6]]" 'image_grid_pinpoints is not that of config.json'
change $names/a preprocessor_config.json "c['image_mean'] = [0.5, 0.5, 0.5]"
echo '{"image_processor": {"image_mean": [0.4, 0.5, 0.5]}}' >"$tmp/f/processor_config.json"
expect 65 'image_mean = 0.4,0.5,0.5, while another file of the folder means 0.5,0.5,0.5' "two files, two means" "${run[@]}"

# ---- a tied head ---------------------------------------------------------------------------------------------------
change $names/a config.json "c['tie_word_embeddings'] = True"
python3 - "$tmp/f/model.safetensors" <<'PY'
import json, struct, sys
raw = open(sys.argv[1], "rb").read()
n = struct.unpack("<Q", raw[:8])[0]
head, data, out, kept = json.loads(raw[8:8 + n]), raw[8 + n:], {}, b""
for name, t in sorted(((k, t) for k, t in head.items() if k != "__metadata__"), key=lambda x: x[1]["data_offsets"]):
    if "lm_head" in name:
        continue
    a, b = t["data_offsets"]
    out[name] = dict(t, data_offsets=[len(kept), len(kept) + b - a])
    kept += data[a:b]
text = json.dumps(out).encode()
open(sys.argv[1], "wb").write(struct.pack("<Q", len(text)) + text + kept)
PY
expect 0 'tie_word_embeddings is true: the output head is imported as a copy' "a tied head" "$STRATA" import "$tmp/f" "$tmp/tied"
expect 0 '' "export it" "$STRATA" export "$tmp/tied" "$tmp/tied_out" --dtype fp16
yes "the head is the embedding" python3 - "$tmp/tied_out/model.safetensors" <<'PY'
import json, struct, sys
raw = open(sys.argv[1], "rb").read()
n = struct.unpack("<Q", raw[:8])[0]
head = json.loads(raw[8:8 + n])
part = {k: raw[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]] for k, t in head.items() if k != "__metadata__"}
same = [v for k, v in part.items() if "lm_head" in k or "embed_tokens" in k]
sys.exit(not (len(same) == 2 and same[0] == same[1] and any(same[0])))
PY
sed -i 's/"tie_word_embeddings": true/"tie_word_embeddings": false/' "$tmp/f/config.json"
rm -f "$tmp/job.ini"
expect 65 'tensor language_model.lm_head.weight is missing' "without the key a missing head is a missing tensor" "${run[@]}"

# ---- proposals --------------------------------------------------------------------------------------------------
accepts $names/a config.json "" 'conversation_template = mistral_instruct'
accepts $names/next_a config.json "" 'conversation_template = mistral_instruct'
accepts $golden/values/llama_last_full config.json "" 'conversation_template = v1'
accepts $golden/values/llama_last_full chat_template.json "c['chat_template'] = '[INST] x [/INST]'" 'conversation_template = mistral_instruct'
accepts $names/a tokenizer_config.json "c['chat_template'] = [{'name': 'default', 'template': 'USER: x ASSISTANT: y'}]" 'conversation_template = v1'
accepts $names/a config.json "" 'lr_warmup_fraction = 0.03'
rm -f "$tmp/job.ini"
expect 0 '^dry run' "a warm-up in steps" "$STRATA" import "$tmp/f" --dry-run --job "$tmp/job.ini" optimizer:lr_warmup_iters=7
yes "  takes the place of the recipe's" sh -c "grep -qx 'lr_warmup_iters = 7' '$tmp/job.ini' && ! grep -q fraction '$tmp/job.ini'"

# ---- a folder that cannot be trained from as it is -------------------------------------------------------------
yes "a folder with tokenizer.json alone" cp -r $names/a "$tmp/json"
echo '{}' >"$tmp/json/tokenizer.json"
expect 0 'json has tokenizer.json, but no tokenizer.model, which is what strata reads' "  is imported, and says so" \
    "$STRATA" import "$tmp/json" "$tmp/json_out"
expect 0 'The tokenizer.json beside it is not what strata reads' "  so does check" "$STRATA" check "$tmp/json_out/job.ini" --ranks 1

# ---- a refusal names what the user knows, and leaves nothing ---------------------------------------------------
expect 64 "job file for $names/a:[0-9]*: \[language\] hidden_dropout" "a refused override" \
    "$STRATA" import $names/a "$tmp/never" language:hidden_dropout=2
yes "  leaves no folder" test ! -e "$tmp/never"
mkdir "$tmp/mine"
expect 64 'hidden_dropout' "in a folder that was there" "$STRATA" import $names/a "$tmp/mine" language:hidden_dropout=2
yes "  leaves it" test -d "$tmp/mine"
exit $status
