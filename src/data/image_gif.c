/* The one door to giflib: the first frame of a GIF on its canvas, as Pillow's convert("RGB") gives it.
 * What the frame leaves free has the transparent colour, or colour 0. Later frames are not read. */
#include <string.h>

#include <gif_lib.h>

#include "image_impl.h"

struct reader {
    const uint8_t *data;
    size_t at, bytes;
};

/* The end of the file reads as the byte that ends a list of blocks: what may be missing behind the last
 * pixel is no loss, and pixels that are missing are missed by the decoder. */
static int read_memory(GifFileType *gif, GifByteType *out, int n) {
    struct reader *r = gif->UserData;
    size_t left = r->bytes - r->at, k = (size_t)n < left ? (size_t)n : left;
    if (k > 0) memcpy(out, r->data + r->at, k);
    r->at += k;
    if (n != 1 || k == 1) return (int)k;
    *out = 0;
    return 1;
}

static int broken(struct image_scratch *s, const GifFileType *gif, const char *what) {
    const char *text = gif != NULL ? GifErrorString(gif->Error) : NULL;
    return image_fail(s, EXIT_BAD_DATA, "is a broken or truncated GIF: %s%s%s", what,
                      text != NULL ? ": " : "", text != NULL ? text : "");
}

/* Index of the transparent colour that a graphic control extension names, or what it was. */
static int read_extension(GifFileType *gif, int *transparent) {
    int code;
    GifByteType *block;
    if (DGifGetExtension(gif, &code, &block) == GIF_ERROR) return GIF_ERROR;
    if (code == GRAPHICS_EXT_FUNC_CODE && block != NULL) {
        if (block[0] < 4) return GIF_ERROR;
        if ((block[1] & 1) != 0) *transparent = block[4];
    }
    while (block != NULL)
        if (DGifGetExtensionNext(gif, &block) == GIF_ERROR) return GIF_ERROR;
    return GIF_OK;
}

/* Up to the first frame's description. */
static int find_frame(struct image_scratch *s, GifFileType *gif, int *transparent) {
    *transparent = -1;
    for (;;) {
        GifRecordType type;
        if (DGifGetRecordType(gif, &type) == GIF_ERROR) return broken(s, gif, "no frame is found");
        if (type == TERMINATE_RECORD_TYPE) return broken(s, NULL, "it has no frame");
        if (type == IMAGE_DESC_RECORD_TYPE) break;
        if (read_extension(gif, transparent) == GIF_ERROR)
            return broken(s, gif, "an extension in front of its first frame is malformed");
    }
    return DGifGetImageDesc(gif) == GIF_ERROR ? broken(s, gif, "its first frame cannot be read")
                                              : 0;
}

/* ---- pixels: the codes of LZW. giflib's own decoder takes codes that nothing stands for ---------- */

#define CODES_MAX 4096
#define CODE_BITS_MAX 12

struct lzw {
    GifFileType *gif;
    GifByteType *block; /* its length, then its bytes; NULL: there is no other */
    int at, n_bits;     /* bytes of the block and bits of `bits` */
    uint32_t bits;
    uint16_t prefix[CODES_MAX];
    uint8_t last[CODES_MAX], string[CODES_MAX + 1]; /* string: backwards */
};
/* Where the next pixel goes: rows of an interlaced frame come in four passes. */
struct place {
    uint8_t *row, *index;
    size_t stride;
    int width, height, x, y, pass;
    bool interlaced, full;
};

/* -1: the blocks end. */
static int next_code(struct lzw *z, int width) {
    while (z->n_bits < width) {
        if (z->block != NULL && z->at == z->block[0]) {
            z->at = 0;
            if (DGifGetCodeNext(z->gif, &z->block) == GIF_ERROR) z->block = NULL;
        }
        if (z->block == NULL) return -1;
        z->bits |= (uint32_t)z->block[++z->at] << z->n_bits;
        z->n_bits += 8;
    }
    int code = (int)(z->bits & ((1u << width) - 1));
    z->bits >>= width;
    z->n_bits -= width;
    return code;
}

static void next_row(struct place *p) {
    static const int first[4] = {0, 4, 2, 1}, step[4] = {8, 8, 4, 2};
    p->x = 0;
    p->y += p->interlaced ? step[p->pass] : 1;
    while (p->y >= p->height && !p->full) {
        p->full = !p->interlaced || p->pass == 3;
        if (!p->full) p->y = first[++p->pass];
    }
    if (!p->full) p->row = p->index + (size_t)p->y * p->stride;
}

static void put_string(struct place *p, const uint8_t *backwards, int n) {
    while (n > 0 && !p->full) {
        p->row[p->x] = backwards[--n];
        if (++p->x == p->width) next_row(p);
    }
}

