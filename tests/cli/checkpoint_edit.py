"""Edits one shard of a checkpoint and repairs every checksum, so that only what the edit means is
wrong: checkpoint_edit.py FOLDER WHAT. Says "SKIP" and ends with 0 if h5py is missing."""
import json
import os
import sys

try:
    import h5py
    import numpy
except ImportError:
    print("SKIP")
    sys.exit(0)

TABLE = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
    TABLE.append(n)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def text(f, path, name, value):
    """The attribute again with other text, of fixed length as before."""
    f[path].attrs.create(name, value.encode(), dtype=h5py.string_dtype("utf-8", len(value) + 1))


def nudge(f, path):
    """One element (the one at [1, 2]) to its neighbour."""
    v = f[path][:]
    v[1, 2] = numpy.nextafter(v[1, 2], numpy.float32(9))
    f[path][:] = v
    text(f, path, "crc32c", "%08x" % crc32c(v.tobytes()))


def remap(f, path):
    d = f[path]
    layout = h5py.VirtualLayout(shape=d.shape, dtype=d.dtype)
    source = d.virtual_sources()[0]
    layout[...] = h5py.VirtualSource(source.file_name, source.dset_name + "x", shape=d.shape)
    del f[path]
    f.create_virtual_dataset(path, layout, fillvalue=numpy.nan)


weight = "model/mm_projector/linear_1/weight"
EDITS = {
    "units": lambda f: text(f, weight, "units", "m"),
    "hf_name": lambda f: text(f, weight, "hf_name", ""),
    "label": lambda f: setattr(f[weight].dims[0], "label", "sideways"),
    "cut": lambda f: f[weight].attrs.modify("tp_axis", 3),
    "crc": lambda f: text(f, weight, "crc32c", "01234567"),
    "extra": lambda f: f.create_dataset("model/mm_projector/surplus", data=[1.0]),
    "capital": lambda f: f.create_group("training/Notes"),
    "link": lambda f: f.__setitem__("training/away", h5py.SoftLink("/header")),
    "author": lambda f: f.attrs.__delitem__("author"),
    "code": lambda f: f["code"].attrs.__delitem__("git_sha"),
    "origin": lambda f: f["provenance"].attrs.__delitem__("command_line"),
    "origin_step": lambda f: f.__delitem__("provenance/step"),
    "origin_scale": lambda f: f["provenance/tokens_per_s"].dims[0].detach_scale(f["provenance/step"]),
    "origin_missing": lambda f: f.__delitem__("provenance"),
    "origin_intruding": lambda f: f.create_group("provenance"),
    "alike": lambda f: text(f, "tokenizer", "template", "other"),
    "nudge": lambda f: nudge(f, weight),
    "remap": lambda f: remap(f, weight),
}

folder, what = sys.argv[1:]
os.chdir(folder)
manifest = json.load(open("manifest.json"))
if what == "major":
    manifest["format_version"] = "3.0.0"
    name = None
elif what == "remap":
    name = "index.h5"
elif what == "alike":
    name = [f["name"] for f in manifest["files"] if f["role"] == "shard"][-1]
elif what.startswith("origin"):
    name = manifest["files"][0]["name"]
else:
    tensor = [t for t in manifest["tensors"] if t["name"] == weight][0]
    assert len(tensor["blocks"]) == 1, "the weight must be whole"
    name = tensor["blocks"][0]["file"]
if name:
    with h5py.File(name, "r+", libver=("v110", "v110")) as f:
        EDITS[what](f)
    data = open(name, "rb").read()
    for f in manifest["files"]:
        if f["name"] == name:
            f["bytes"] = len(data)
            f["crc32c"] = "%08x" % crc32c(data)
    for t in manifest["tensors"]:
        for b in t["blocks"]:
            if b["file"] == name and t["name"] == weight:
                part = data[b["file_offset"]:b["file_offset"] + b["bytes"]]
                b["crc32c"] = ["%08x" % crc32c(part)]
manifest["crc32c"] = "00000000"
body = json.dumps(manifest, indent=1)
own = "%08x" % crc32c(body.encode())
open("manifest.json", "w").write(body.replace('"crc32c": "00000000"', '"crc32c": "%s"' % own, 1))
