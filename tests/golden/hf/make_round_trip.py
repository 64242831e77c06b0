#!/usr/bin/env python3
"""Makes round_trip/ of this folder, and repeats the whole round trip. No part of `make check`.

    python3 make_round_trip.py                   needs torch, transformers, safetensors, sentencepiece,
                                                 pillow (CPU is enough)
    python3 make_round_trip.py repeat STRATA     imports and exports every change with the program
                                                 STRATA and loads what it wrote with transformers: model,
                                                 AutoProcessor, loss

BASE/          tiny LLaVAs with random weights: config.json and model.safetensors
data.json      four conversations, with the pictures beside it
verdicts.json  for each change of one key of a base's config.json the loss that transformers takes over
               the targets of data.json, in fp64; or why it refuses; or which weights it lacks. "absent"
               takes the key out.

The tokenizer is input/tiny/tokenizer.model. The versions that made the present files stand in
round_trip_versions.txt.
"""
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings

import sentencepiece
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..", "..")
OUT = os.path.join(HERE, "round_trip")
TOKENIZER = os.path.join(ROOT, "input", "tiny", "tokenizer.model")
PIECES = sentencepiece.SentencePieceProcessor(model_file=TOKENIZER)
IMAGE = PIECES.get_piece_size()  # id of <image>, behind the pieces
SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the user's questions.")

TEXT = dict(model_type="llama", hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=6, rms_norm_eps=1e-5,
            rope_theta=1000.0, max_position_embeddings=512, vocab_size=IMAGE + 2)
VISION = dict(model_type="clip_vision_model", hidden_size=12, intermediate_size=16, num_hidden_layers=3,
              num_attention_heads=3, image_size=14, patch_size=7)
