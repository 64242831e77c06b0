/* What a file is, by its first bytes and never by its name; and what decoding it may cost. */
#include <string.h>
#include <strings.h>

#include "image_impl.h"

int image_check_size(struct image_scratch *s, int64_t width, int64_t height) {
    if (width < 1 || height < 1)
        return image_fail(s, EXIT_BAD_DATA, "is %lld x %lld pixels: empty", (long long)width,
                          (long long)height);
    if (width > IMAGE_SIDE_MAX || height > IMAGE_SIDE_MAX || width * height > IMAGE_PIXELS_MAX)
        return image_fail(
            s, EXIT_BAD_DATA, "is %lld x %lld pixels, allowed are %d a side and %lld in all",
            (long long)width, (long long)height, IMAGE_SIDE_MAX, (long long)IMAGE_PIXELS_MAX);
    return 0;
}

/* The smallest canvas of the target's aspect that holds the image. */
void image_canvas(const struct image_background *b, int64_t width, int64_t height,
                  int64_t *canvas_width, int64_t *canvas_height) {
    *canvas_width = width;
    *canvas_height = height;
    if (b->pad_w <= 0 || b->pad_h <= 0) return;
    int64_t w = height * b->pad_w / b->pad_h, h = width * b->pad_h / b->pad_w;
    if (width * b->pad_h > height * b->pad_w)
        *canvas_height = h > height ? h : height;
    else
        *canvas_width = w > width ? w : width;
}

int image_check_cost(struct image_scratch *s, const struct image_background *b, int64_t width,
                     int64_t height, size_t file_bytes, uint64_t memory) {
    int64_t canvas_width, canvas_height;
    TRY(image_check_size(s, width, height));
    image_canvas(b, width, height, &canvas_width, &canvas_height);
    if (canvas_width > IMAGE_PIXELS_MAX / canvas_height)
        return image_fail(s, EXIT_BAD_DATA,
                          "is %lld x %lld pixels: padded to the target's aspect it would have more "
                          "than the %lld allowed",
                          (long long)width, (long long)height, (long long)IMAGE_PIXELS_MAX);
    uint64_t allowed = IMAGE_MEMORY_BASE + IMAGE_MEMORY_PER_BYTE * (uint64_t)file_bytes;
    if (memory > allowed)
        return image_fail(s, EXIT_BAD_DATA,
                          "is %lld x %lld pixels in a file of %zu bytes: decoding it would take "
                          "%llu bytes of memory, allowed for a file of that size are %llu",
                          (long long)width, (long long)height, file_bytes,
                          (unsigned long long)memory, (unsigned long long)allowed);
    return 0;
}

static bool begins(const uint8_t *data, size_t bytes, const char *magic, size_t n) {
    return bytes >= n && memcmp(data, magic, n) == 0;
}

/* ---- what is refused by its name ------------------------------------------------------------- */

static const struct {
    const char *kind;
    size_t at, n; /* the n bytes of magic stand at `at` */
    const char *magic;
} other[] = {
    {"TIFF", 0, 4, "II*\0"},
    {"TIFF", 0, 4, "MM\0*"},
    {"TIFF", 0, 4, "II+\0"},
    {"TIFF", 0, 4, "MM\0+"},
    {"AVIF", 4, 8, "ftypavif"},
    {"AVIF", 4, 8, "ftypavis"},
    {"HEIC", 4, 8, "ftypheic"},
    {"HEIC", 4, 8, "ftypheix"},
    {"HEIC", 4, 8, "ftyphevc"},
    {"HEIC", 4, 8, "ftypmif1"},
    {"HEIC", 4, 8, "ftypmsf1"},
    {"video or another ISO media file", 4, 4, "ftyp"},
    {"JPEG 2000", 0, 12, "\0\0\0\x0cjP  \r\n\x87\n"},
    {"JPEG 2000", 0, 4, "\xff\x4f\xff\x51"},
    {"JPEG XL", 0, 2, "\xff\x0a"},
    {"JPEG XL", 0, 8, "\0\0\0\x0cJXL "},
    {"Photoshop document", 0, 4, "8BPS"},
    {"Windows icon", 0, 4, "\0\0\1\0"},
    {"PDF", 0, 5, "%PDF-"},
    {"ZIP archive", 0, 4, "PK\3\4"},
    {"gzip archive", 0, 2, "\x1f\x8b"},
    {"tar archive", 257, 5, "ustar"},
    {"HDF5 file", 0, 4, "\x89HDF"},
    {"NumPy array", 0, 6, "\x93NUMPY"},
    {"Netpbm image", 0, 3, "P6\n"},
    {"Netpbm image", 0, 3, "P5\n"},
    {"BMP", 0, 2, "BM"},
};

