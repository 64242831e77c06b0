# A checkpoint explains itself to h5ls, h5dump and h5py: names, shapes, labels, whole tensors through
# index.h5, holes as NaN. Without these programs the lines say SKIP.
# timeout: 120
. "$(dirname "$0")/cli.inc"
program=${BUILD:-build}/tests/mpi/test_checkpoint
here=$TEST_TMP/ckpt
python=/usr/bin/python3

# finds PATTERN NAME COMMAND...
finds() {
    pattern=$1 name=$2
    shift 2
    "$@" >"$TEST_TMP/out" 2>&1 && grep -qE "$pattern" "$TEST_TMP/out"
    say $? "$name"
}

mpirun -n 4 "$program" "$here" >"$TEST_TMP/out" 2>&1
say $? "four ranks write a checkpoint"
[ $status = 0 ] || { sed 's/^/# /' "$TEST_TMP/out"; exit 1; }
cd "$here/iter_0000003" || exit 1
shard=iter_0000003-shard-00000-of-00004.h5

if command -v h5dump >/dev/null && command -v h5ls >/dev/null; then
    finds 'consumed_samples' "h5dump -A -g /header" h5dump -A -g /header "$shard"
    finds 'bfloat16' "h5dump names the committed type" h5dump -g /types "$shard"
    finds '^/model/language_model/layers/000 +Group' "h5ls -r lists the layers" h5ls -r "$shard"
    finds 'DIMENSION_LABELS' "axes are labelled" h5dump -A "$shard"
    finds 'in_features' "and dims spells them out" h5dump -A "$shard"
    finds 'family = llava' "used.ini is in it word for word" h5dump -d /config/used.ini "$shard"
else
    echo "ok - h5dump and h5ls explain a shard # SKIP hdf5-tools is not installed"
fi

if ! $python -c 'import h5py, numpy' 2>/dev/null; then
    echo "ok - h5py reads a checkpoint # SKIP python3-h5py is not installed"
    exit $status
fi
cat >"$TEST_TMP/read.py" <<'PYTHON'
import glob, json, sys
import h5py, numpy

def crc32c(crc, data):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF

def expected(name, role, shape, version):  # as tests/ckpt_model.h
    u = numpy.uint64
    with numpy.errstate(over="ignore"):
        x = u(crc32c(version, name.encode())) * u(0x9E3779B97F4A7C15)
        x = x + u(role) * u(0xD1B54A32D192ED03)
        x = x + numpy.arange(numpy.prod(shape), dtype=u) * u(0x94D049BB133111EB)
        x = (x ^ (x >> u(30))) * u(0xBF58476D1CE4E5B9)
        x = x ^ (x >> u(31))
    return (x.astype(numpy.int64) / 2.0**63).astype(numpy.float32).reshape(shape)

manifest = json.load(open("manifest.json"))
assert manifest["format"] == "strata-checkpoint" and manifest["step"] == 3
assert sorted(f["name"] for f in manifest["files"]) == sorted(glob.glob("*.h5"))
index = h5py.File("index.h5", "r")
role = {"weight": 0, "moment1": 1, "moment2": 2}
for t in manifest["tensors"]:
    name = "model/" + t["name"].split("/", 1 if t["role"] == "weight" else 2)[-1]
    want = expected(name, role[t["role"]], t["global_shape"], 3)
    assert numpy.array_equal(index[t["name"]][:], want), t["name"]
    for b in t["blocks"]:
        with h5py.File(b["file"], "r") as f:
            d = f[b["dataset"]]
            box = tuple(slice(o, o + c) for o, c in zip(b["offset"], b["count"]))
            assert numpy.array_equal(d[:], want[box]), b
            assert list(d.attrs["global_offset"]) == b["offset"]
            assert list(d.attrs["global_shape"]) == t["global_shape"]
            assert [x.label for x in d.dims] == d.attrs["dims"].decode().split(",")
            assert int(d.attrs["crc32c"], 16) == crc32c(0, d[:].tobytes())
            assert d.id.get_offset() == b["file_offset"]
print("tensors", len(manifest["tensors"]))
with h5py.File(manifest["files"][0]["name"], "r") as f:
    assert list(f["training/history/loss"][:]) == [5.5, 5.25, 5.0]
    assert list(f["training/history/loss"].dims[0]["step"][:]) == [1, 2, 3]
    assert f["training/data"].attrs["consumed_samples"] == 24