TOP = dict(model_type="llava", image_token_index=IMAGE, pad_token_id=IMAGE + 1, vision_feature_layer=-2)
PINPOINTS = [[14, 28], [28, 14], [28, 28]]
BASES = {
    "llama": dict(TOP, text_config=TEXT, vision_config=VISION),
    "biases": dict(TOP, text_config=dict(TEXT, attention_bias=True, mlp_bias=True), vision_config=VISION),
    "unbiased": dict(TOP, multimodal_projector_bias=False, text_config=TEXT, vision_config=VISION),
    "mistral": dict(TOP, text_config=dict(TEXT, model_type="mistral", sliding_window=9), vision_config=VISION),
    "next": dict(TOP, model_type="llava_next", image_grid_pinpoints=PINPOINTS, vision_config=VISION,
                 text_config=dict(TEXT, model_type="mistral", sliding_window=None)),
}
T, V, P = "text_config", "vision_config", ""
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
CHANGES = [
    ("llama", P, "", None),
    ("llama", T, "num_attention_heads", 2), ("llama", T, "num_hidden_layers", 1),
    ("llama", T, "num_hidden_layers", 3), ("llama", T, "hidden_size", 20),
    ("llama", T, "intermediate_size", 28), ("llama", T, "vocab_size", 500),
    ("llama", T, "num_key_value_heads", None), ("llama", T, "num_key_value_heads", "absent"),
    ("llama", T, "head_dim", "absent"), ("llama", T, "head_dim", 8),
    ("llama", T, "hidden_act", "silu"), ("llama", T, "hidden_act", "gelu"),
    ("llama", T, "hidden_act", "relu"), ("llama", T, "rms_norm_eps", 0.01),
    ("llama", T, "rms_norm_eps", "absent"), ("llama", T, "rope_theta", 20.0),
    ("llama", T, "rope_theta", "absent"), ("llama", T, "max_position_embeddings", 40),
    ("llama", T, "max_position_embeddings", "absent"), ("llama", T, "initializer_range", 0.5),
    ("llama", T, "use_cache", False), ("llama", T, "pretraining_tp", 2),
    ("llama", T, "bos_token_id", 5), ("llama", T, "eos_token_id", [2, 7]),
    ("llama", T, "pad_token_id", 0), ("llama", T, "tie_word_embeddings", True),
    ("llama", T, "attention_bias", True), ("llama", T, "mlp_bias", True),
    ("llama", T, "attention_dropout", 0.25), ("llama", T, "partial_rotary_factor", 0.5),
    ("llama", T, "model_type", "mistral"), ("llama", T, "model_type", "absent"),
    ("llama", T, "model_type", "qwen2"), ("llama", T, "model_type", "gemma"),
    ("llama", T, "sliding_window", 9), ("llama", T, "made_up_by_nobody", 1),
    ("llama", T, "rope_scaling", None), ("llama", T, "rope_scaling", dict(type="linear", factor=2.0)),
    ("llama", T, "rope_scaling", dict(rope_type="linear", factor=4)),
    ("llama", T, "rope_scaling", dict(rope_type="dynamic", factor=2.0)),
    ("llama", T, "rope_scaling", LLAMA3), ("llama", T, "rope_scaling", dict(rope_type="default", rope_theta=9.0)),
    ("llama", T, "rope_scaling", dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
    ("llama", T, "rope_parameters", dict(rope_type="default", rope_theta=30.0)),
    ("llama", T, "rope_parameters", dict(rope_type="linear", factor=3.0, rope_theta=30.0)),
    ("unbiased", P, "", None), ("unbiased", P, "multimodal_projector_bias", "absent"),
    ("unbiased", P, "projector_hidden_act", "quick_gelu"),
    ("biases", P, "", None), ("biases", T, "attention_bias", False), ("biases", T, "mlp_bias", False),
    ("biases", T, "mlp_bias", "absent"), ("biases", T, "model_type", "mistral"),
    ("mistral", P, "", None), ("mistral", T, "sliding_window", None), ("mistral", T, "sliding_window", 3),
    ("mistral", T, "sliding_window", "absent"), ("mistral", T, "num_key_value_heads", "absent"),
    ("mistral", T, "model_type", "llama"), ("mistral", T, "hidden_size", "absent"),
    ("llama", V, "hidden_act", "gelu"), ("llama", V, "layer_norm_eps", 0.01),
    ("llama", V, "num_attention_heads", 2), ("llama", V, "num_hidden_layers", 2),
    ("llama", V, "image_size", 28), ("llama", V, "patch_size", 14), ("llama", V, "num_channels", 1),
    ("llama", V, "attention_dropout", 0.5), ("llama", V, "projection_dim", 99),
    ("llama", V, "initializer_range", 0.5), ("llama", V, "model_type", "siglip_vision_model"),
    ("llama", V, "model_type", "absent"), ("llama", V, "vocab_size", 7),
    ("llama", P, "vision_feature_layer", -1), ("llama", P, "vision_feature_layer", "absent"),
    ("llama", P, "vision_feature_layer", -3), ("llama", P, "vision_feature_layer", [-2, -1]),
    ("llama", P, "vision_feature_select_strategy", "full"),
    ("llama", P, "projector_hidden_act", "silu"), ("llama", P, "projector_hidden_act", "quick_gelu"),
    ("llama", P, "projector_hidden_act", "relu"), ("llama", P, "multimodal_projector_bias", False),
    ("llama", P, "image_token_index", 17), ("llama", P, "image_seq_length", 99),
    ("llama", P, "ignore_index", -1), ("llama", P, "tie_word_embeddings", True),
    ("llama", P, "torch_dtype", "bfloat16"), ("llama", P, "dtype", "float16"),
    ("llama", P, "transformers_version", "4.37.2"), ("llama", P, "pad_token_id", "absent"),
    ("llama", P, "made_up_by_nobody", {"a": [1, 2.5, None]}), ("llama", P, "model_type", "video_llava"),
    ("next", P, "", None), ("next", P, "image_grid_pinpoints", [[28, 14]]),
    ("next", P, "use_image_newline_parameter", False), ("next", P, "vision_feature_layer", -1),
    ("next", P, "image_grid_pinpoints", "absent"),
]


def changed(base, where, key, value):
    config = json.loads(json.dumps(BASES[base]))
    at = config[where] if where else config
    if key and value == "absent":
        at.pop(key, None)
    elif key:
        at[key] = value
    return config


def write_json(path, what):
    with open(path, "w") as f:
        json.dump(what, f, indent=1)
        f.write("\n")


# ---- models --------------------------------------------------------------------------------------------
def scheme_a(name):
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        rest = name.removeprefix("language_model.").removeprefix("model.")
        return "language_model." + ("" if rest.startswith("lm_head") else "model.") + rest
    if name.startswith("lm_head"):
        return "language_model." + name
    if name.startswith("vision_tower."):
        return "vision_tower.vision_model." + name.removeprefix("vision_tower.").removeprefix("vision_model.")
    return name


def make_base(number, name):
    folder = os.path.join(OUT, name)
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, "config.json"), BASES[name])
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    g = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for n, p in model.named_parameters():
            r = torch.randn(p.shape, generator=g)
            scale = 1.5 / math.sqrt(p[0].numel()) if p.ndim > 1 and "embed" not in n else 0.5
            norm = n.endswith("weight") and p.ndim == 1
            p.copy_((0.2 * r + 1 if norm else scale * r).float())
    weights = {scheme_a(k): v.detach().clone() for k, v in model.state_dict().items()}
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


