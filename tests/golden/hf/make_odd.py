#!/usr/bin/env python3
"""Makes odd/ and rope.txt of this folder. No part of `make check`: only its output is.

    python3 make_odd.py            needs torch, transformers, safetensors (CPU is enough)

odd/NAME/   the model values/llama_last_full with another configuration of its language model, as
            people's config.json write it: config.json; expected.safetensors (logits, loss, greedily
            generated ids for the samples of that model), computed in fp64 by transformers; and
            extra.safetensors where the configuration has weights that the model lacks (biases).
            tied has none, and does without lm_head.
rope.txt    one line for each of many settings of the rotation: words of the job file, "=", factor of
            queries and keys, frequencies, as transformers computes them in fp32.

decay.txt   the weights of a LlavaNext with biases, each with 1 where transformers' Trainer lets weight
            decay act on it, else 0.

The versions that made the present files stand in odd_versions.txt.
"""
import copy
import json
import os

import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, Trainer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HERE = os.path.dirname(os.path.abspath(__file__))
BASE = os.path.join(HERE, "values", "llama_last_full")
IMAGE = 5
GREEDY = 8

LLAMA3 = {"factor": 3.5, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 60}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8, "beta_slow": 1}
# name, changes of text_config (None: the key is taken out)
ODD = [
    ("linear_new", dict(rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 100.0}, rope_theta=None)),
    ("linear_old", dict(rope_scaling={"type": "linear", "factor": 4}, rope_theta=50.0)),
    ("theta_inside", dict(rope_scaling={"rope_type": "default", "rope_theta": 70.0}, rope_theta=9.0)),
    ("llama3", dict(rope_scaling={"rope_type": "llama3", **LLAMA3}, rope_theta=100.0)),
    ("yarn", dict(rope_parameters={"rope_type": "yarn", "rope_theta": 100.0, **YARN}, rope_theta=None)),
    ("yarn_factor", dict(rope_scaling={"rope_type": "yarn", "factor": 6.0, "attention_factor": 1.25,
                                       "truncate": False}, rope_theta=100.0, max_position_embeddings=200)),
    ("yarn_mscale", dict(rope_scaling={"type": "yarn", **YARN, "mscale": 0.9, "mscale_all_dim": 0.4},
                         rope_theta=100.0)),
    ("biases", dict(attention_bias=True, mlp_bias=True)),
    ("qwen2", dict(model_type="qwen2", head_dim=None, hidden_size=48, num_attention_heads=6)),
    ("tied", dict(tie_word_embeddings=True)),
    ("groups_null", dict(num_key_value_heads="null")),
    ("groups_absent", dict(num_key_value_heads=None)),
]


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


def configuration(changes):
    with open(os.path.join(BASE, "config.json")) as f:
        config = json.load(f)
    for key, value in changes.items():
        if value is None:
            config["text_config"].pop(key, None)
        else:
            config["text_config"][key] = None if value == "null" else value
    return config


