#!/usr/bin/env python3
"""Make the golden files of tests/unit/test_data_pixels.c with Pillow 9.4.0 and numpy (Debian 12:
python3-pil, python3-numpy). Run from the root of the repository:

    /usr/bin/python3 tests/golden/make_pixels.py

It writes tests/golden/images/* (small files of every kind that is read), decode.txt (sha256 of the
RGB bytes as Pillow's convert("RGB") gives them, then laid over a background) and pixels.txt (sha256
of the normalised floats of formula images, for both aspects)."""
import hashlib
import io
import os
import struct
import zlib

import numpy as np
import PIL
from PIL import Image

assert PIL.__version__ == "9.4.0", PIL.__version__
HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "images")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BACKGROUND = (10, 200, 255)


def formula(w, h, channels=3):
    x, y, c = np.meshgrid(np.arange(w), np.arange(h), np.arange(channels), indexing="xy")
    return (((x * (c + 3) + y * (5 - c)) ^ ((x * y) >> 3)) & 255).astype(np.uint8)


def sha(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


# ---- PNG of any colour type and depth, interlaced or not ------------------------------------------
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2)]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def pack(rows, depth):
    out = b""
    for row in rows:
        flat = row.reshape(-1)
        if depth == 16:
            line = flat.astype(">u2").tobytes()
        else:
            bits = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1)[:, 8 - depth:]
            line = np.packbits(bits.reshape(-1)).tobytes()
        out += b"\0" + line
    return out


def png(values, depth, colour, interlaced=False, extra=()):
    h, w = values.shape[:2]

    def chunk(kind, data):
        return (struct.pack(">I", len(data)) + kind + data +
                struct.pack(">I", zlib.crc32(kind + data)))
    if interlaced:
        raw = b"".join(pack(values[y0::dy, x0::dx], depth) for x0, y0, dx, dy in ADAM7
                       if values[y0::dy, x0::dx].size)
    else:
        raw = pack(values, depth)
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, int(interlaced))
    body = b"".join(chunk(k, d) for k, d in extra)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body +
            chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))


def png_files():
    w, h = 19, 13
    for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)),
                           (6, (8, 16))):
        for depth in depths:
            v = formula(w, h, CHANNELS[colour]).astype(np.int64)
            v = v * 257 if depth == 16 and colour != 0 else v * 2 if depth == 16 else v >> (8 - depth)
            if depth == 16:
                v = v ^ 0x21
            extra = []
            if colour == 3:
                n = 1 << depth
                palette = [(k * 37 % 256, k * 91 % 256, 255 - k % 256) for k in range(n)]
                extra.append((b"PLTE", bytes(sum(palette, ()))))
            for lace in (False, True):
                name = "png_c%d_d%02d%s.png" % (colour, depth, "_i" if lace else "")
                yield name, png(v, depth, colour, lace, extra)
            if colour == 3:
                trns = [(b"tRNS", bytes(k * 53 % 256 for k in range(n)))]
                yield "png_c3_d%02d_t.png" % depth, png(v, depth, colour, False, extra + trns)
    v = formula(w, h, 1)
    yield "png_c0_d08_t.png", png(v, 8, 0, False, [(b"tRNS", struct.pack(">H", int(v[3, 3, 0])))])
    v = formula(w, h, 3)
    key = struct.pack(">HHH", *(int(c) for c in v[5, 7]))
    yield "png_c2_d08_t.png", png(v, 8, 2, False, [(b"tRNS", key)])


def jpeg_files():
    rgb = Image.fromarray(formula(61, 43))
    smooth = rgb.resize((61, 43), Image.BICUBIC, box=(0, 0, 20, 14))
    for name, image, options in (
            ("jpeg_420.jpg", smooth, dict(quality=85)),
            ("jpeg_444.jpg", rgb, dict(quality=92, subsampling=0)),
            ("jpeg_422.jpg", smooth, dict(quality=75, subsampling=1)),
            ("jpeg_progressive.jpg", smooth, dict(quality=80, progressive=True)),
            ("jpeg_grey.jpg", smooth.convert("L"), dict(quality=85)),
            ("jpeg_cmyk.jpg", smooth.convert("CMYK"), dict(quality=85)),
            ("jpeg_named.png", smooth, dict(quality=85))):
        data = io.BytesIO()
        image.save(data, "JPEG", **options)
        yield name, data.getvalue()


def decode(data):
    im = Image.open(io.BytesIO(data))
    im.load()
    plain = np.asarray(im.convert("RGB"))
    back = Image.new("RGB", im.size, BACKGROUND)
    if im.mode in ("LA", "RGBA") or "transparency" in im.info:
        rgba = im.convert("RGBA")
        back.paste(rgba, mask=rgba.getchannel("A"))
        return plain, np.asarray(back)
    return plain, plain


# ---- the way to the model's input -----------------------------------------------------------------
def pad(im):
    w, h = im.size
    if w == h:
        return im
    side = max(w, h)
    out = Image.new("RGB", (side, side), tuple(int(255 * m) for m in MEAN))
    out.paste(im, ((side - w) // 2, (side - h) // 2))
    return out


def model_input(im, size):
    w, h = im.size
    if w <= h:
        nw, nh = size, int(size * h / w)
    else:
        nw, nh = int(size * w / h), size
    if (nw, nh) != (w, h):
        im = im.resize((nw, nh), Image.BICUBIC)
    top, left = (nh - size) // 2, (nw - size) // 2
    u8 = np.asarray(im)[top:top + size, left:left + size]
    f = (u8.astype(np.float64) * (1 / 255.)).astype(np.float32)
    f = (f - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return f.transpose(2, 0, 1)


SIZES = ((640, 480), (480, 640), (336, 336), (337, 336), (100, 50), (1024, 768), (335, 900), (50, 37),
         (1000, 333), (224, 224), (899, 1024), (1, 1), (1, 90), (700, 3))


def main():
    os.makedirs(OUT, exist_ok=True)
    with open(os.path.join(HERE, "decode.txt"), "w") as out:
        for name, data in list(png_files()) + list(jpeg_files()):
            with open(os.path.join(OUT, name), "wb") as f:
                f.write(data)
            plain, laid = decode(data)
            out.write("%s %d %d %s %s\n" % (name, plain.shape[1], plain.shape[0], sha(plain), sha(laid)))
    with open(os.path.join(HERE, "pixels.txt"), "w") as out:
        for w, h in SIZES:
            for size in (336, 56):
                im = Image.fromarray(formula(w, h))
                out.write("%d %d %d %s %s\n" % (w, h, size, sha(model_input(im, size)),
                                                sha(model_input(pad(im), size))))


main()