static const char *text_kind(const uint8_t *data, size_t bytes) {
    size_t at = begins(data, bytes, "\xef\xbb\xbf", 3) ? 3 : 0;
    while (at < bytes && strchr(" \t\r\n", data[at]) != NULL && data[at] != '\0') at++;
    const char *text = (const char *)data + at;
    size_t n = bytes - at;
    if ((n >= 9 && strncasecmp(text, "<!doctype", 9) == 0 && memmem(text, n, "svg", 3) == NULL) ||
        (n >= 5 && strncasecmp(text, "<html", 5) == 0))
        return "an HTML page";
    size_t head = n < 1024 ? n : 1024; /* a comment or a document type may stand before <svg */
    if (n >= 1 && text[0] == '<' && memmem(text, head, "<svg", 4) != NULL) return "SVG";
    if (n >= 5 && memcmp(text, "<?xml", 5) == 0) return "XML text";
    if (n >= 2 && text[0] == '{' && memchr(text, '"', head) != NULL) return "JSON text";
    return NULL;
}

static int refuse(struct image_scratch *s, const uint8_t *data, size_t bytes) {
    if (lfs_pointer(data, bytes)) return image_fail(s, EXIT_BAD_DATA, "%s", LFS_POINTER);
    const char *kind = text_kind(data, bytes);
    if (kind != NULL && strcmp(kind, "SVG") != 0)
        return image_fail(s, EXIT_BAD_DATA,
                          "holds %s by its first bytes, as a failed download leaves it: fetch it "
                          "again; " IMAGE_KINDS_READ,
                          kind);
    for (size_t i = 0; i < sizeof other / sizeof other[0] && kind == NULL; i++)
        if (bytes >= other[i].at + other[i].n &&
            memcmp(data + other[i].at, other[i].magic, other[i].n) == 0)
            kind = other[i].kind;
    if (kind != NULL)
        return image_fail(s, EXIT_BAD_DATA,
                          "holds %s by its first bytes, whatever its name says; " IMAGE_KINDS_READ,
                          kind);
    return image_fail(s, EXIT_BAD_DATA,
                      "is neither PNG, JPEG, WebP nor GIF: it begins with bytes %02x %02x %02x "
                      "%02x",
                      data[0], bytes > 1 ? data[1] : 0, bytes > 2 ? data[2] : 0,
                      bytes > 3 ? data[3] : 0);
}

int image_decode(struct image_scratch *s, size_t bytes, const struct image_background *background,
                 struct image *out) {
    const uint8_t *data = s->file.data;
    out->file_bytes = bytes;
    if (bytes == 0) return image_fail(s, EXIT_BAD_DATA, "is empty (0 bytes)");
    if (begins(data, bytes, "\x89PNG\r\n\x1a\n", 8))
        return image_decode_png(s, bytes, background, out);
    if (begins(data, bytes, "\xff\xd8\xff", 3)) return image_decode_jpeg(s, bytes, background, out);
    if (begins(data, bytes, "RIFF", 4) && bytes >= 12 && memcmp(data + 8, "WEBP", 4) == 0)
        return image_decode_webp(s, bytes, background, out);
    if (begins(data, bytes, "GIF87a", 6) || begins(data, bytes, "GIF89a", 6))
        return image_decode_gif(s, bytes, background, out);
    return refuse(s, data, bytes);
}
