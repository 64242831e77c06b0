"""Pictures by formula and PNG files of any colour type and depth, for the scripts beside it."""
import struct
import zlib

import numpy as np

ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2)]


def formula(w, h, channels=3):
    x, y, c = np.meshgrid(np.arange(w), np.arange(h), np.arange(channels), indexing="xy")
    return (((x * (c + 3) + y * (5 - c)) ^ ((x * y) >> 3)) & 255).astype(np.uint8)


def pack_rows(rows, depth):
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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack_png(values, depth, colour, interlaced=False, extra=()):
    """values: [height][width][channels], of `depth` bits each; extra: chunks behind IHDR."""
    h, w = values.shape[:2]
    if interlaced:
        raw = b"".join(pack_rows(values[y0::dy, x0::dx], depth) for x0, y0, dx, dy in ADAM7
                       if values[y0::dy, x0::dx].size)
    else:
        raw = pack_rows(values, depth)
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, int(interlaced))
    body = b"".join(chunk(k, d) for k, d in extra)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body +
            chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))
