# strata export says exactly what was trained or refuses, every key by name, before anything is written;
# what the source's JSON files said comes back, and what training changed is named.
# timeout: 300
. "$(dirname "$0")/cli.inc"
patience=$((patience * 3))
tmp=$TEST_TMP
sed '/_dropout = /d; /^projector_hidden_size/s/44/60/' $tiny >"$tmp/job.ini"
ln -s "$PWD/input/tiny" "$tmp/tiny"
few="training:train_iters=1 optimizer:lr_decay_iters=20 run:threads_per_rank=1 data:data_cache_path=$tmp/cache"
vocab="--vocab-size 464"

trained() { # NAME OVERRIDES...: a checkpoint $tmp/NAME of one step
    local name=$1
    shift
    expect 0 '' "train $name" "$STRATA" train "$tmp/job.ini" "run:run_dir=$tmp/run_$name" "checkpoint:save=$tmp/$name" $few "$@"
}
exported() { # NAME ARGUMENTS...
    local name=$1
    shift
    expect 0 '^written: ' "export $name" "$STRATA" export "$tmp/$name" "$tmp/${name}_hf" --dtype fp32 $vocab "$@"
}
field() { # FILE PATH VALUE: the JSON value at a dotted path
    python3 - "$@" <<'PY'
import json, sys
v = json.load(open(sys.argv[1]))
for key in sys.argv[2].split("."):
    v = v.get(key, "(absent)") if isinstance(v, dict) else v[int(key)]
sys.exit(0 if v == json.loads(sys.argv[3]) else f"{sys.argv[2]} is {v}")
PY
}
is() { # NAME FILE PATH VALUE
    yes "$1" field "$tmp/$2" "$3" "$4"
}

# ---- what config.json cannot say ---------------------------------------------------------------------------
refused() { # NAME REGEX OVERRIDES...
    local name=$1 regex=$2
    shift 2
    trained "$name" "$@"
    expect 64 "$regex" "$name: refused by name" "$STRATA" export "$tmp/$name" "$tmp/never" $vocab
    yes "$name: nothing is written" test ! -e "$tmp/never"
}
refused qkv '\[language\] window_size = 7: config.json cannot say it beside add_qkv_bias = true' \
    language:add_qkv_bias=true language:window_size=7
refused percent '\[language\] rotary_percent = 0.5[0-9]*: config.json cannot say it, only 1' \
    language:kv_channels=10 language:rotary_percent=0.6
refused norope '\[language\] position_embedding_type = none: config.json cannot say it, only rope' \
    language:position_embedding_type=none
refused layernorm '\[language\] normalization = LayerNorm: config.json cannot say it, only RMSNorm' \
    language:normalization=LayerNorm
refused plain '\[language\] swiglu = false: config.json cannot say it, only true' language:swiglu=false
refused wide '\[vision\] img_w = 42: config.json cannot say it beside img_h = 28' vision:img_w=42
refused inner '\[projector\] projector_hidden_size = 44: config.json cannot say it' projector:projector_hidden_size=44
refused both '\[language\] window_size = 7: config.json cannot say it beside add_bias_linear = true' \
    language:add_bias_linear=true language:window_size=7
refused odd '\[language\] num_attention_heads = 7: config.json cannot say it beside add_bias_linear' \
    language:add_bias_linear=true language:num_attention_heads=7 language:num_query_groups=7 language:kv_channels=10
refused all '\[language\] swiglu = false' language:swiglu=false language:normalization=LayerNorm \
    language:rotary_percent=0.5 language:kv_channels=12 vision:img_w=42 projector:projector_hidden_size=44
yes "all of them at once" test "$(grep -c 'config.json cannot say it' <<<"$out")" = 5
expect 64 'projector_activation = silu: config.json cannot say it, only gelu' "the original has gelu" \
    bash -c "'$STRATA' train $tmp/job.ini run:run_dir=$tmp/run_silu checkpoint:save=$tmp/silu $(echo $few) \
        projector:projector_activation=silu >/dev/null && '$STRATA' export $tmp/silu $tmp/never --names original"
exported silu
is "transformers has silu" silu_hf/config.json projector_hidden_act '"silu"'
trained background data:image_background=1,2,3
expect 64 '\[data\] image_background = 1,2,3: config.json cannot say it, only none .*data:image_background=none' \
    "a background is refused" "$STRATA" export "$tmp/background" "$tmp/never" $vocab