PYTHON
$python "$TEST_TMP/read.py" >"$TEST_TMP/out" 2>&1
say $? "h5py: every tensor through index.h5, every block, labels, checksums, history"
[ $status = 0 ] || sed 's/^/# /' "$TEST_TMP/out"
rm iter_0000003-shard-00002-of-00004.h5
$python - >"$TEST_TMP/out" 2>&1 <<'PYTHON'
import h5py, json, numpy
index = h5py.File("index.h5", "r")
gone = json.load(open("manifest.json"))["files"][2]["name"]
holes = 0
for t in json.load(open("manifest.json"))["tensors"]:
    for b in t["blocks"]:
        box = tuple(slice(o, o + c) for o, c in zip(b["offset"], b["count"]))
        nan = numpy.isnan(index[t["name"]][box])
        assert nan.all() if b["file"] == gone else not nan.any()
        holes += b["file"] == gone
assert holes > 0
PYTHON
say $? "h5py: a missing shard shows as NaN in index.h5"
[ $status = 0 ] || sed 's/^/# /' "$TEST_TMP/out"

# ---- where a checkpoint comes from -----------------------------------------------------------------------
cd "$OLDPWD" || exit 1
train() { # STEPS KEY...
    local steps=$1
    shift
    expect 0 '' "train $steps steps $*" mpirun -n 2 "$STRATA" train $tiny "run:run_dir=$TEST_TMP/run" \
        "checkpoint:save=$TEST_TMP/run/ckpt" "data:data_cache_path=$TEST_TMP/run" data:num_workers=0 run:threads_per_rank=1 \
        training:global_batch_size=4 training:micro_batch_size=2 vision:num_layers=2 language:num_layers=1 \
        optimizer:lr_decay_iters=20 "training:train_iters=$steps" "$@"
}
speeds() { # FROM STEP CHECKPOINT
    $python - "$1" "$2" "$3" "$TEST_TMP/run/metrics.csv" $tiny "$(sed -n 's/^tokenizer_model *= *//p' $tiny)" >"$TEST_TMP/out" 2>&1 <<'PYTHON'
import csv, glob, hashlib, os, sys
import h5py
first, last, folder, metrics, job, model = sys.argv[1:]
with h5py.File(sorted(glob.glob(folder + "/*shard-00000*.h5"))[0]) as f:
    p = f["provenance"]
    rows = {int(r["iteration"]): float(r["tokens_per_s"]) for r in csv.DictReader(open(metrics))}
    speed = p["tokens_per_s"]
    steps = list(speed.dims[0]["step"][:])
    assert steps == list(range(int(first), int(last) + 1)), steps
    assert [rows[s] for s in steps] == list(speed[:]), list(speed[:])
    assert speed.attrs["units"] == b"1/s" and speed.attrs["description"]
    def digest(path):
        return hashlib.sha256(open(path, "rb").read()).hexdigest().encode()
    assert p.attrs["job_file_sha256"] == digest(job)
    assert p.attrs["tokenizer_model_sha256"] == digest(os.path.join(os.path.dirname(job), model))
    assert p.attrs["data_sha256"] == f["training/data"].attrs["sha256"] and len(p.attrs["data_sha256"]) == 64
    assert p.attrs["valid_data_sha256"] == b""
PYTHON
    say $? "h5py: speed of steps $1 to $2, digests of what was read"
    [ $status = 0 ] || sed 's/^/# /' "$TEST_TMP/out"
}
train 3
speeds 1 3 "$TEST_TMP/run/ckpt/iter_0000003"
train 5
speeds 4 5 "$TEST_TMP/run/ckpt/iter_0000005"
expect 0 'verified \(strict\)' "verify --strict" "$STRATA" checkpoint verify --strict "$TEST_TMP/run/ckpt/iter_0000005"
expect 0 '' "reshard" "$STRATA" checkpoint reshard "$TEST_TMP/run/ckpt" "$TEST_TMP/anew" --tp 1 --pp 1 --dp 1
speeds 4 5 "$TEST_TMP/anew/iter_0000005"
train 6 checkpoint:reproducible=true
yes "reproducible files tell nothing of it" $python -c 'import h5py, sys; assert "provenance" not in h5py.File(sys.argv[1])' \
    "$TEST_TMP/run/ckpt/iter_0000006/iter_0000006-shard-00000-of-00002.h5"
exit $status
