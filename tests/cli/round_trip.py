"""Driven by round_trip.sh: every change of tests/golden/hf/round_trip/verdicts.json through the program."""
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys

strata, tmp = sys.argv[1], sys.argv[2]
GOLDEN = "tests/golden/hf/round_trip"
TOLERANCE = 3e-6  # of fp32 sums against fp64; the loss is printed with seven digits
EVAL = ["data:data_path=" + os.path.abspath(GOLDEN + "/data.json"), "data:image_folder=" + os.path.abspath(GOLDEN),
        "data:valid_data_path=" + os.path.abspath(GOLDEN + "/data.json"), "data:conversation_template=v1",
        "training:global_batch_size=4", "eval:eval_iters=1",
        "run:threads_per_rank=1", "data:num_workers=1"]
# transformers would make the biases that the tensors lack; strata takes the tensors' word, and what it
# exports says so, which transformers loads whole.
TAKEN = [("unbiased", "multimodal_projector_bias", "absent")]
# What is the model of a job file, in the words that import writes.
# An export says in full what a sparse source leaves to defaults; it compares these keys by itself.
DEFAULTS = ("decoder_seq_length", "attention_factor", "beta_", "mscale", "correction_range_round_to_int")
MODEL = re.compile(r"^\[(vision|projector|language)\]$")


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240)
    return done.returncode, done.stdout + done.stderr


def folder_of(v, path):
    os.makedirs(path)
    config = json.load(open(f"{GOLDEN}/{v['base']}/config.json"))
    at = config[v["where"]] if v["where"] else config
    if v["key"] and v["value"] == "absent":
        at.pop(v["key"], None)
    elif v["key"]:
        at[v["key"]] = v["value"]
    json.dump(config, open(path + "/config.json", "w"))
    shutil.copy(f"{GOLDEN}/{v['base']}/model.safetensors", path)
    shutil.copy("input/tiny/tokenizer.model", path)
    return config


def tensors_of(path):
    data = open(path + "/model.safetensors", "rb").read()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + n])
    return {k: (t["shape"], data[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]])
            for k, t in header.items() if k != "__metadata__"}


def model_of(job):
    kept, keep = [], False
    for line in open(job):
        line = line.strip()
        if line.startswith("["):
            keep = bool(MODEL.match(line))
        if keep and line and not line.startswith(DEFAULTS):
            kept.append(line)
    return kept


def fields_lost(source, out, told, path=""):
    """Fields of the source that the export has not, or with another value that it did not name."""
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            yield from fields_lost(value, out[key], told, f"{path}{key}.")
        elif key not in out:
            yield f"{path}{key}"
        elif out[key] != value and key not in ("torch_dtype", "dtype") and key not in told:
            yield f"{path}{key} = {value}, now {out[key]}"


def judge(number, v):
    """None, or what is wrong."""
    path = f"{tmp}/{number}"
    source = folder_of(v, path)
    code, said = run(strata, "import", path, path + "_in")
    if code == 0:
        code, exported = run(strata, "export", path + "_in", path + "_out", "--dtype", "fp32")
        said += exported
    if code != 0:
        word = v["key"] if "loss" in v else ""
        named = code in (64, 65) and re.search(rf"error: .*{re.escape(word)}", said)
        lines = [l for l in said.splitlines() if "error" in l]
        if v["key"] == "":
            return "the base itself is refused: " + " ".join(lines)
        return None if named else f"refused with {code}, not by name: {lines}"
    if "loss" not in v and (v["base"], v["key"], v["value"]) in TAKEN:
        return None
    if "loss" not in v:
        return f"taken, and transformers does not: {v}"
    rows = 16384 if v["base"] == "next" else 192
    code, said = run(strata, "eval", path + "_in/job.ini", path + "_in", f"run:run_dir={path}_run",
                     f"language:decoder_seq_length={rows}", *EVAL)
    loss = re.search(r"lm loss value: ([0-9.E+-]+)", said)
    if code != 0 or loss is None:
        return f"eval ended with {code}: {said[-300:]}"
    if not abs(float(loss[1]) - v["loss"]) <= TOLERANCE * v["loss"]:
        return f"loss {loss[1]}, transformers {v['loss']}"
    if tensors_of(path) != tensors_of(path + "_out"):
        return "other tensors"
    code, said = run(strata, "import", path + "_out", "--dry-run", "--job", path + "_back.ini")
    if code != 0:
        return f"the export is refused by import: {said[-300:]}"
    if model_of(path + "_in/job.ini") != model_of(path + "_back.ini"):
        return f"another model: {model_of(path + '_in/job.ini')} {model_of(path + '_back.ini')}"
    lost = list(fields_lost(source, json.load(open(path + "_out/config.json")), exported))
    return f"lost without a word: {lost}" if lost else None


def counted(number, v):
    wrong = judge(number, v)
    for suffix in ("", "_in", "_out", "_run"):
        shutil.rmtree(f"{tmp}/{number}{suffix}", ignore_errors=True)
    return wrong


verdicts = json.load(open(GOLDEN + "/verdicts.json"))
bad = 0
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for v, wrong in zip(verdicts, pool.map(counted, range(len(verdicts)), verdicts)):
        name = f"{v['base']} {v['where'] or 'top'}.{v['key'] or 'as it is'} = {json.dumps(v['value'])}"
        print(f"ok - {name}" if wrong is None else f"not ok - {name}: {wrong}", flush=True)
        bad += wrong is not None
print(f"{'ok' if len(verdicts) >= 40 else 'not ok'} - {len(verdicts)} changes, at least 40")
sys.exit(bad != 0)
