#!/usr/bin/env python3
"""Makes the first inputs of the harnesses from the golden files: make_seeds.py FOLDER [NAME ...].

Each harness gets FOLDER/NAME, and FOLDER/NAME.dict from its dictionary. Nothing of it is stored: what a
harness reads changes with the parsers, and the golden files are there anyway. Only the standard library
is used.
"""
import glob
import json
import os
import re
import struct
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
GOLDEN = os.path.join(ROOT, "tests", "golden")


def read(*path):
    with open(os.path.join(ROOT, *path), "rb") as f:
        return f.read()


def paths(*pattern):
    return [os.path.relpath(p, ROOT) for p in sorted(glob.glob(os.path.join(ROOT, *pattern)))]


def header(path):
    """Header of a .safetensors file, and the bytes behind it."""
    data = read(path)
    n = struct.unpack("<Q", data[:8])[0]
    return data[8 : 8 + n], len(data) - 8 - n


def parts(files):
    return b"\n".join(b"@%s %d\n%s" % (name.encode(), size, data) for name, data, size in files)


def image():
    for path in paths("tests/golden/images/*") + paths("tests/golden/odd/*"):
        data = read(path)
        for kind in range(6) if "/images/" in path else (1, 5):
            if len(data) <= 20000:
                yield bytes([kind]) + data


def job():
    for path in paths("input/*.ini") + paths("tests/bench/*.ini"):
        text = read(path)
        yield text
        for section in re.split(rb"\n(?=\[)", text):
            yield section


def first_records(n):
    return json.dumps(json.loads(read("input/tiny/train.json"))[:n], indent=1).encode()


def conversations(n):
    lines = read("tests/golden/conversations/conversations.jsonl").splitlines()
    return [json.loads(line) for line in lines[:: max(1, len(lines) // n)]]


TEMPLATES = ["plain", "v1", "mistral_instruct", "llava_llama_2", "chatml_direct"]


def llava_json():
    for kind in range(40):
        yield bytes([kind]) + first_records(2)
    for c in conversations(60):
        turns = [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(c[2])]
        record = {"id": 7, "image": "a.png", "conversations": turns}
        for image in ("a.png", ["a.png", "b.png"], None):
            record["image"] = image
            if image is None:
                del record["image"]
            yield bytes([TEMPLATES.index(c[0])]) + json.dumps([record], ensure_ascii=False).encode()


def template():
    for c in conversations(120):
        kind = TEMPLATES.index(c[0]) + 5 * (c[1] % 3)
        yield bytes([kind]) + b"\0".join(t.encode() for t in c[2])


def questions():
    yield b'{"question_id": 1, "image": "a.png", "text": "What is this?"}\n'
    yield b'{"question_id": "b", "image": ["a.png", "b.png"], "prompt": "Two?"}\n{"text": "No image."}\n'
    yield b'{"question_id": 3, "image": null, "text": "<image> </s>", "category": "x"}\n'


def safetensors():
    for path in paths("tests/golden/hf/names/*/*.safetensors"):
        data, size = header(path)
        if len(data) <= 8000:
            yield parts([("model.safetensors", data, size)])
    for index in paths("tests/golden/hf/names/*/*.index.json"):
        folder = os.path.dirname(index)
        name = sorted(set(json.loads(read(index))["weight_map"].values()))
        files = [(os.path.basename(index), read(index), 0)]
        yield parts(files + [(n, *header(os.path.join(folder, n))) for n in name])
    small = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
             "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
             "__metadata__": {"format": "pt"}}
    text = json.dumps(small).encode()
    yield struct.pack("<Q", len(text)) + text + bytes(range(32))
    yield parts([("model.safetensors", text, 32)])
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    one = {"x": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}
    two = {"y": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]}}
    index = {"metadata": {"total_size": 12}, "weight_map": {"x": names[0], "y": names[1]}}
    yield parts([("model.safetensors.index.json", json.dumps(index).encode(), 0),
                 (names[0], json.dumps(one).encode(), 4), (names[1], json.dumps(two).encode(), 8)])


