/* What is pure about a pipeline: shapes at the cuts, what crosses them, what a stage holds; for all
 * 128 split_specs of the 3 + 2 + 4 stack. And the check of a message's header. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "model_kit.h"

static const struct kit_sample mixed[] = {
    {.length = 5, .first_target = 2},
    {.length = 9, .images = 1, .at = {1}, .first_target = 2},
    {.length = 12, .images = 2, .at = {0, 6}, .first_target = 0},
    {.length = 24, .images = 1, .at = {21}, .first_target = 5}};
static const struct kit_sample text_only[] = {{.length = 7, .first_target = 1}};

/* Calls each with every legal list of cuts [0, .., n_layers]. */
static int each_split(const struct stack *s,
                      void (*each)(const struct stack *s, const int *cut, int P, void *arg),
                      void *arg) {
    int n = 0;
    for (int mask = 0; mask < 1 << (s->n_layers - 1); mask++) {
        int cut[KIT_STAGES + 1] = {0}, P = 1;
        bool legal = true;
        for (int c = 1; c < s->n_layers; c++) {
            if (!(mask >> (c - 1) & 1)) continue;
            legal = legal && stack_cut_allowed(s, c);
            cut[P++] = c;
        }
        if (!legal) continue;
        cut[P] = s->n_layers;
        each(s, cut, P, arg);
        n++;
    }
    return n;
}

struct whole {
    struct stage st;
    const struct microbatch *mb;
    int p, r;
};

/* Rows and columns that the last block of a stage makes are those of the cut behind it. */
static void check_output(const struct stage *st, const struct whole *w) {
    const struct block *last = &st->block[st->n_blocks - 1];
    struct stream s[STREAMS_MAX];
    int64_t rows, cols;
    if (st->end == st->stack->n_layers) return;
    assert_int_equal(boundary_streams(st->stack, st->end, w->mb, w->p, w->r, DTYPE_F32, s), 1);
    last->ops->out_shape(last, w->mb, &rows, &cols);
    assert_int_equal(rows, s[0].rows);
    assert_int_equal(cols, s[0].cols);
    assert_true(s[0].gradient == st->output_gradient && s[0].dtype == DTYPE_F32);
}

static void check_split(const struct stack *s, const int *cut, int P, void *arg) {
    const struct whole *w = arg;
    int at = 0;
    int64_t weights = 0;
    bool last_gradient = false;
    for (int i = 0; i < P; i++) {
        struct stage st;
        assert_int_equal(stage_build(s, cut[i], cut[i + 1], w->p, w->r, REPEAT_NOTHING, 0, &st), 0);
        assert_int_equal(at, s->first_param[cut[i]]);
        assert_true(st.input_gradient == last_gradient);
        assert_true(st.input_gradient == s->gradient_crosses[cut[i]]);
        for (int k = 0; k < st.params.n; k++, at++) {
            assert_string_equal(st.params.param[k].name, w->st.params.param[at].name);
            weights += param_local_count(&st.params.param[k]);
        }
        check_output(&st, w);
        last_gradient = st.output_gradient;
        stage_free(&st);
    }
    assert_int_equal(at, w->st.params.n);
    int64_t expected = 0;
    for (int k = 0; k < at; k++) expected += param_local_count(&w->st.params.param[k]);
    assert_int_equal(weights, expected);
}

static void check_all(const struct config *c, const struct microbatch *mb, int specs, int p,
                      bool sp) {
    struct stack s = kit_stack(c);
    s.sequence_parallel = sp;
    for (int r = 0; r < p; r++) {
        struct whole w = {.mb = mb, .p = p, .r = r};
        assert_int_equal(stage_build(&s, 0, s.n_layers, p, r, REPEAT_NOTHING, 0, &w.st), 0);
        assert_int_equal(each_split(&s, check_split, &w), specs);
        stage_free(&w.st);
    }
    stack_free(&s);
}