# ---- data ------------------------------------------------------------------------------------------------
def make_data():
    for name, (w, h) in {"square": (14, 14), "wide": (56, 28)}.items():
        image = Image.new("RGB", (w, h))
        image.putdata([((x * 37 + y * 11) % 256, (x * 5 + y * 91) % 256, (x * y * 13) % 256)
                       for y in range(h) for x in range(w)])
        image.save(os.path.join(OUT, name + ".png"))
    turns = [("square.png", "<image>\nWhat is it?", "A red square."), ("wide.png", "<image>\nDescribe it.", "It is wide."),
             (None, "Name a number.", "Seven, or eight."), ("wide.png", "Which\n<image>", "The second one")]
    write_json(os.path.join(OUT, "data.json"),
               [{"id": str(i), **({"image": image} if image else {}),
                 "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
                for i, (image, q, a) in enumerate(turns)])


def prompts():
    for row in json.load(open(os.path.join(OUT, "data.json"))):
        q, a = (t["value"] for t in row["conversations"])
        if "<image>" in q:
            q = "<image>\n" + q.replace("<image>", "").strip()
        image = Image.open(os.path.join(OUT, row["image"])).convert("RGB") if "image" in row else None
        yield f"{SYSTEM} USER: {q} ASSISTANT:", f" {a}</s>", image


def piece_ids(text):
    """The rules of LLaVA's training: special pieces are cut out, each chunk has a prefix of its own."""
    ids = [PIECES.bos_id()]
    for chunk in re.split(r"(<image>|</s>)", text):
        if chunk == "<image>":
            ids.append(IMAGE)
        elif chunk == "</s>":
            ids.append(PIECES.eos_id())
        elif chunk:
            ids += PIECES.encode(chunk)
    return ids


def samples(processor):
    """ids, labels, image arguments; the ids are the processor's, and must be LLaVA's."""
    for prompt, answer, image in prompts():
        given = dict(images=image) if image is not None else {}
        text = (prompt + answer).replace("<image>", processor.image_token)
        batch = dict(processor(text=text, return_tensors="pt", **given))
        ids = [IMAGE if i == processor.image_token_id else i for i in batch.pop("input_ids")[0].tolist()]
        batch.pop("attention_mask")
        collapsed = [t for i, t in enumerate(ids) if t != IMAGE or i == 0 or ids[i - 1] != IMAGE]
        assert collapsed == piece_ids(prompt + answer), (ids, piece_ids(prompt + answer))
        n_answer = len(ids) - ids[::-1].index(PIECES.eos_id()) - len(shared(prompt, answer, ids))
        labels = [-100] * n_answer + ids[n_answer:]
        yield ids, labels, batch


def shared(prompt, answer, ids):
    """The ids of the answer: those that begin behind the prompt. No piece spans the blank between."""
    whole, head = piece_ids(prompt + answer), piece_ids(prompt)
    assert whole[:len(head)] == head
    return whole[len(head):]


def loss_of(folder, processor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64,
                                                                  output_loading_info=True)
    lacking = sorted(set(info["missing_keys"]) | {k if isinstance(k, str) else k[0] for k in info["mismatched_keys"]})
    extra = sorted(info["unexpected_keys"])
    if lacking or extra:
        return {"incomplete": lacking, "unexpected": extra}
    model.eval()
    config = model.config
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.patch_size = config.vision_config.patch_size
    if hasattr(config, "image_grid_pinpoints"):
        processor.image_processor.image_grid_pinpoints = config.image_grid_pinpoints
    total, n = 0.0, 0
    for ids, labels, images in samples(processor):
        images = {k: v.double() if v.is_floating_point() else v for k, v in images.items()}
        images.pop("mm_token_type_ids", None)
        images.pop("token_type_ids", None)
        ids = [config.image_token_id if i == IMAGE else i for i in ids]
        z = model(input_ids=torch.tensor([ids]), **images).logits[0]
        total += torch.nn.functional.cross_entropy(z[:-1].double(), torch.tensor(labels[1:]), ignore_index=-100,
                                                   reduction="sum").item()
        n += sum(l != -100 for l in labels[1:])
    return {"loss": total / n}


def added(text):
    return dict(content=text, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)


def processor_folder(tmp, next_):
    """What a folder needs for AutoProcessor, written by hand: not by the program that is judged."""
    path = os.path.join(tmp, "processor_next" if next_ else "processor")
    os.makedirs(path)
    shutil.copy(TOKENIZER, path)
    kind = "LlavaNext" if next_ else "Llava"
    write_json(os.path.join(path, "config.json"), BASES["next" if next_ else "llama"])
    write_json(os.path.join(path, "tokenizer_config.json"), {
        "tokenizer_class": "LlamaTokenizer", "legacy": True, "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "add_bos_token": True, "extra_special_tokens": {"image_token": "<image>"},
        "added_tokens_decoder": {"0": added("<unk>"), "1": added("<s>"), "2": added("</s>"), str(IMAGE): added("<image>")},
        "processor_class": kind + "Processor"})
    write_json(os.path.join(path, "processor_config.json"), {
        "processor_class": kind + "Processor", "patch_size": 7, "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default", "image_token": "<image>"})
    write_json(os.path.join(path, "preprocessor_config.json"), {
        "image_processor_type": kind + "ImageProcessor", "processor_class": kind + "Processor", "do_pad": True,
        "size": {"shortest_edge": 14}, "crop_size": {"height": 14, "width": 14}, "resample": 3,
        "do_center_crop": True, "do_resize": True, "do_rescale": True, "do_normalize": True,
        "do_convert_rgb": True, "rescale_factor": 1 / 255, **({"image_grid_pinpoints": PINPOINTS} if next_ else {}),
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]})
    return path