def fill(model, base, seed):
    """The weights of the model of values/, where it has them; else such as it does not have."""
    g, extra = torch.Generator().manual_seed(seed), {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            a = scheme_a(name)
            if a in base and base[a].shape == p.shape:
                p.copy_(base[a])
            else:
                p.copy_(torch.randn(p.shape, generator=g) * 0.2)
                extra[a] = p.detach().clone()
    return extra


def write(number, name, changes):
    config = configuration(changes)
    path = os.path.join(HERE, "odd", name)
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.write("\n")
    torch.manual_seed(number)
    model = LlavaForConditionalGeneration(LlavaConfig.from_dict(copy.deepcopy(config)))
    extra = fill(model, load_file(os.path.join(BASE, "model.safetensors")), 300 + number)
    if extra:
        save_file(extra, os.path.join(path, "extra.safetensors"), metadata={"format": "pt"})
    model = model.double().eval()
    given = load_file(os.path.join(BASE, "expected.safetensors"))
    ids, labels = given["ids"].split(given["lengths"].tolist()), given["labels"].split(given["lengths"].tolist())
    n_targets = sum(int((l[1:] != -100).sum()) for l in labels)
    logits, losses, tokens, image = [], [], [], 0
    for one, label, n in zip(ids, labels, given["images"].tolist()):
        args = {"pixel_values": given["pixels"][image:image + n].double()} if n else {}
        image += n
        z = model(input_ids=one[None], **args).logits[0]
        losses.append(torch.nn.functional.cross_entropy(z[:-1], label[1:], ignore_index=-100, reduction="sum"))
        logits.append(z)
        prompt = one[None, :int((label >= 0).nonzero()[0])]
        model.generation_config.eos_token_id = None
        out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                             max_new_tokens=GREEDY, **args)
        tokens.append(out[0, prompt.shape[1]:])
    loss = sum(losses) / n_targets
    save_file({"logits": torch.cat(logits).detach().float().contiguous(),
               "greedy": torch.stack(tokens).contiguous(), "loss": loss.detach().double().reshape(1)},
              os.path.join(path, "expected.safetensors"))
    print(f"{name}: loss {float(loss.detach()):.9f}, {len(extra)} extra tensors")


WORDS = {"factor": "rotary_scaling_factor", "truncate": "correction_range_round_to_int"}


def write_rope():
    lines = []
    for base in (50.0, 1e6):
        for dim in (2, 10, 64):
            for kind, settings in (
                    [("linear", {"factor": f}) for f in (1.0, 2.0, 7.3)] +
                    [("llama3", dict(LLAMA3, factor=f, original_max_position_embeddings=l, low_freq_factor=low))
                     for f in (8.0, 1.7) for l in (64, 8192) for low in (1.0, 0.3)] +
                    [("yarn", dict(factor=f, original_max_position_embeddings=l, **more))
                     for f in (1.0, 4.0, 40.0) for l in (64, 4096, 32768)
                     for more in ({}, {"beta_fast": 12.5, "beta_slow": 2}, {"truncate": False},
                                  {"mscale": 0.707, "mscale_all_dim": 1.0}, {"attention_factor": 1.1})]):
                config = LlamaConfig(hidden_size=2 * dim, num_attention_heads=2, head_dim=dim, rope_parameters={
                    "rope_type": kind, "rope_theta": base, **settings})
                frequency, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
                words = {"rope_type": kind, "rotary_base": base, "kv_channels": dim}
                words.update({WORDS.get(k, k): str(v).lower() for k, v in settings.items()})
                lines.append(" ".join(f"{k}={v}" for k, v in words.items()) + f" = {scale:.17g} " +
                             " ".join(f"{float(v):.9g}" for v in frequency))
    with open(os.path.join(HERE, "rope.txt"), "w") as f:
        f.write("\n".join(lines) + "\n")
    print(f"rope.txt: {len(lines)} settings")


def write_decay():
    with open(os.path.join(BASE, "config.json")) as f:
        config = json.load(f)
    text = dict(config["text_config"], attention_bias=True, mlp_bias=True)
    model = LlavaNextForConditionalGeneration(LlavaNextConfig(
        text_config=LlamaConfig(**text), vision_config=CLIPVisionConfig(**config["vision_config"])))
    decays = set(Trainer.get_decay_parameter_names(None, model))
    names = sorted((scheme_a(name), int(name in decays)) for name, _ in model.named_parameters())
    with open(os.path.join(HERE, "decay.txt"), "w") as f:
        f.writelines(f"{name} {decay}\n" for name, decay in names)
    print(f"decay.txt: {len(names)} weights")


for number, (name, changes) in enumerate(ODD):
    write(number, name, changes)
write_rope()
write_decay()
with open(os.path.join(HERE, "odd_versions.txt"), "w") as f:
    f.write(f"torch {torch.__version__}\ntransformers {transformers.__version__}\n"
            f"safetensors {safetensors.__version__}\n")