static void test_splits(void **state) {
    (void)state;
    for (int v = 0; v < 4; v++) {
        struct config c = kit_config();
        c.vision.freeze_vit = v == 1 || v == 2;
        c.language.freeze_lm = v == 2;
        c.vision.disable_vision_class_token = v != 3;
        c.vision.vision_feature_layer = v == 3 ? -1 : -2;
        struct stack s = kit_stack(&c);
        struct kit_batch b[2] = {kit_batch_make(&s, mixed, 4, 1, 0, 0),
                                 kit_batch_make(&s, text_only, 1, 1, 0, 0)};
        for (int i = 0; i < 2; i++) {
            check_all(&c, &b[i].mb, 128, 1, false);
            check_all(&c, &b[i].mb, 128, 3, v % 2 == 1);
            check_all(&c, &b[i].mb, 128, 2, true);
        }
        c.projector.projector_type = PROJECTOR_AFFINE;
        check_all(&c, &b[0].mb, 128, 2, true);
        kit_batch_free(&b[0]);
        kit_batch_free(&b[1]);
        stack_free(&s);
    }
}

static struct stream stream_at(const struct stack *s, int cut, const struct microbatch *mb) {
    struct stream out[STREAMS_MAX];
    assert_int_equal(boundary_streams(s, cut, mb, 1, 0, DTYPE_F32, out), 1);
    return out[0];
}

/* The published sizes: 577 rows of a tile inside the tower, 576 behind it; 1024 and 4096 wide. */
static void test_mistral_shapes(void **state) {
    (void)state;
    struct config c = kit_config();
    c.vision.num_layers = 24;
    c.vision.hidden_size = 1024;
    c.vision.num_attention_heads = 16;
    c.vision.img_h = c.vision.img_w = 336;
    c.vision.patch_dim = 14;
    c.language.num_layers = 32;
    c.language.hidden_size = 4096;
    c.vision.freeze_vit = true;
    struct stack s = kit_stack(&c);
    struct microbatch mb = {.samples = 2, .images = 3, .tiles = 3, .tokens = 1900};
    assert_int_equal(s.n_layers, 58);
    const struct {
        int cut;
        int64_t rows, cols;
        bool gradient;
    } expected[] = {{1, 3 * 577, 1024, false},  {23, 3 * 577, 1024, false},
                    {24, 3 * 576, 1024, false}, {26, 3 * 576, 4096, true},
                    {27, 1900, 4096, true},     {57, 1900, 4096, true}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        struct stream o = stream_at(&s, expected[i].cut, &mb);
        assert_int_equal(o.rows, expected[i].rows);
        assert_int_equal(o.cols, expected[i].cols);
        assert_true(o.gradient == expected[i].gradient);
    }
    assert_false(stack_cut_allowed(&s, 25));
    assert_false(stack_cut_allowed(&s, 0));
    assert_false(stack_cut_allowed(&s, 58));
    stack_free(&s);
}

/* Shares of all ranks make up the whole; a tower row keeps its owner when class rows are dropped. */
static void test_row_shares(void **state) {
    (void)state;
    for (int64_t tile = 2; tile <= 9; tile++)
        for (int64_t tiles = 0; tiles <= 7; tiles++)
            for (int p = 1; p <= 8; p++) {
                struct microbatch mb = {.tiles = tiles, .tokens = tiles * 3 + tile};
                struct row_split tower, image, text;
                rows_split(ROWS_VISION, &mb, tile, false, p, &tower);
                rows_split(ROWS_IMAGE, &mb, tile, true, p, &image);
                rows_split(ROWS_TEXT, &mb, tile, false, p, &text);
                assert_int_equal(tower.offset[p], tiles * tile);
                assert_int_equal(image.offset[p], tiles * (tile - 1));
                assert_int_equal(text.offset[p], mb.tokens);
                for (int r = 0; r < p; r++) {
                    int64_t kept = 0;
                    for (int64_t i = tower.offset[r]; i < tower.offset[r + 1]; i++)
                        kept += i % tile != 0;
                    assert_int_equal(image.offset[r + 1] - image.offset[r], kept);
                    assert_in_range(tower.offset[r + 1] - tower.offset[r], tiles * tile / p,
                                    (tiles * tile + p - 1) / p);
                }
            }
}

/* ---- headers ------------------------------------------------------------------------------------------ */