def hf_config():
    side = {"image": 28, "height": 28, "width": 28}
    beside = [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
                                      "size": {"shortest_edge": 28}, "crop_size": side,
                                      "do_center_crop": True, "rescale_factor": 0.00392156862745098}),
        ("processor_config.json", {"patch_size": 14, "image_token": "<image>"}),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True,
                                   "chat_template": "{{ USER: }}", "bos_token": {"content": "<s>"}}),
        ("generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": None}),
    ]
    rope = [{"rope_type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 4},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192},
            {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0, "beta_fast": 32.0}]
    for i, path in enumerate(paths("tests/golden/hf/*/*/*.json")):
        if path.endswith(".index.json"):
            continue
        name = os.path.basename(path)
        yield parts([(name, read(path), 0)])
        config = json.loads(read(path))
        config.get("text_config", config)["rope_scaling"] = rope[i % len(rope)]
        files = [(n, json.dumps(v).encode(), 0) for n, v in beside]
        yield parts([(name, json.dumps(config).encode(), 0), files[i % len(files)]])
        yield parts([(name, read(path), 0)] + files)
    for path in ("tests/golden/hf/names/clip/model.safetensors", "tests/golden/hf/names/projector/mm_projector.safetensors"):
        data, size = header(path)
        yield parts([("config.json", b'{"model_type": "mistral"}', 0), ("model.safetensors", data, size)])


def manifest():
    for path in paths("tests/golden/checkpoint/*/*/manifest.json"):
        m = json.loads(read(path))
        yield read(path)
        for n in (1, 4):
            m["tensors"] = m["tensors"][:n]
            yield json.dumps(m).encode()


def changes():
    """Of a stored file: none, and one at each of some places, of each width."""
    for which in range(0, 48, 5):
        yield bytes([which])
        for at in list(range(0, 512, 16)) + list(range(512, 36000, 1000)):
            yield bytes([which, (0, 130, 200)[at // 8 % 3]]) + struct.pack("<H", at) + bytes([at // 8 % 9])


def tokenizer():
    yield read("input/tiny/tokenizer.model")
    data = read("input/tiny/tokenizer.model")
    yield data[: len(data) // 2]


def keys_of_job_files():
    for path in ("include/config_keys.def", "include/config_keys_io.def"):
        for line in read(path).decode().splitlines():
            row = re.match(r'[A-Z]+(_AUTO)?(_AS)?\((\w+), (\w+)(, "(\w+)")?', line)
            if row and "SECTION" not in line and "END(" not in line:
                yield row.group(4)


def dictionary(name):
    name = {"used_ini": "job"}.get(name, name)
    text = read("tests", "fuzz", name + ".dict").decode()
    if name == "hf_config":
        words = set(re.findall(r"\b[a-z][a-z0-9]*(?:_[a-z0-9]+)+\b", read("src/train/hf_known.c").decode()))
        text += "".join('"\\"%s\\": "\n' % key for key in sorted(words))
    if name == "job":
        text += "".join('"%s = "\n' % key for key in keys_of_job_files())
    return text


HARNESSES = {"image": image, "job": job, "llava_json": llava_json, "template": template,
             "questions": questions, "safetensors": safetensors, "hf_config": hf_config,
             "manifest": manifest, "shard": changes, "tf_weights": changes, "tokenizer": tokenizer,
             "used_ini": job}


def main():
    folder = sys.argv[1]
    for name in sys.argv[2:] or sorted(HARNESSES):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
        with open(os.path.join(folder, name + ".dict"), "w") as f:
            f.write(dictionary(name))
        for i, data in enumerate(HARNESSES[name]()):
            with open(os.path.join(folder, name, "seed-%04d" % i), "wb") as f:
                f.write(data)


main()