exported background data:image_background=none
expect 64 'keys of \[data\] about images and text' "no other key is taken" \
    "$STRATA" export "$tmp/background" "$tmp/never" data:data_path=x

# ---- what it can say -----------------------------------------------------------------------------------------
trained biases language:add_bias_linear=true
exported biases
is "biases make a Llama" biases_hf/config.json text_config.model_type '"llama"'
is "with attention_bias" biases_hf/config.json text_config.attention_bias true
is "and mlp_bias" biases_hf/config.json text_config.mlp_bias true
trained queries language:add_qkv_bias=true
exported queries
is "biases of queries, keys and values make a Qwen2" queries_hf/config.json text_config.model_type '"qwen2"'
trained window language:window_size=7
exported window
is "a window makes a Mistral" window_hf/config.json text_config.sliding_window 7
trained unbiased projector:projector_bias=false
exported unbiased
is "a projector without biases is said" unbiased_hf/config.json multimodal_projector_bias false
yes "and has none" sh -c "! grep -aq linear_1.bias $tmp/unbiased_hf/model.safetensors"
expect 0 '^written: ' "the original's has zeros" "$STRATA" export "$tmp/unbiased" "$tmp/zeros" --names original
yes "under their names" grep -aq 'model.mm_projector.0.bias' "$tmp/zeros/model.safetensors"
trained dropout language:attention_dropout=0.25 language:init_method_std=0.5
exported dropout
is "the dropout of attention is said" dropout_hf/config.json text_config.attention_dropout 0.25
is "and the first values" dropout_hf/config.json text_config.initializer_range 0.5
is "the longest sample, where no other length is given" dropout_hf/config.json text_config.max_position_embeddings 256
# ---- the tokenizer of a model whose source has a model file alone ------------------------------------------------
is "<image> has the row behind the pieces" biases_hf/tokenizer_config.json added_tokens_decoder.400.content '"<image>"'
is "LLaVA's rules" biases_hf/tokenizer_config.json legacy true
is "a begin" biases_hf/tokenizer_config.json bos_token '"<s>"'
is "its class" biases_hf/tokenizer_config.json tokenizer_class '"LlamaTokenizer"'
is "the processor's class" biases_hf/processor_config.json processor_class '"LlavaProcessor"'
is "<image> for the processor" biases_hf/processor_config.json image_token '"<image>"'
yes "the conversation that was trained" grep -q "ASSISTANT:" "$tmp/biases_hf/chat_template.jinja"

# ---- what the source's files said ----------------------------------------------------------------------------------
source=$tmp/source
cp -r tests/golden/hf/round_trip/unbiased "$source"
cp input/tiny/tokenizer.model "$source"
echo '{"do_sample": true, "temperature": 0.5, "eos_token_id": [2, 7]}' >"$source/generation_config.json"
echo '{"model_max_length": 1000000000000000019884624838656, "legacy": true, "padding_side": "left"}' >"$source/tokenizer_config.json"
expect 0 '^written: ' "import a folder with all its files" "$STRATA" import "$source" "$tmp/in"
expect 0 '^written: ' "export it" "$STRATA" export "$tmp/in" "$tmp/out" --dtype fp32
yes "nothing of config.json is named as changed" sh -c "! grep -q 'config.json .*as trained' <<EOF
$out
EOF"
is "max_position_embeddings" out/config.json text_config.max_position_embeddings 512
is "multimodal_projector_bias" out/config.json multimodal_projector_bias false
is "the list of ends" out/generation_config.json eos_token_id '[2, 7]'
is "the temperature" out/generation_config.json temperature 0.5
is "no limit of length" out/tokenizer_config.json model_max_length 1000000000000000019884624838656
is "the side of the padding" out/tokenizer_config.json padding_side '"left"'
is "the pieces of before and <image>" out/tokenizer_config.json added_tokens_decoder.400.content '"<image>"'
expect 0 '^config.json text_config.rms_norm_eps is 0.01.*, as trained; the source said' "what is another value is named" bash -c \
    "'$STRATA' import '$source' '$tmp/in2' language:norm_epsilon=0.01 && '$STRATA' export '$tmp/in2' '$tmp/out2' --dtype fp32"
exit $status