static struct message_header header(void) {
    struct message_header h;
    memset(&h, 0, sizeof h);
    h.magic = 0x41525453;
    h.version = 1;
    h.direction = 1;
    h.step = 12;
    h.micro_batch = 3;
    h.cut = 26;
    h.source = 2;
    h.destination = 1;
    h.rows = 576;
    h.cols = 4096;
    h.payload_bytes = 576 * 4096 * 4;
    h.descriptor_hash = 0x8123456789abcdef;
    return h;
}

/* Any byte that differs is an error that says which field, and both stages. */
static void test_header(void **state) {
    (void)state;
    static const struct {
        size_t offset, size;
        const char *name;
    } field[] = {
#define FIELD(f, text)                                                                             \
    {offsetof(struct message_header, f), sizeof(((struct message_header *)0)->f), text}
        FIELD(magic, "magic"),
        FIELD(version, "version"),
        FIELD(direction, "direction"),
        FIELD(stream, "stream"),
        FIELD(step, "step"),
        FIELD(micro_batch, "micro-batch"),
        FIELD(cut, "cut"),
        FIELD(source, "source stage"),
        FIELD(destination, "destination stage"),
        FIELD(dtype, "dtype"),
        FIELD(flags, "flags"),
        FIELD(tp, "tp"),
        FIELD(rows, "rows"),
        FIELD(cols, "columns"),
        FIELD(reserved, "reserved"),
        FIELD(payload_bytes, "payload bytes"),
        FIELD(descriptor_hash, "descriptor hash"),
    };
    struct message_header expected = header(), got = expected;
    size_t covered = 0;
    assert_int_equal(message_check(&got, &expected), 0);
    for (size_t i = 0; i < sizeof field / sizeof *field; i++) {
        covered += field[i].size;
        for (size_t byte = 0; byte < field[i].size; byte++) {
            got = expected;
            ((unsigned char *)&got)[field[i].offset + byte] ^= 0x10;
            assert_int_equal(message_check(&got, &expected), EXIT_INTERNAL);
            char text[64];
            snprintf(text, sizeof text, "disagree: %s ", field[i].name);
            if (strstr(error_text(), text) == NULL) fail_msg("%s: %s", field[i].name, error_text());
            assert_non_null(strstr(error_text(), "from stage 2 to stage 1"));
            assert_non_null(strstr(error_text(), "instead of"));
            error_clear();
        }
    }
    assert_int_equal(covered, MESSAGE_HEADER_BYTES);
    memset(&got, 0xff, sizeof got); /* everything at once: nothing is lost */
    assert_int_equal(message_check(&got, &expected), EXIT_INTERNAL);
    assert_non_null(strstr(error_text(), "descriptor hash"));
    error_clear();
}

/* The hash of a descriptor depends on every field. */
static void test_descriptor_hash(void **state) {
    (void)state;
    struct config c = kit_config();
    struct stack s = kit_stack(&c);
    struct kit_batch b = kit_batch_make(&s, mixed, 4, 1, 0, 0);
    uint64_t hash = b.mb.hash;
    int64_t *number[] = {&b.mb.step,     &b.mb.index,     &b.mb.first_sample, &b.mb.image_rows,
                         &b.mb.tokens,   &b.mb.targets,   &b.mb.max_segment,  &b.mb.tiles,
                         &b.mb.newlines, &b.sample_id[2], &b.cu_tokens[3],    &b.image_row[1]};
    int32_t *small[] = {&b.text_len[0], &b.sample_images[2], &b.image_tiles[3]};
    assert_true(microbatch_hash(&b.mb) == hash);
    for (size_t i = 0; i < sizeof number / sizeof *number; i++) {
        ++*number[i];
        assert_true(microbatch_hash(&b.mb) != hash);
        --*number[i];
    }
    for (size_t i = 0; i < sizeof small / sizeof *small; i++) {
        ++*small[i];
        assert_true(microbatch_hash(&b.mb) != hash);
        --*small[i];
    }
    kit_batch_free(&b);
    stack_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_splits),          cmocka_unit_test(test_mistral_shapes),
        cmocka_unit_test(test_row_shares),      cmocka_unit_test(test_header),
        cmocka_unit_test(test_descriptor_hash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
