#!/usr/bin/env python3
"""Writes names/clip_tf: the CLIP of names/clip as TensorFlow's tf_model.h5 lays it out.

    python3 make_tf.py            needs h5py and numpy
"""
import json
import os
import re
import shutil
import struct

import h5py
import numpy

HERE = os.path.dirname(os.path.abspath(__file__))


def read(path):
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    out = {}
    for name, e in json.loads(raw[8:8 + n]).items():
        if name != "__metadata__" and e["dtype"] == "F32":
            at, end = (8 + n + o for o in e["data_offsets"])
            out[name] = numpy.frombuffer(raw[at:end], "<f4").reshape(e["shape"])
    return out


def place(name, v):
    """(dataset, values) of a weight."""
    path = re.sub(r"layers\.(\d+)", r"layers_._\1", name)
    stem, _, leaf = path.rpartition(".")
    if leaf == "class_embedding" or leaf == "logit_scale":
        return path.replace(".", "/").replace("layers_/_", "layers_._") + ":0", v
    if stem.endswith("position_embedding") or stem.endswith("token_embedding"):
        leaf = "embeddings"
    elif "norm" in stem or "layrnorm" in stem:
        leaf = {"weight": "gamma", "bias": "beta"}[leaf]
    elif leaf == "weight":
        leaf, v = "kernel", v.T if v.ndim == 2 else v.transpose(2, 3, 1, 0)
    return stem.replace(".", "/").replace("layers_/_", "layers_._") + f"/{leaf}:0", v


os.makedirs(os.path.join(HERE, "names", "clip_tf"), exist_ok=True)
with h5py.File(os.path.join(HERE, "names", "clip_tf", "tf_model.h5"), "w", track_order=False) as f:
    f.attrs["backend"] = "tensorflow"
    f.attrs["layer_names"] = [b"clip"]
    for name, values in read(os.path.join(HERE, "names", "clip", "model.safetensors")).items():
        dataset, values = place(name, values)
        f.create_dataset("clip/clip/" + dataset, data=numpy.ascontiguousarray(values), track_times=False)
shutil.copy(os.path.join(HERE, "names", "clip", "config.json"),
            os.path.join(HERE, "names", "clip_tf", "config.json"))