def open_processor(path):
    try:
        return AutoProcessor.from_pretrained(path, backend="pil", use_fast=False)
    except (TypeError, ValueError):
        return AutoProcessor.from_pretrained(path, use_fast=False)


def build(tmp, change):
    base = change[0]
    folder = tempfile.mkdtemp(dir=tmp)
    write_json(os.path.join(folder, "config.json"), changed(*change))
    shutil.copy(os.path.join(OUT, base, "model.safetensors"), folder)
    shutil.copy(TOKENIZER, folder)
    return folder


def verdict(tmp, paths, change):
    folder = build(tmp, change)
    config = changed(*change)
    processor = open_processor(paths[config["model_type"] == "llava_next"])
    size = config["vision_config"].get("image_size")
    processor.image_processor.size = {"shortest_edge": size}
    processor.image_processor.crop_size = {"height": size, "width": size}
    try:
        return loss_of(folder, processor)
    except Exception as e:  # whatever it says, it is no model
        return {"refused": f"{type(e).__name__}: {str(e).strip().splitlines()[0][:120] if str(e).strip() else ''}"}


def make():
    os.makedirs(OUT, exist_ok=True)
    make_data()
    for number, name in enumerate(BASES):
        make_base(number, name)
    out = []
    with tempfile.TemporaryDirectory() as tmp:
        paths = [processor_folder(tmp, False), processor_folder(tmp, True)]
        for base, where, key, value in CHANGES:
            v = verdict(tmp, paths, (base, where, key, value))
            out.append(dict(base=base, where=where, key=key, value=value, **v))
            print(out[-1])
    with open(os.path.join(OUT, "verdicts.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(v) for v in out) + "\n]\n")
    with open(os.path.join(HERE, "round_trip_versions.txt"), "w") as f:
        f.write(f"torch {torch.__version__}\ntransformers {transformers.__version__}\n"
                f"sentencepiece {sentencepiece.__version__}\npillow {Image.__version__}\n")


# ---- the program in the middle -----------------------------------------------------------------------------
def command(*words):
    run = subprocess.run(words, capture_output=True, text=True)
    errors = [l for l in (run.stdout + run.stderr).splitlines() if l.startswith("error")]
    return run.returncode, errors[0] if errors else run.stdout


def repeat(strata):
    n, worst, bad = dict(equal=0, refused=0), 0.0, 0
    with tempfile.TemporaryDirectory() as tmp:
        for v in json.load(open(os.path.join(OUT, "verdicts.json"))):
            folder = build(tmp, (v["base"], v["where"], v["key"], v["value"]))
            name = f"{v['base']} {v['where']}.{v['key']} = {json.dumps(v['value'])}"
            code, said = command(strata, "import", folder, folder + "_in")
            if code == 0:
                code, said = command(strata, "export", folder + "_in", folder + "_out", "--dtype", "fp32")
            if code != 0:
                n["refused"] += 1
                print(f"refused ({code})  {name}: {said}")
                continue
            try:
                got = loss_of(folder + "_out", open_processor(folder + "_out"))
            except Exception as e:
                got = {"refused": f"{type(e).__name__}: {e}"}
            same = "loss" in v and "loss" in got and abs(v["loss"] - got["loss"]) <= 2e-7 * abs(v["loss"])
            if same:
                n["equal"] += 1
                worst = max(worst, abs(v["loss"] - got["loss"]) / v["loss"])
            else:
                bad += 1
            print(f"{'equal' if same else 'DIFFERENT'}  {name}: {v.get('loss', v)} {got}")
    print(f"transformers {transformers.__version__}: {n['equal']} equal (at most {worst:.1e}), {n['refused']} refused, {bad} different")
    return bad != 0


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    if len(sys.argv) == 3 and sys.argv[1] == "repeat":
        sys.exit(repeat(os.path.abspath(sys.argv[2])))
    make()
