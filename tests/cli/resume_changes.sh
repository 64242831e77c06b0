# A resume with a changed job file: what is said, what is refused, all of it in one go.
# timeout: 120
. "$(dirname "$0")/cli.inc"
common=(run:threads_per_rank=1 optimizer:lr_decay_iters=20 "checkpoint:save=$TEST_TMP/ckpt")

train 1 training:train_iters=2 "${common[@]}"
expect 0 '' "a checkpoint is written" "${command[@]}"
train 1 training:train_iters=2 "${common[@]}"
expect 0 '' "the same job again" "${command[@]}"
yes "names no difference" test "$(grep -c 'differs' <<<"$out")" = 0

train 2 training:train_iters=3 "${common[@]}" parallel:pipeline_model_parallel_size=2 checkpoint:most_recent_k=2 optimizer:lr=2e-3
expect 0 'the job file differs from that of .*iter_0000002' "another layout and rate are allowed" "${command[@]}"
said() { # REGEX NAME
    yes "$2" test "$(grep -cE -- "$1" <<<"$out")" = 1
}
said '^  \[parallel\] pipeline_model_parallel_size: 1 -> 2 \(allowed\)$' "the layout is named"
said '^  \[checkpoint\] most_recent_k: -1 -> 2 \(free\)$' "what is free is named"
said '^  \[optimizer\] lr: .* -> 0?\.?0*2.* \(allowed\)$' "the rate is named"
said '^  \[training\] train_iters: 2 -> 3 \(allowed\)$' "the length is named"

train 1 training:train_iters=4 "${common[@]}" training:seed=99 language:ffn_hidden_size=104 data:shuffle=false training:global_batch_size=8 language:norm_epsilon=1e-4 optimizer:lr=2e-3
expect 78 '^error: .*\[training\] seed = 99, but .* was trained with 1234' "what would be another run is refused" "${command[@]}"
for key in ffn_hidden_size shuffle global_batch_size norm_epsilon; do
    said "^error: .*\] $key = .* was trained with" "$key is named too"
done
sed "s/^lr *=.*/lr = 7e-4/" $tiny >"$TEST_TMP/other.ini"
sed -i "s#^\(data_path\|image_folder\|tokenizer_model\) *= *#&$PWD/input/#" "$TEST_TMP/other.ini"
job=$TEST_TMP/other.ini train 1 training:train_iters=4 "${common[@]}"
expect 78 'lr = .*, give it as an argument: optimizer:lr=' "a rate changed in the file is not enough" "${command[@]}"
train 1 training:train_iters=4 "${common[@]}" training:seed=99 checkpoint:no_load_rng=true optimizer:lr=2e-3
expect 0 '\[training\] seed: 1234 -> 99 \(allowed\)' "another seed with no_load_rng" "${command[@]}"
exit $status