/* NULL, or what is wrong. */
static const char *read_codes(struct lzw *z, int bits, struct place *p) {
    const int clear = 1 << bits;
    int width = bits + 1, next = clear + 2, before = -1;
    uint8_t first = 0;
    while (!p->full) {
        int code = next_code(z, width), n = 0;
        if (code < 0 || code == clear + 1) return "its pixels end early";
        if (code == clear) {
            width = bits + 1;
            next = clear + 2;
            before = -1;
            continue;
        }
        if (code > (before < 0 ? clear : next)) return "its pixels cannot be decoded";
        int c = code;
        if (before >= 0 && code == next) { /* the string before, and its first once more */
            z->string[n++] = first;
            c = before;
        }
        for (; c >= clear; c = z->prefix[c]) z->string[n++] = z->last[c];
        z->string[n++] = first = (uint8_t)c;
        put_string(p, z->string, n);
        if (before >= 0 && next < CODES_MAX) {
            z->last[next] = first;
            z->prefix[next] = (uint16_t)before;
            if (next == (1 << width) - 1 && width < CODE_BITS_MAX) width++;
            next++;
        }
        before = code;
    }
    return NULL;
}

/* index: of the canvas, whose rows are `stride` bytes apart. */
static int read_rows(struct image_scratch *s, GifFileType *gif, uint8_t *index, size_t stride) {
    const GifImageDesc *frame = &gif->Image;
    struct lzw z = {.gif = gif};
    struct place p = {.index = index + (size_t)frame->Top * stride + (size_t)frame->Left,
                      .stride = stride,
                      .width = frame->Width,
                      .height = frame->Height,
                      .interlaced = frame->Interlace};
    int bits;
    p.row = p.index;
    if (DGifGetCode(gif, &bits, &z.block) == GIF_ERROR || bits < 1 || bits > 8)
        return broken(s, gif, "its pixels cannot be decoded");
    const char *wrong = read_codes(&z, bits, &p);
    return wrong != NULL ? broken(s, NULL, wrong) : 0;
}

/* A palette of greys in their order. */
static bool is_ramp(const ColorMapObject *map) {
    for (int i = 0; i < map->ColorCount; i++) {
        const GifColorType *c = &map->Colors[i];
        if (c->Red != i || c->Green != i || c->Blue != i) return false;
    }
    return true;
}

/* Colours of the indices. Without a palette, an index is a grey; beyond it, black. As in Pillow, a ramp
 * counts as no palette, and a local one that is a ramp leaves the global one in force. */
static void make_colours(const GifFileType *gif, uint8_t colour[256][3]) {
    const ColorMapObject *map = gif->Image.ColorMap;
    if (map == NULL || is_ramp(map)) map = gif->SColorMap;
    bool grey = map == NULL || is_ramp(map);
    for (int i = 0; i < 256; i++) {
        memset(colour[i], grey ? i : 0, 3);
        if (grey || i >= map->ColorCount) continue;
        colour[i][0] = map->Colors[i].Red;
        colour[i][1] = map->Colors[i].Green;
        colour[i][2] = map->Colors[i].Blue;
    }
}

static int decode(struct image_scratch *s, GifFileType *gif, size_t bytes,
                  const struct image_background *background, struct image *out) {
    int transparent;
    uint8_t colour[256][3];
    TRY(find_frame(s, gif, &transparent));
    const GifImageDesc *frame = &gif->Image;
    int64_t right = (int64_t)frame->Left + frame->Width, low = (int64_t)frame->Top + frame->Height;
    int64_t width = right > gif->SWidth ? right : gif->SWidth;
    int64_t height = low > gif->SHeight ? low : gif->SHeight;
    TRY(image_check_cost(s, background, width, height, bytes, 4 * (uint64_t)(width * height)));
    if (frame->Width < 1 || frame->Height < 1) return broken(s, NULL, "its first frame is empty");
    size_t n = (size_t)(width * height);
    uint8_t *index = buffer_reserve(&s->raw, n), *rgb = buffer_reserve(&s->rgb, 3 * n);
    memset(index, transparent >= 0 ? transparent : 0, n);
    TRY(read_rows(s, gif, index, (size_t)width));
    make_colours(gif, colour);
    if (transparent >= 0 && background->composite) memcpy(colour[transparent], background->rgb, 3);
    for (size_t i = 0; i < n; i++) memcpy(rgb + 3 * i, colour[index[i]], 3);
    *out = (struct image){rgb, (int)width, (int)height, bytes};
    return 0;
}

int image_decode_gif(struct image_scratch *s, size_t bytes,
                     const struct image_background *background, struct image *out) {
    struct reader r = {s->file.data, 0, bytes};
    int error = 0;
    GifFileType *gif = DGifOpen(&r, read_memory, &error);
    if (gif == NULL) return broken(s, NULL, "its header cannot be read");
    int rc = decode(s, gif, bytes, background, out);
    DGifCloseFile(gif, &error);
    return rc;
}
