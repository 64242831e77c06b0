#!/usr/bin/env python3
"""Makes anyres.txt, what transformers makes of images of many sizes under anyres (LLaVA-1.6). No part
of `make check`: only its output is.

    python3 tests/golden/make_anyres.py /usr/bin/python3

needs torch, transformers and Pillow (CPU is enough); the interpreter named behind it has Pillow 9.4.0
and numpy (Debian 12). That one resizes, because later Pillows take the two passes in another order for
some sizes; all else is transformers' own code.

A line: size of the image, of a tile, patches along a tile, reading of the list of resolutions (hw:
height before width, as transformers reads the published one; wh: width before height, as the original
does), the resolution chosen, what is kept of the map (top, left, rows, columns), merged rows of the
image, and the sha256 of all tiles' bytes [tiles][3][height][width] before they are normalised (-:
not looked at)."""
import hashlib
import os
import random
import subprocess
import sys

import numpy as np
import PIL
import torch
import transformers
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import unpad_image
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

HERE = os.path.dirname(os.path.abspath(__file__))
LIST = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # of LLaVA-1.6, in tiles
PIXELS = ((640, 480), (480, 640), (336, 336), (337, 336), (100, 50), (50, 100), (1024, 768), (335, 900),
          (1000, 333), (224, 224), (899, 1024), (1, 1), (1, 90), (700, 3))


def formula(w, h):
    x, y, c = np.meshgrid(np.arange(w), np.arange(h), np.arange(3), indexing="xy")
    return (((x * (c + 3) + y * (5 - c)) ^ ((x * y) >> 3)) & 255).astype(np.uint8)


class Counter:
    """What the processor's count of tokens reads of itself."""
    patch_size = 1
    _get_unpadded_features = LlavaNextProcessor._get_unpadded_features


RESIZE = """
import sys, numpy as np, PIL
from PIL import Image
assert PIL.__version__ == "9.4.0", PIL.__version__
w, h, nw, nh = map(int, sys.argv[1:])
im = Image.fromarray(np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(h, w, 3))
sys.stdout.buffer.write(np.asarray(im.resize((nw, nh), Image.BICUBIC)).tobytes())
"""


class Processor(LlavaNextImageProcessorPil):
    def resize(self, image, size, resample=None, **kwargs):
        c, h, w = image.shape
        nh, nw = (size.height, size.width) if size.height else (size.shortest_edge, size.shortest_edge)
        if (nh, nw) == (h, w):
            return image
        assert c == 3 and image.dtype == np.uint8 and (size.height or h == w)
        rgb = np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes()
        out = subprocess.run([sys.argv[1], "-c", RESIZE, *map(str, (w, h, nw, nh))], input=rgb,
                             stdout=subprocess.PIPE, check=True).stdout
        return np.frombuffer(out, np.uint8).reshape(nh, nw, 3).transpose(2, 0, 1)


def tiles(w, h, size, pinpoints):
    p = Processor(size={"shortest_edge": size}, crop_size={"height": size, "width": size},
                  image_grid_pinpoints=pinpoints, do_rescale=False, do_normalize=False)
    values = p(PIL.Image.fromarray(formula(w, h)), return_tensors="np")["pixel_values"][0]
    assert (values == values.astype(np.uint8)).all()
    return values.astype(np.uint8)


def line(w, h, size, patches, reading, pixels):
    pinpoints = [[a * size, b * size] if reading == "hw" else [b * size, a * size] for a, b in LIST]
    best_h, best_w = select_best_resolution((h, w), pinpoints)
    rows, cols = best_h // size * patches, best_w // size * patches
    left = unpad_image(torch.arange(rows * cols).reshape(1, rows, cols), (h, w))[0]
    first = int(left.flatten()[0]) if left.numel() else None
    merged = patches * patches + left.shape[0] * (left.shape[1] + 1)
    one, newline = Counter()._get_unpadded_features(h, w, patches, patches, best_h // size, best_w // size)
    assert merged == patches * patches + one + newline
    place = "- -" if first is None else f"{first // cols} {first % cols}"
    sha = "-"
    if pixels:
        values = tiles(w, h, size, pinpoints)
        assert len(values) == 1 + best_h // size * (best_w // size)
        sha = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    return f"{w} {h} {size} {patches} {reading} {best_w} {best_h} {place} {left.shape[0]} {left.shape[1]} {merged} {sha}\n"


def main():
    rng = random.Random(5)
    with open(os.path.join(HERE, "anyres.txt"), "w") as out:
        for w, h in PIXELS:
            for reading in ("hw", "wh"):
                out.write(line(w, h, 336, 24, reading, True))
                out.write(line(w, h, 28, 4, reading, True))
        for _ in range(300):
            w, h = (int(2 ** rng.uniform(0, 12)) for _ in range(2))
            out.write(line(w, h, 336, 24, rng.choice(("hw", "wh")), False))
        for n in range(1, 60):  # quotients that are whole numbers
            out.write(line(48 * n, 7 * n, 336, 24, "hw", False))
            out.write(line(7 * n, 24 * n, 28, 4, "wh", False))
        for w, h in ((32768, 1), (1, 32768), (32768, 32767), (4000, 11)):
            out.write(line(w, h, 336, 24, "hw", False))
    print(f"Pillow {PIL.__version__}, transformers {transformers.__version__}")


main()
