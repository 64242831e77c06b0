#!/usr/bin/env python3
"""Make tests/golden/resize_versions.txt: what Pillow before 13 and what Pillow 13 make of one resize.
Run from the root of the repository, first with Pillow 12.3.0 (9.4.0 to 12.3.0 give the same), then with
13.0.0; the second run adds a column:

    python3 tests/golden/make_resize_versions.py

Columns: size of a formula image, size after a bicubic resize, sha256 of its bytes in either version."""
import hashlib
import os
import sys

import PIL
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from png_parts import formula  # noqa: E402

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "resize_versions.txt")
# Either side of "the height loses more than twice the pixels that the width does".
SIZES = ((480, 640, 336, 448), (480, 640, 336, 336), (480, 623, 336, 336), (480, 624, 336, 336), (480, 625, 336, 336),
         (640, 480, 448, 336), (640, 480, 336, 336), (300, 400, 336, 448), (300, 400, 336, 336), (336, 336, 336, 300),
         (335, 900, 336, 902), (335, 900, 336, 900), (335, 900, 125, 336), (335, 900, 336, 336), (337, 700, 336, 697),
         (337, 700, 336, 699), (337, 700, 336, 698), (1024, 899, 672, 590), (899, 1024, 590, 672), (899, 1024, 336, 336),
         (500, 1500, 336, 1008), (500, 1500, 224, 672), (500, 1500, 112, 336), (60, 90, 56, 84), (90, 60, 84, 56))


def main():
    sha = [hashlib.sha256(Image.fromarray(formula(w, h)).resize((to_w, to_h), Image.BICUBIC).tobytes()).hexdigest()
           for w, h, to_w, to_h in SIZES]
    before = None
    if PIL.__version__ == "13.0.0":
        with open(PATH) as f:
            before = [line.split()[4] for line in f]
    else:
        assert int(PIL.__version__.split(".")[0]) < 13, PIL.__version__
    with open(PATH, "w") as f:
        for i, size in enumerate(SIZES):
            f.write(" ".join(str(v) for v in size) + " %s%s\n" % (before[i] + " " if before else "", sha[i]))


main()
