/* The one door to libwebp: the first frame of a WebP file on its canvas, as Pillow's animation decoder
 * makes it: what the frame leaves free is black and transparent. */
#include <string.h>

#include <webp/decode.h>
#include <webp/demux.h>

#include "image_impl.h"

static int broken(struct image_scratch *s, const char *what) {
    return image_fail(s, EXIT_BAD_DATA, "is a broken or truncated WebP: %s", what);
}

/* RGBA of the frame into its place on the canvas of width x height. */
static int decode_frame(struct image_scratch *s, const WebPIterator *frame, int width, int height,
                        uint8_t *rgba) {
    WebPDecoderConfig config;
    size_t stride = 4 * (size_t)width;
    bool whole = frame->width == width && frame->height == height;
    if (!WebPInitDecoderConfig(&config))
        return image_fail(s, EXIT_UNAVAILABLE, "libwebp is another version than its header");
    if (frame->width < 1 || frame->height < 1 || frame->x_offset < 0 || frame->y_offset < 0 ||
        frame->width > width - frame->x_offset || frame->height > height - frame->y_offset)
        return broken(s, "its first frame is not inside its canvas");
    if (!whole) memset(rgba, 0, stride * (size_t)height);
    config.output.colorspace = MODE_RGBA;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba =
        rgba + (size_t)frame->y_offset * stride + 4 * (size_t)frame->x_offset;
    config.output.u.RGBA.stride = (int)stride;
    config.output.u.RGBA.size = stride * (size_t)frame->height - 4 * (size_t)frame->x_offset;
    VP8StatusCode code = WebPDecode(frame->fragment.bytes, frame->fragment.size, &config);
    return code == VP8_STATUS_OK ? 0
           : code == VP8_STATUS_OUT_OF_MEMORY
               ? image_fail(s, EXIT_BAD_DATA, "needs more memory than there is")
               : broken(s, "its pixels cannot be decoded");
}

/* In place: a pixel's three bytes never reach the four of the next. */
static void drop_alpha(uint8_t *rgba, size_t n, const struct image_background *background,
                       bool alpha) {
    uint8_t *rgb = rgba;
    for (size_t i = 0; i < n; i++, rgba += 4, rgb += 3) {
        uint8_t a = rgba[3];
        for (int c = 0; c < 3; c++)
            rgb[c] = alpha && background->composite ? image_blend(rgba[c], background->rgb[c], a)
                                                    : rgba[c];
    }
}

int image_decode_webp(struct image_scratch *s, size_t bytes,
                      const struct image_background *background, struct image *out) {
    WebPBitstreamFeatures f;
    if (WebPGetFeatures(s->file.data, bytes, &f) != VP8_STATUS_OK)
        return broken(s, "its header cannot be read");
    /* RGBA, and once more that for what is lossless, alpha with a plane of its own included. */
    uint64_t pixels = (uint64_t)f.width * (uint64_t)f.height;
    bool lossy = f.format == 1 && !f.has_alpha;
    TRY(image_check_cost(s, background, f.width, f.height, bytes, (lossy ? 4 : 9) * pixels));
    WebPData data = {s->file.data, bytes};
    WebPDemuxer *demuxer = WebPDemux(&data);
    if (demuxer == NULL) return broken(s, "its chunks do not fit, or the file ends early");
    out->width = f.width;
    out->height = f.height;
    out->rgb = buffer_reserve(&s->rgb, 4 * (size_t)pixels);
    WebPIterator frame = {0};
    int rc = WebPDemuxGetFrame(demuxer, 1, &frame)
                 ? decode_frame(s, &frame, out->width, out->height, out->rgb)
                 : broken(s, "it has no frame");
    WebPDemuxReleaseIterator(&frame);
    if (rc == 0) drop_alpha(out->rgb, (size_t)pixels, background, f.has_alpha);
    WebPDemuxDelete(demuxer);
    return rc;
}
