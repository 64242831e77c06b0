#!/usr/bin/env python3
"""Makes the models of this folder. No part of `make check`: only its output is.

    python3 make_hf.py            needs torch, transformers, safetensors (CPU is enough)

values/NAME/   a tiny LlavaForConditionalGeneration with random weights, or a LlavaNext one, whose
               images are maps of tiles: config.json and model.safetensors (fp32, names of
               llava-hf); expected.safetensors (ids, labels, pixels of all tiles, sizes of
               images, logits, losses, greedily generated ids and their logits) and gradients.safetensors (of
               every weight), computed in fp64 by transformers from exactly these weights.
names/SCHEME/  one still smaller model under every naming scheme and in several types. Its values are
               exact in fp16 and bf16, so that all of them are the same model; next_* and b have
               image_newline too, and configurations of LLaVA-1.6.

The versions that made the present files stand in versions.txt.
"""
import json
import math
import os
import random

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers import LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration, MistralConfig
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

HERE = os.path.dirname(os.path.abspath(__file__))
IMAGE = 5  # id of <image>
GREEDY = 8  # ids generated after each prompt


def folder(*parts):
    path = os.path.join(HERE, *parts)
    os.makedirs(path, exist_ok=True)
    return path


def write_json(path, name, what):
    with open(os.path.join(path, name), "w") as f:
        json.dump(what, f, indent=2, sort_keys=True)
        f.write("\n")


# ---- scheme A, whatever names this version of transformers has in memory ------------------------------
def scheme_a(name):
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        rest = name.removeprefix("language_model.").removeprefix("model.")
        return "language_model." + ("" if rest.startswith("lm_head") else "model.") + rest
    if name.startswith("lm_head"):
        return "language_model." + name
    if name.startswith("vision_tower."):
        rest = name.removeprefix("vision_tower.").removeprefix("vision_model.")
        return "vision_tower.vision_model." + rest
    return name


# ---- values ---------------------------------------------------------------------------------------------
TEXT = dict(hidden_size=48, intermediate_size=60, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, head_dim=10, rms_norm_eps=1e-5, vocab_size=97,
            max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2)
VISION = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
              image_size=28, patch_size=7, hidden_act="quick_gelu", projection_dim=16)
# name, text class, rope base, feature layer, select strategy, images before each text, sizes (width,
# height) of the images where they are maps of tiles
MODELS = [
    ("mistral_last_but_one", MistralConfig, 10000.0, -2, "default",
     [[3, IMAGE, 9], [12], [7, IMAGE, 4, IMAGE, 8]], None),
    ("llama_last_full", LlamaConfig, 1000000.0, -1, "full", [[IMAGE], [3, 4, IMAGE, 6], [11, 12]], None),
    ("mistral_next", MistralConfig, 10000.0, -2, "default",
     [[3, IMAGE, 9], [12], [7, IMAGE, 4, IMAGE, 8], [IMAGE, 6]], [(50, 30), (23, 60), (20, 20), (70, 11)]),
]
NEXT_EDGE = 21  # 3 x 3 patches: maps of odd size
PINPOINTS = [[21, 42], [42, 21], [42, 42], [63, 21]]  # height, width


