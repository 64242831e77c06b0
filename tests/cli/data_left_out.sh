# What was left out of the data is said at each start, with the index that says so and the command that
# makes it again; files that come back come in again by themselves.
. "$(dirname "$0")/cli.inc"

cp -r input/tiny "$TEST_TMP/tiny data"
sed "s#= tiny/#= $TEST_TMP/tiny data/#; s#= tiny\$#= $TEST_TMP/tiny data#" "$tiny" >"$TEST_TMP/job file.ini"
lemon="$TEST_TMP/tiny data/images/lemon.png"
start() {
    expect "$1" "$2" "$3" "$STRATA" train "$TEST_TMP/job file.ini" "run:run_dir=$TEST_TMP/run" training:train_iters=1 \
        data:on_bad_image=skip data:max_bad_images=9 optimizer:lr_warmup_iters=0
}
mv "$lemon" "$TEST_TMP/kept.png"
left='^warning .*: 2 of 32 records are left out: 2 with an image that cannot be used \(on_bad_image = skip\), 0 without'
start 0 "$left" "records that were left out are counted"
start 0 "$left" "the next start says it again"
index=$(grep -oE "says the index $TEST_TMP/run/dataset-[0-9a-f]{16}\.h5" <<<"$out" | cut -d' ' -f4)
yes "with the index" test -f "$index"
yes "and the reason" grep -qE '^data: left out: record 3 \(id lemon\): image images/lemon.png cannot be opened: No such file' <<<"$out"
command=$(grep -oE 'or by: strata .*' <<<"$out" | cut -c8-)
yes "and the command, quoted for a shell" grep -qF "prepare '$TEST_TMP/job file.ini' --rebuild" <<<"$command"

before=$(stat -c %i "$index")
expect 0 '^data: 30 samples and 32 images of ' "the command is there" sh -c "'$STRATA' ${command#strata }"
yes "and makes the same index again" test "$(stat -c %i "$index")" != "$before"
before=$(stat -c %i "$index")
expect 0 '' "without --rebuild" sh -c "'$STRATA' $(sed 's/^strata//; s/ --rebuild//' <<<"$command")"
yes "it is left alone" test "$(stat -c %i "$index")" = "$before"

mv "$TEST_TMP/kept.png" "$lemon"
start 0 '^data: 32 samples ' "the image is back, and so are its records"
yes "it says why the index is made again" grep -qE "^data: .*lemon.png changed after the index .* was made" <<<"$out"
yes "and has nothing else to say" test "$(grep -cE 'left out|^warning' <<<"$out")" = 0

# ---- held-out data are read the same way ------------------------------------------------------------------
printf '[{"id": 1, "score": 2, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}]' >"$TEST_TMP/valid.json"
start_valid() { expect "$1" "$2" "$3" "$STRATA" train "$tiny" "run:run_dir=$TEST_TMP/v" training:train_iters=1 optimizer:lr_warmup_iters=0 "data:valid_data_path=$TEST_TMP/valid.json"; }
start_valid 0 '^data: keys of records that strata does not read, with the number of records: score \(1\)$' "keys of held-out records are listed"
sed -i 's/"score": 2/"images": ["a.png"]/' "$TEST_TMP/valid.json"
start_valid 65 'valid.json: record 0 \(id 1\): the key "images" carries content' "and refused where they carry content"
expect 65 'valid.json: record 0 \(id 1\): the key "images" carries content' "prepare refuses them too" \
    "$STRATA" prepare "$tiny" "run:run_dir=$TEST_TMP/p" "data:valid_data_path=$TEST_TMP/valid.json"
expect 64 'rebuld' "an unknown option of prepare" "$STRATA" prepare "$tiny" --rebuld
exit $status
