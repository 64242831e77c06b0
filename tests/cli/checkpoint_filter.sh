# [checkpoint] integrity_filter: saved beside training or not, resumed in another layout, and what every
# checkpoint command and the tools of HDF5 make of it.
# timeout: 200
. "$(dirname "$0")/cli.inc"
patience=$((patience * 3))
python=/usr/bin/python3
t=$TEST_TMP
ckpt() { # CODE REGEX NAME WORDS...
    expect "$1" "$2" "$3" "$STRATA" checkpoint "${@:4}"
}
# run FOLDER RANKS ...: four steps of six, the second and the fourth are saved.
run() {
    train "${@:2}" "checkpoint:save=$t/$1" checkpoint:save_interval=2 checkpoint:most_recent_k=-1 \
        checkpoint:reproducible=true training:train_iters=6 optimizer:lr_warmup_iters=1
    rm -rf "$t/run"
}
stages="parallel:pipeline_model_parallel_size=2 parallel:split_spec=5,4"

run plain 1 training:exit_interval=4
expect 0 "stopped after step 4" "four steps without a filter" "${command[@]}"
run f 1 training:exit_interval=4 checkpoint:integrity_filter=fletcher32 checkpoint:async_save=true
expect 0 "stopped after step 4" "fletcher32, saved while training goes on" "${command[@]}"
# shellcheck disable=SC2086
run d 2 training:exit_interval=4 checkpoint:integrity_filter=deflate $stages
expect 0 "stopped after step 4" "deflate, two stages" "${command[@]}"

for x in f d; do
    ckpt 0 '^equal: 258 tensors equal' "diff: $x has what is saved without a filter" diff "$t/plain" "$t/$x"
    ckpt 0 'verified \(strict\)' "verify --strict: $x" verify --strict "$t/$x/iter_0000004"
    ckpt 0 '^ +4 .* verified .*<- resume takes this$' "ls: $x" ls "$t/$x"
done
ckpt 0 '^integrity_filter +deflate' "show: the filter" show "$t/d" --quick
ckpt 0 'linear_1/weight of .*, 1 chunks of [0-9]+ bytes' "show: the chunks of a block" \
    show "$t/d" model/mm_projector/linear_1/weight
size() { stat -c %s "$t/$1/iter_0000004/"*-shard-00000-*.h5; }
yes "a shard of fletcher32 is not larger than by a tenth" [ $(($(size f) * 10)) -lt $(($(size plain) * 11)) ]

# The filter stays what it is: there and back gives the same files.
ckpt 0 'TP 2 PP 1 DP 2' "reshard: deflate to TP 2 DP 2" reshard "$t/d" "$t/d1" --tp 2 --pp 1 --dp 2 --sharded
ckpt 0 'verified \(strict\)' "and it verifies" verify --strict "$t/d1/iter_0000004"
ckpt 0 '^integrity_filter +deflate' "and keeps the filter" show "$t/d1" --quick
ckpt 0 'TP 1 PP 2 DP 1' "reshard: back" reshard "$t/d1" "$t/d2" --tp 1 --pp 2 --dp 1 --split-spec 5,4
yes "reshard: there and back is byte-identical" diff -r "$t/d/iter_0000004" "$t/d2/iter_0000004"

# One bit in what is stored, behind which compression hides the values.
cp -r "$t/d" "$t/x"
at=$($python - "$t/x/iter_0000004" <<'PYTHON'
import json, sys
m = json.load(open(sys.argv[1] + "/manifest.json"))
b = [t for t in m["tensors"] if t["name"] == "model/mm_projector/linear_1/weight"][0]["blocks"][0]
at = b["chunk_offset"][0] + b["chunk_bytes"][0] // 2
name = sys.argv[1] + "/" + b["file"]
data = bytearray(open(name, "rb").read())
data[at] ^= 4
open(name, "wb").write(data)
print(at)
PYTHON
)
ckpt 65 'tensor model/mm_projector/linear_1/weight is damaged: elements 0 to 1759 of dataset' \
    "verify: a flipped bit (byte $at) is named" verify "$t/x/iter_0000004"

# Goes on: on two stages from one, on one rank from two stages; without a filter from now on.
losses() { grep '^[56],' "$t/run/metrics.csv" | cut -d, -f1-5; }
run plain 1
expect 0 "step 4; 0 steps lost" "resume without a filter" "${command[@]}"
losses >"$t/unbroken"
# shellcheck disable=SC2086
run f 2 $stages
expect 0 "step 4; 0 steps lost" "resume: fletcher32 on two stages" "${command[@]}"
yes "and gives the same bits" diff "$t/unbroken" <(losses)
run d 1 checkpoint:verify_load=used
expect 0 "step 4; 0 steps lost" "resume: deflate on one rank, verify_load = used" "${command[@]}"
yes "and gives the same bits" diff "$t/unbroken" <(losses)

cd "$t/d2/iter_0000004" || exit 1
if command -v h5dump >/dev/null; then
    h5dump -pH -d /model/mm_projector/linear_1/weight ./*-shard-00000-*.h5 >"$t/dump" 2>&1 ||
        h5dump -pH -d /model/mm_projector/linear_1/weight ./*-shard-00001-*.h5 >"$t/dump" 2>&1
    yes "h5dump tells the filters" grep -q 'COMPRESSION DEFLATE { LEVEL 1 }' "$t/dump"
    yes "and the checksum" grep -q 'CHECKSUM FLETCHER32' "$t/dump"
else
    echo "ok - h5dump tells the filters # SKIP hdf5-tools is not installed"
fi
if ! $python -c 'import h5py, numpy' 2>/dev/null; then
    echo "ok - h5py reads it # SKIP python3-h5py is not installed"
    exit $status
fi
cat >"$t/read.py" <<'PYTHON'
import json, sys
import h5py, numpy
plain, index = h5py.File(sys.argv[1] + "/index.h5"), h5py.File("index.h5")
manifest = json.load(open("manifest.json"))
assert manifest["format_version"] == "2.0.0" and manifest["integrity_filter"] == "deflate"
for t in manifest["tensors"]:
    assert numpy.array_equal(index[t["name"]][:], plain[t["name"]][:]), t["name"]
    for b in t["blocks"]:
        with h5py.File(b["file"]) as f:
            d = f[b["dataset"]]
            assert d.compression == "gzip" and d.shuffle and d.fletcher32, d
            assert list(d.chunks) == b["chunk"]
            assert d.id.get_storage_size() == sum(b["chunk_bytes"])
            at = [d.id.get_chunk_info(i) for i in range(d.id.get_num_chunks())]
            assert [a.byte_offset for a in at] == b["chunk_offset"], b
PYTHON
yes "h5py: every tensor, through index.h5 and the shards" $python "$t/read.py" "$t/plain/iter_0000004"
exit $status