def build(text_class, base, layer, select, sizes):
    text = text_class(**TEXT, rope_parameters={"rope_type": "default", "rope_theta": base},
                      **({"sliding_window": None} if text_class is MistralConfig else {}))
    edge = VISION["image_size"] if sizes is None else NEXT_EDGE
    vision = CLIPVisionConfig(**dict(VISION, image_size=edge))
    both = dict(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=layer,
                vision_feature_select_strategy=select, projector_hidden_act="gelu",
                image_seq_length=(edge // VISION["patch_size"]) ** 2 + (select == "full"))
    if sizes is None:
        config = LlavaConfig(**both)
        return config, LlavaForConditionalGeneration(config)
    config = LlavaNextConfig(**both, image_grid_pinpoints=PINPOINTS)
    return config, LlavaNextForConditionalGeneration(config)


def tile_counts(n_images, sizes):
    if sizes is None:
        return [1] * n_images
    return [image_size_to_num_patches((h, w), PINPOINTS, NEXT_EDGE) for w, h in sizes]


def row_counts(model, n_images, sizes, config):
    """Rows of each image in the merged sequence, as the model packs them."""
    if sizes is None:
        return [config.image_seq_length] * n_images
    edge = NEXT_EDGE // VISION["patch_size"]
    features = [torch.zeros(t, edge * edge, TEXT["hidden_size"]) for t in tile_counts(n_images, sizes)]
    newline = torch.zeros(TEXT["hidden_size"])
    packed, _ = model.model.pack_image_features(features, [(h, w) for w, h in sizes], "default", newline)
    return [len(p) for p in packed]


def fill(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=g)
            if p.ndim > 1:
                r = r * (1.3 / math.sqrt(p[0].numel())) if "embed" not in name else r * 0.7
            elif name.endswith("bias"):
                r = r * 0.2
            else:
                r = r * (0.2 if "norm" in name or "layrnorm" in name else 0.7)
                r = r + (1.0 if "norm" in name or "layrnorm" in name else 0.0)
            p.copy_(r.float())


def samples(prompts, rows, seed):
    rng = random.Random(seed)
    out, rows = [], list(rows)
    for prompt in prompts:
        ids, labels = [1], [-100]
        for t in prompt:
            n = rows.pop(0) if t == IMAGE else 1
            ids += [t] * n
            labels += [-100] * n
        answer = [rng.randrange(6, TEXT["vocab_size"]) for _ in range(5)] + [2]
        ids += answer
        labels += answer
        out.append((ids, labels, prompt.count(IMAGE)))
    return out


def greedy(model, ids, labels, args):
    """What transformers' generate() appends to the prompt (the ids before the answer), and the logits
    that each of these ids was chosen by, made with its key/value cache."""
    prompt = torch.tensor([ids[:next(i for i, l in enumerate(labels) if l >= 0)]])
    model.generation_config.eos_token_id = None
    out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                         max_new_tokens=GREEDY, output_logits=True, return_dict_in_generate=True,
                         **args)
    for z in out.logits:  # no tie: the choice does not hang on rounding
        best = z[0].topk(2).values
        assert best[0] - best[1] > 1e-3, best
    return out.sequences[0, prompt.shape[1]:], torch.cat(out.logits)


def image_arguments(pixels, tiles, sizes, first, n):
    """What the forward takes for images first .. first + n - 1."""
    if n == 0:
        return {}
    if sizes is None:
        return {"pixel_values": pixels[first:first + n].double()}
    at = sum(tiles[:first])
    values = torch.zeros(n, max(tiles[first:first + n]), *pixels.shape[1:]).double()
    for i in range(n):
        values[i, :tiles[first + i]] = pixels[at:at + tiles[first + i]]
        at += tiles[first + i]
    return {"pixel_values": values,
            "image_sizes": torch.tensor([(h, w) for w, h in sizes[first:first + n]])}


def make_values(number, name, text_class, base, layer, select, prompts, sizes):
    torch.manual_seed(number)
    config, model = build(text_class, base, layer, select, sizes)
    fill(model, 100 + number)
    path = folder("values", name)
    weights = {scheme_a(k): v.detach().clone() for k, v in model.state_dict().items()}
    save_file(weights, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
    full = json.loads(config.to_json_string(use_diff=False))
    keep = {k: full[k] for k in ("model_type", "image_token_index", "image_token_id", "ignore_index",
                                 "projector_hidden_act", "vision_feature_layer",
                                 "vision_feature_select_strategy", "image_grid_pinpoints") if k in full}
    keep["text_config"] = dict(TEXT, model_type=text_class.model_type, rope_theta=base)
    if text_class is MistralConfig:
        keep["text_config"]["sliding_window"] = None
    keep["vision_config"] = dict(VISION, model_type="clip_vision_model",
                                 image_size=config.vision_config.image_size)
    write_json(path, "config.json", keep)

    model = model.double().eval()
    g = torch.Generator().manual_seed(200 + number)
    n_images = sum(p.count(IMAGE) for p in prompts)
    tiles, edge = tile_counts(n_images, sizes), config.vision_config.image_size
    rows = samples(prompts, row_counts(model, n_images, sizes, config), number)
    pixels = torch.randn((sum(tiles), 3, edge, edge), generator=g).float()
    n_targets = sum(l != -100 for r in rows for l in r[1][1:])
    total, logits, losses, tokens, image = 0.0, [], [], [], 0
    for ids, labels, n in rows:
        args = image_arguments(pixels, tiles, sizes, image, n)
        image += n
        z = model(input_ids=torch.tensor([ids]), **args).logits[0]
        each = torch.nn.functional.cross_entropy(z[:-1], torch.tensor(labels[1:]),
                                                 ignore_index=-100, reduction="sum")
        total = total + each / n_targets
        logits.append(z.detach())
        losses.append(each.detach())
        tokens.append(greedy(model, ids, labels, args))
    total.backward()
    extra = {} if sizes is None else {"image_sizes": torch.tensor(sizes)}
    save_file({**extra,
               "ids": torch.tensor([i for r in rows for i in r[0]]),
               "labels": torch.tensor([i for r in rows for i in r[1]]),
               "lengths": torch.tensor([len(r[0]) for r in rows]),
               "images": torch.tensor([r[2] for r in rows]),
               "pixels": pixels,
               "logits": torch.cat(logits).float().contiguous(),
               "greedy": torch.stack([t for t, _ in tokens]).contiguous(),
               "greedy_logits": torch.stack([z for _, z in tokens]).float().contiguous(),
               "loss_sums": torch.stack(losses).double(),
               "loss": total.detach().double().reshape(1)},
              os.path.join(path, "expected.safetensors"))
    save_file({scheme_a(k): (torch.zeros_like(p) if p.grad is None else p.grad).float().contiguous()
               for k, p in model.named_parameters()},
              os.path.join(path, "gradients.safetensors"))
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, {n_targets} targets, "
          f"loss {float(total.detach()):.9f}")


# ---- names -------------------------------------------------------------------------------------------------
H, F, L, HEADS, KV, D, V = 20, 24, 2, 4, 2, 6, 37
VH, VF, VL, PATCH, EDGE = 12, 16, 2, 3, 2


def exact(shape, g):
    return torch.randint(-127, 128, shape, generator=g).float() / 64


def language(g):
    w = {"embed_tokens.weight": exact((V, H), g), "norm.weight": exact((H,), g)}
    for i in range(L):
        p = f"layers.{i}."
        w[p + "input_layernorm.weight"] = exact((H,), g)
        w[p + "post_attention_layernorm.weight"] = exact((H,), g)
        for n, rows in (("q", HEADS * D), ("k", KV * D), ("v", KV * D)):
            w[p + f"self_attn.{n}_proj.weight"] = exact((rows, H), g)
        w[p + "self_attn.o_proj.weight"] = exact((H, HEADS * D), g)
        w[p + "mlp.gate_proj.weight"] = exact((F, H), g)
        w[p + "mlp.up_proj.weight"] = exact((F, H), g)
        w[p + "mlp.down_proj.weight"] = exact((H, F), g)
    return w, {"lm_head.weight": exact((V, H), g)}


def vision(g):
    w = {"embeddings.class_embedding": exact((VH,), g),
         "embeddings.patch_embedding.weight": exact((VH, 3, PATCH, PATCH), g),
         "embeddings.position_embedding.weight": exact((EDGE * EDGE + 1, VH), g)}
    names = ["pre_layrnorm", "post_layernorm"]
    names += [f"encoder.layers.{i}.layer_norm{k}" for i in range(VL) for k in (1, 2)]
    for n in names:
        w[n + ".weight"], w[n + ".bias"] = exact((VH,), g), exact((VH,), g)
    for i in range(VL):
        p = f"encoder.layers.{i}."
        for n, out, inp in ([(f"self_attn.{k}_proj", VH, VH) for k in ("q", "k", "v", "out")] +
                            [("mlp.fc1", VF, VH), ("mlp.fc2", VH, VF)]):
            w[p + n + ".weight"], w[p + n + ".bias"] = exact((out, inp), g), exact((out,), g)
    return w


def raw_name(n):
    for a, b in (("embed_tokens", "tok_embeddings"), ("lm_head", "output"),
                 ("self_attn.q_proj", "attention.wq"), ("self_attn.k_proj", "attention.wk"),
                 ("self_attn.v_proj", "attention.wv"), ("self_attn.o_proj", "attention.wo"),
                 ("mlp.gate_proj", "feed_forward.w1"), ("mlp.down_proj", "feed_forward.w2"),
                 ("mlp.up_proj", "feed_forward.w3"), ("input_layernorm", "attention_norm"),
                 ("post_attention_layernorm", "ffn_norm")):
        n = n.replace(a, b)
    return n


def interleave(w):
    """Rows of q or k: pairs (i, i + D/2) of each head -> pairs (2i, 2i + 1)."""
    return w.reshape(-1, 2, D // 2, w.shape[1]).transpose(1, 2).reshape(w.shape).contiguous()


def openai(w):
    out = {}
    for n, v in w.items():
        for a, b in (("embeddings.class_embedding", "class_embedding"),
                     ("embeddings.patch_embedding", "conv1"),
                     ("embeddings.position_embedding.weight", "positional_embedding"),
                     ("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"),
                     ("encoder.layers", "transformer.resblocks"), ("layer_norm1", "ln_1"),
                     ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
                     ("self_attn.out_proj", "attn.out_proj")):
            n = n.replace(a, b)
        out[n] = v
    for i in range(VL):
        p = f"transformer.resblocks.{i}."
        for leaf in ("weight", "bias"):
            parts = [out.pop(p + f"self_attn.{k}_proj.{leaf}") for k in "qkv"]
            out[p + f"attn.in_proj_{leaf}"] = torch.cat(parts)
    return out


def put(scheme, weights, dtype, config=None, name="model.safetensors", shards=1):
    path = folder("names", scheme)
    weights = {k: v if v.dtype == torch.int64 else v.to(dtype).contiguous() for k, v in weights.items()}
    if config is not None:
        write_json(path, "config.json" if "dim" not in config else "params.json", config)
    if shards == 1:
        save_file(weights, os.path.join(path, name), metadata={"format": "pt"})
        return
    where, keys = {}, list(weights)
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        mine = keys[s::shards]
        save_file({k: weights[k] for k in mine}, os.path.join(path, file), metadata={"format": "pt"})
        where.update({k: file for k in mine})
    size = sum(v.numel() * v.element_size() for v in weights.values())
    write_json(path, "model.safetensors.index.json",
               {"metadata": {"total_size": size}, "weight_map": where})


def make_names():
    g = torch.Generator().manual_seed(7)
    lm, head = language(g)
    vit = vision(g)
    proj = {f"linear_{k}.{leaf}": exact(shape, g) for k, inp in ((1, VH), (2, H))
            for leaf, shape in (("weight", (H, inp)), ("bias", (H,)))}
    text = dict(model_type="mistral", hidden_size=H, intermediate_size=F, num_hidden_layers=L,
                num_attention_heads=HEADS, num_key_value_heads=KV, head_dim=D, rms_norm_eps=1e-5,
                rope_theta=1e6, sliding_window=None, vocab_size=V)
    tower = dict(model_type="clip_vision_model", hidden_size=VH, intermediate_size=VF,
                 num_hidden_layers=VL, num_attention_heads=3, image_size=PATCH * EDGE,
                 patch_size=PATCH)
    config = dict(model_type="llava", image_token_index=36, text_config=text, vision_config=tower)
    first = {"0": "linear_1", "2": "linear_2"}
    newline = {"image_newline": exact((H,), g)}

    def under(prefix, w):
        return {prefix + k: v for k, v in w.items()}

    a = {**under("language_model.model.", lm), **under("language_model.", head),
         **under("vision_tower.vision_model.", vit), **under("multi_modal_projector.", proj)}
    put("a", a, torch.float16, config)
    edge = PATCH * EDGE  # height before width; the original has width before height
    tiles = dict(config, model_type="llava_next",
                 image_grid_pinpoints=[[edge, 2 * edge], [2 * edge, edge], [2 * edge, 2 * edge]])
    put("next_a", {**a, **newline}, torch.float16, tiles)
    b = {**under("model.language_model.", lm), **head, **under("model.multi_modal_projector.", proj)}
    put("b", {**b, **under("model.vision_tower.vision_model.", vit), **under("model.", newline)},
        torch.float32, tiles)
    put("c", {**b, **under("model.vision_tower.", vit)}, torch.bfloat16, config, shards=3)
    put("next_c", {**b, **under("model.vision_tower.", vit), **under("model.", newline)},
        torch.bfloat16, tiles, shards=2)
    flat = dict(text, model_type="llava_mistral", mm_hidden_size=VH, mm_projector_type="mlp2x_gelu",
                mm_vision_tower="tiny", mm_vision_select_layer=-2, mm_vision_select_feature="patch")
    mm = under("model.mm_projector.", {f"{k}.{leaf}": proj[f"{n}.{leaf}"] for k, n in first.items()
                                       for leaf in ("weight", "bias")})
    original = {**under("model.", lm), **head, **mm,
                **under("model.vision_tower.vision_tower.vision_model.", vit)}
    put("original", original, torch.bfloat16, flat, shards=2)
    put("next_original", {**original, **under("model.", newline)}, torch.bfloat16,
        dict(flat, image_aspect_ratio="anyres", mm_patch_merge_type="spatial_unpad",
             image_grid_pinpoints=[p[::-1] for p in tiles["image_grid_pinpoints"]]))
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(D // 2)}
    put("mistral", {**under("model.", lm), **head, **inv_freq}, torch.bfloat16, text)
    raw = {raw_name(k): interleave(v) if "q_proj" in k or "k_proj" in k else v
           for k, v in {**lm, **head}.items()}
    put("mistral_raw", raw, torch.bfloat16,
        dict(dim=H, n_layers=L, head_dim=D, hidden_dim=F, n_heads=HEADS, n_kv_heads=KV, norm_eps=1e-5,
             vocab_size=V, rope_theta=1e6), name="consolidated.safetensors")
    clip_text = {"text_model.embeddings.token_embedding.weight": exact((9, 8), g),
                 "visual_projection.weight": exact((8, VH), g), "logit_scale": torch.tensor(4.5),
                 "vision_model.embeddings.position_ids": torch.arange(5).reshape(1, 5)}
    put("clip", {**under("vision_model.", vit), **clip_text}, torch.float32,
        dict(model_type="clip", vision_config=tower))
    put("clip_openai", {**under("visual.", openai(vit)), "visual.proj": exact((VH, 8), g),
                        "token_embedding.weight": exact((9, 8), g), "logit_scale": torch.tensor(4.5)},
        torch.float16)
    put("projector", mm, torch.float32, name="mm_projector.safetensors")


for number, model in enumerate(MODELS):
    make_values(number, *model)
make_names()
with open(os.path.join(HERE, "versions.txt"), "w") as f:
    f.write(f"torch {torch.__version__}\ntransformers {transformers.__version__}\n"
            f"safetensors {safetensors.__version__}\n")
