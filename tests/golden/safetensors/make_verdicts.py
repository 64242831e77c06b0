#!/usr/bin/env python3
"""Writes verdicts.txt: small safetensors files, whole and damaged, and what the reference reader says.

    python3 make_verdicts.py      needs the package safetensors (versions.txt)

A line is a verdict, a tab, and the bytes: printable ASCII as it is, all else and the backslash as
\\xNN. The verdict is `accept` or `refuse`, as the reference package does, or `stricter`: the
reference accepts what strata refuses on purpose (the rules are below). Nothing is accepted that the
reference refuses.
"""
import json
import os
import random
import struct

import safetensors

HERE = os.path.dirname(os.path.abspath(__file__))
SIZE = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
        "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}
rng = random.Random(20)
cases = []


def pack(header, data, pad=True):
    text = header if isinstance(header, bytes) else header.encode()
    if pad:
        text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def some_file():
    """Entries in the order of their data, as a list of [name, entry]."""
    entries, at = [], 0
    for i in range(rng.randrange(0, 4)):
        dtype = rng.choice(list(SIZE))
        shape = [rng.choice([0, 1, 1, 2, 3, 4]) for _ in range(rng.randrange(0, 4))]
        n = SIZE[dtype]
        for d in shape:
            n *= d
        name = rng.choice(["w", "a.b", "x\u00e9", "q\"", "layer"]) + str(i)
        entries.append([name, {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n]}])
        at += n
    data = bytes(rng.randrange(256) for _ in range(at))
    if rng.random() < 0.4:
        entries.insert(0, ["__metadata__", {"format": "pt"}])
    if rng.random() < 0.3:
        rng.shuffle(entries)
    return entries, data


def text_of(entries):
    return "{" + ",".join(json.dumps(k) + ":" + json.dumps(v, separators=(",", ":"))
                          for k, v in entries) + "}"


def add(raw):
    if len(raw) <= 420:
        cases.append(raw)


NUMBERS = [-1, 0, 1, 2, 3, 7, 8, 1 << 31, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63,
           (1 << 64) - 1, 1 << 64, 1.0, 0.5, 1e3, "0", None, True, [], {}]


def damaged_entry(entries):
    key, entry = rng.choice(entries)
    what = rng.randrange(12)
    if key == "__metadata__":
        entry["more"] = rng.choice(["text", 1, None, {"a": "b"}, ["x"], "\u0000"])
    elif what == 0:
        entry["dtype"] = rng.choice(list(SIZE) + ["f32", "F31", "", 7, None, "F8_E8M0", "F4", "C64"])
    elif what <= 3:
        shape = entry["shape"]
        if shape and rng.random() < 0.7:
            shape[rng.randrange(len(shape))] = rng.choice(NUMBERS)
        else:
            entry["shape"] = rng.choice([None, 3, "2", [], [1] * 9, [1, 1], [1 << 40, 1 << 40, 0]])
    elif what <= 7:
        entry["data_offsets"][rng.randrange(2)] += rng.choice([-8, -4, -2, -1, 1, 2, 4, 8])
    elif what == 8:
        entry["data_offsets"] = rng.choice([[], [0], [0, 0, 0], None, 3, "0,4", [4, 0],
                                            [rng.choice(NUMBERS), rng.choice(NUMBERS)]])
    elif what == 9:
        del entry[rng.choice(list(entry))]
    elif what == 10:
        entry["extra"] = rng.choice([1, "x", None])
    else:
        entries.append([key, dict(entry)])


def damaged_bytes(raw):
    raw = bytearray(raw)
    what = rng.randrange(8)
    if what <= 2:
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif what == 3:
        del raw[rng.randrange(len(raw)):]
    elif what == 4:
        raw += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
    elif what == 5:
        n = struct.unpack("<Q", raw[:8])[0] + rng.choice([-9, -8, -1, 1, 8, 1 << 32, 100000000])
        raw[:8] = struct.pack("<Q", n % (1 << 64))
    elif what == 6:
        at = 8 + rng.randrange(max(1, len(raw) - 8))
        raw[at:at] = rng.choice([b" ", b"\n", b"\t", b",", b"}", b"\x00", b"\xff", b'"', b"0"])
    else:
        raw = bytearray(pack(rng.choice(["", "[]", "{", "{}", " {}", "{}x", "null", '"a"', "{}  ", "{} \n",
                                         "\ufeff{}", '{"__metadata__":null}', '{"__metadata__":{}}',
                                         '{"__metadata__":[]}', '{"__metadata__":{"a":1}}',
                                         '{"a":{}}', '{"a":null}', '{"a":1}', "{'a':1}"]),
                             b"", pad=rng.random() < 0.5))
    return bytes(raw)


for _ in range(60):
    add(pack(text_of((f := some_file())[0]), f[1], pad=rng.random() < 0.7))
while len(cases) < 360:
    entries, data = some_file()
    if not entries:
        continue
    damaged_entry(entries)
    add(pack(text_of(entries), data, pad=rng.random() < 0.5))
while len(cases) < 640:
    entries, data = some_file()
    add(damaged_bytes(pack(text_of(entries), data)))


def reference_accepts(raw):
    try:
        safetensors.deserialize(raw)
        return True
    except safetensors.SafetensorError:
        return False


def stricter(raw):
    """Why strata refuses what the reference accepts, or None."""
    n = struct.unpack("<Q", raw[:8])[0]
    text = raw[8:8 + n]
    twice = []

    def pairs(p):
        keys = [k for k, _ in p]
        if len(set(keys)) < len(keys):
            twice.append(True)
        return dict(p)

    try:
        root = json.loads(text.decode(), object_pairs_hook=pairs)
    except ValueError:
        return "no JSON"
    if twice:
        return "a key twice"
    if not text.startswith(b"{"):
        return "blanks before the header"
    if "\\u0000" in text.decode():
        return "a zero byte in a text"
    for k, v in root.items():
        if k == "__metadata__":
            continue
        if v.get("dtype") not in SIZE:
            return "an element type that no weights have"
        if len(v["shape"]) > 8:
            return "more than 8 dimensions"
        if any(d >= 1 << 63 for d in v["shape"]):
            return "a dimension beyond 63 bits"
    return None


def escaped(raw):
    return "".join(chr(b) if 32 <= b < 127 and b != 92 else f"\\x{b:02x}" for b in raw)


count = {}
with open(os.path.join(HERE, "verdicts.txt"), "w") as f:
    for raw in dict.fromkeys(cases):
        verdict = "accept" if reference_accepts(raw) else "refuse"
        if verdict == "accept" and stricter(raw):
            verdict = "stricter"
        count[verdict] = count.get(verdict, 0) + 1
        f.write(f"{verdict}\t{escaped(raw)}\n")
with open(os.path.join(HERE, "versions.txt"), "w") as f:
    f.write(f"safetensors {safetensors.__version__}\n")
print(count)
