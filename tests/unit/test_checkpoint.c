/* checkpoint without MPI: boxes, the write plan, the manifest and its enemies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "../../src/checkpoint/ckpt_impl.h"
#include "ckpt_model.h"

static int64_t flat_index(int n, const int64_t *extent, const int64_t *at) {
    int64_t flat = 0;
    for (int d = 0; d < n; d++) flat = flat * extent[d] + at[d];
    return flat;
}

/* Adds one to every cell of the box. */
static void paint(const struct box *b, const int64_t *extent, int *cell) {
    for (int64_t i = 0; i < box_volume(b); i++) {
        int64_t at[CKPT_DIMS], rest = i;
        for (int d = b->n - 1; d >= 0; d--) {
            at[d] = b->offset[d] + rest % b->count[d];
            rest /= b->count[d];
        }
        cell[flat_index(b->n, extent, at)]++;
    }
}

static void flat_ranges_become_boxes(void **state) {
    static const int64_t shapes[][CKPT_DIMS] = {{7},          {3, 5}, {2, 3, 4},
                                                {2, 3, 2, 3}, {1, 6}, {5, 1}};
    static const int dims[] = {1, 2, 3, 4, 2, 2};
    (void)state;
    for (size_t s = 0; s < sizeof dims / sizeof dims[0]; s++) {
        int64_t total = 1;
        for (int d = 0; d < dims[s]; d++) total *= shapes[s][d];
        for (int64_t a = 0; a < total; a++)
            for (int64_t b = a + 1; b <= total; b++) {
                struct box box[BOX_FLAT_MAX];
                int cell[64] = {0};
                int n = box_from_flat(dims[s], shapes[s], a, b - a, box);
                assert_true(n <= 2 * dims[s] - 1);
                for (int i = 0; i < n; i++) {
                    assert_true(box_inside(&box[i], shapes[s]));
                    paint(&box[i], shapes[s], cell);
                }
                for (int64_t i = 0; i < total; i++) assert_int_equal(cell[i], i >= a && i < b);
            }
    }
}

static void boxes_intersect(void **state) {
    (void)state;
    struct box a = {2, {0, 4}, {3, 4}}, b = {2, {2, 6}, {5, 9}}, c = {2, {3, 4}, {1, 4}}, out;
    assert_true(box_intersect(&a, &b, &out));
    assert_int_equal(out.offset[0], 2);
    assert_int_equal(out.count[0], 1);
    assert_int_equal(out.offset[1], 6);
    assert_int_equal(out.count[1], 2);
    assert_false(box_intersect(&a, &c, &out));
}

/* ---- the write plan ------------------------------------------------------------------------------------ */
static void download(struct backend *be, void *host, const void *device, size_t bytes) {
    (void)be;
    memcpy(host, device, bytes);
}
static void upload(struct backend *be, void *device, const void *host, size_t bytes) {
    (void)be;
    memcpy(device, host, bytes);
}
static const struct backend_ops ops = {.name = "test", .download = download, .upload = upload};
static struct backend memory = {.ops = &ops, .dtype = DTYPE_F32, .acc = DTYPE_F64};

struct ledger { /* how often each element of each (param, role) is written */
    int *cell[64][3];
    int64_t bytes[64];
};

static int ledger_role(enum ckpt_role role) {
    return role == CKPT_WEIGHT ? 0 : role == CKPT_MOMENT1 ? 1 : 2;
}

/* The bytes of each box must be those that the record says belong at these global indices. */
static void check_part(const struct model *m, const struct part *p) {
    const struct param *param = &m->set.param[p->param];
    int64_t n = box_volume(&p->box);
    size_t size = dtype_size(p->dtype);
    char *host = xmalloc((size_t)part_bytes(p)), value[8];
    part_download(p, &p->box, &memory, host);
    for (int64_t i = 0; i < n; i++) {
        int64_t at[CKPT_DIMS], rest = i;
        for (int d = p->box.n - 1; d >= 0; d--) {
            at[d] = p->box.offset[d] + rest % p->box.count[d];
            rest /= p->box.count[d];
        }
        int64_t index = flat_index(param->ndim, param->shape, at);
        model_value(p->dtype, model_bits(param->name, ledger_role(p->role), index, 3), value);
        assert_memory_equal(host + (size_t)i * size, value, size);
    }
    part_upload(p, &p->box, &memory, host);
    free(host);
}

static void write_rank(struct ledger *book, int tp, int dp, int t, int d, bool sharded) {
    struct model m;
    struct part_list list = {0};
    struct plan_layout layout = {.tp = tp, .dp = dp, .tp_rank = t, .dp_rank = d};
    model_build(&m, &memory, (int[]){tp, t}, (int[]){1, 0}, (int[]){dp, d}, sharded);
    model_fill(&m, 3);
    parts_to_write(&m.state, &layout, NULL, true, &list);
    for (int64_t i = 0; i < list.n; i++) {
        const struct part *p = &list.part[i];
        const struct param *param = &m.set.param[p->param];
        int **cell = &book->cell[p->param][ledger_role(p->role)];
        if (!*cell) *cell = xcalloc((size_t)param_global_count(param), sizeof **cell);
        assert_true(box_inside(&p->box, param->shape));
        paint(&p->box, param->shape, *cell);
        check_part(&m, p);
        book->bytes[d * tp + t] += part_bytes(p);
    }
    assert_int_equal(model_wrong(&m, 3, true), 0);
    part_list_free(&list);
    model_free(&m);
}

static void plan_writes_everything_once(void **state) {
    (void)state;
    for (int tp = 1; tp <= 5; tp++)
        for (int dp = 1; dp <= 4; dp++)
            for (int sharded = 0; sharded < 2; sharded++) {
                struct ledger book = {0};
                struct model whole;
                for (int r = 0; r < tp * dp; r++)
                    write_rank(&book, tp, dp, r % tp, r / tp, sharded != 0);
                model_build(&whole, &memory, (int[]){1, 0}, (int[]){1, 0}, (int[]){1, 0}, false);
                for (int i = 0; i < whole.set.n; i++)
                    for (int role = 0; role < 3; role++) {
                        const struct param *p = &whole.set.param[i];
                        int *cell = book.cell[i][role];
                        if (role > 0 && !p->trainable) {
                            assert_null(cell);
                            continue;
                        }
                        assert_non_null(cell);
                        for (int64_t k = 0; k < param_global_count(p); k++)
                            assert_int_equal(cell[k], 1);
                        free(cell);
                    }
                model_free(&whole);
            }
}

/* Tensors large enough to be shared out: the fullest writer has <= 1.10 x the mean. */
static void plan_is_balanced(void **state) {
    (void)state;
    for (int tp = 1; tp <= 4; tp *= 2)
        for (int dp = 1; dp <= 8; dp++) {
            int64_t most = 0, total = 0;
            for (int r = 0; r < tp * dp; r++) {
                struct param_set set = {0};
                struct part_list list = {0};
                for (int layer = 0; layer < 12; layer++) {
                    char name[64];
                    snprintf(name, sizeof name, "model/layers/%03d/a/weight", layer);
                    param_declare(&set, model_param(name, layer, "o,i", 2,
                                                    (int64_t[]){1024, 768 + 64 * layer},
                                                    cut_even(0, 1024, 1), true));
                    snprintf(name, sizeof name, "model/layers/%03d/norm/weight", layer);
                    param_declare(&set, model_param(name, layer, "f", 1, (int64_t[]){20000},
                                                    cut_none(), true));
                }
                assert_int_equal(param_set_layout(&set, tp, r % tp), 0);
                for (int i = 0; i < set.n; i++)
                    set.param[i].w =
                        tensor_view(NULL, set.param[i].rows, set.param[i].cols, DTYPE_F32);
                struct ckpt_state s = {.set = &set, .be = &memory};
                struct plan_layout layout = {tp, dp, r % tp, r / tp};
                int64_t bytes = 0;
                parts_to_write(&s, &layout, NULL, true, &list);
                for (int64_t i = 0; i < list.n; i++) bytes += part_bytes(&list.part[i]);
                most = bytes > most ? bytes : most;
                total += bytes;
                part_list_free(&list);
                param_set_free(&set);
            }
            assert_true((double)most * tp * dp <= 1.10 * (double)total);
        }
}

/* ---- the manifest -------------------------------------------------------------------------------------------- */
static struct ckpt_manifest *small_manifest(void) {
    struct ckpt_manifest *m = xcalloc(1, sizeof *m);
    memcpy(m->uuid, "0a", 3);
    memcpy(m->created, "1970-01-01T00:00:00Z", 21);
    m->step = 7;
    m->tp = m->writers = 2;
    m->pp = m->dp = 1;
    m->split_spec = xstrdup("3,4");
    for (int i = 0; i < 2; i++) {
        char name[64];
        ckpt_shard_name(name, sizeof name, 7, i, 2);
        struct ckpt_file *f = manifest_add_file(m, name);
        f->bytes = 4096;
        f->crc = 0xdeadbeef;
    }
    struct ckpt_tensor *t = manifest_add_tensor(m, "model/a/weight");
    *t = (struct ckpt_tensor){.name = t->name, .dtype = DTYPE_F32, .n_dims = 2, .shape = {8, 6}};
    for (int i = 0; i < 2; i++) {
        struct ckpt_block *b = manifest_add_block(t);
        *b = (struct ckpt_block){.file = i, .box = {2, {4 * i, 0}, {4, 6}}, .file_offset = 1024};
        b->dataset = xstrdup("model/a/weight");
        b->bytes = 96;
        b->n_crc = 1;
        b->crc = xcalloc(1, sizeof *b->crc);
    }
    return m;
}

static void manifest_survives_the_text(void **state) {
    (void)state;
    struct ckpt_manifest *m = small_manifest(), *back;
    size_t bytes, again;
    char *text = manifest_text(m, &bytes);
    assert_int_equal(manifest_parse("m", text, bytes, &back), 0);
    char *second = manifest_text(back, &again);
    assert_string_equal(text, second);
    assert_int_equal(manifest_check_coverage(back, "m"), 0);
    assert_non_null(manifest_find(back, "model/a/weight"));
    assert_null(manifest_find(back, "model/b"));
    free(text);
    free(second);
    manifest_free(m);
    manifest_free(back);
}

static void every_flipped_bit_is_found(void **state) {
    (void)state;
    struct ckpt_manifest *m = small_manifest(), *back;
    size_t bytes;
    char *text = manifest_text(m, &bytes);
    for (size_t i = 0; i < bytes; i++)
        for (int bit = 0; bit < 8; bit++) {
            text[i] = (char)(text[i] ^ (1 << bit));
            assert_int_not_equal(manifest_parse("m", text, bytes, &back), 0);
            text[i] = (char)(text[i] ^ (1 << bit));
        }
    for (size_t n = 0; n < bytes; n++) assert_int_not_equal(manifest_parse("m", text, n, &back), 0);
    error_clear();
    free(text);
    manifest_free(m);
}

/* Edited with a right checksum: refused for what it says. */
static int parse_edited(const char *from, const char *to) {
    struct ckpt_manifest *m = small_manifest(), *back;
    size_t bytes;
    char *text = manifest_text(m, &bytes), *at = strstr(text, from);
    assert_non_null(at);
    char *edited = xasprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    char *crc = strstr(edited, "\"crc32c\": \"") + strlen("\"crc32c\": \""), digits[9];
    memcpy(crc, "00000000", 8);
    snprintf(digits, sizeof digits, "%08x", crc32c(0, edited, strlen(edited)));
    memcpy(crc, digits, 8);
    error_clear();
    int rc = manifest_parse("m", edited, strlen(edited), &back);
    if (!rc) rc = manifest_check_coverage(back, "m");
    manifest_free(back);
    free(edited);
    free(text);
    manifest_free(m);
    return rc;
}

static void edited_manifests_are_refused(void **state) {
    static const struct {
        const char *from, *to, *says;
        int code;
    } edit[] = {
        {"1.0.0", "1.7.0", "", 0},
        {"1.0.0", "3.0.0", "newer strata", EXIT_RESUME},
        {"1.0.0", "2.0.0", "without a member", EXIT_BAD_DATA},
        {"strata-checkpoint", "other", "not a checkpoint", EXIT_BAD_DATA},
        {"iter_0000007-shard-00000-of-00002.h5", "../x.h5", "plain name", EXIT_BAD_DATA},
        {"iter_0000007-shard-00000-of-00002.h5", "/etc/passwd", "plain name", EXIT_BAD_DATA},
        {"iter_0000007-shard-00001-of-00002.h5", "iter_0000007-shard-00000-of-00002.h5",
         "listed twice", EXIT_BAD_DATA},
        {"\"bytes\": 4096", "\"bytes\": 100", "fit", EXIT_BAD_DATA},
        {"\"bytes\": 96", "\"bytes\": 95", "fit", EXIT_BAD_DATA},
        {"\"file_offset\": 1024", "\"file_offset\": 9223372036854775807", "fit", EXIT_BAD_DATA},
        {"\"file_offset\": 1024", "\"file_offset\": -1", "least allowed", EXIT_BAD_DATA},
        {"\"model/a/weight\"", "\"model/../weight\"", "name", EXIT_BAD_DATA},
        {"\"fp32\"", "\"fp31\"", "dtype", EXIT_BAD_DATA},
        {"\"step\": 7", "\"step\": 7.5", "kind", EXIT_BAD_DATA},
        {"\"tp\": 2", "\"tp\": 0", "least allowed", EXIT_BAD_DATA},
        {"\"aliases\": []", "\"aliases\": [}", "", EXIT_BAD_DATA},
    };
    (void)state;
    for (size_t i = 0; i < sizeof edit / sizeof edit[0]; i++) {
        int rc = parse_edited(edit[i].from, edit[i].to);
        if (rc != edit[i].code || (rc && !strstr(error_text(), edit[i].says)))
            fail_msg("%s -> %s: code %d, \"%s\"", edit[i].from, edit[i].to, rc, error_text());
    }
    error_clear();
}

static void coverage_is_proved(void **state) {
    (void)state;
    static const struct {
        struct box second;
        const char *says;
    } wrong[] = {{{2, {3, 0}, {4, 6}}, "overlap"},
                 {{2, {4, 0}, {3, 6}}, "missing"},
                 {{2, {4, 0}, {4, 5}}, "missing"},
                 {{2, {5, 0}, {4, 6}}, "outside"}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct ckpt_manifest *m = small_manifest();
        m->tensor[0].block[1].box = wrong[i].second;
        manifest_sort(m);
        error_clear();
        assert_int_equal(manifest_check_coverage(m, "m"), EXIT_BAD_DATA);
        assert_non_null(strstr(error_text(), wrong[i].says));
        assert_non_null(strstr(error_text(), "model/a/weight"));
        manifest_free(m);
    }
    error_clear();
}

static void names_of_folders(void **state) {
    (void)state;
    assert_int_equal(ckpt_folder_step("iter_0001000"), 1000);
    assert_int_equal(ckpt_folder_step("iter_12345678"), 12345678);
    assert_int_equal(ckpt_folder_step("iter_100"), -1);
    assert_int_equal(ckpt_folder_step("iter_0001000.tmp-4-0"), -1);
    assert_int_equal(ckpt_folder_step("iter_0001000.refused"), -1);
    assert_int_equal(ckpt_folder_step("iter_99999999999999999999"), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flat_ranges_become_boxes),
        cmocka_unit_test(boxes_intersect),
        cmocka_unit_test(plan_writes_everything_once),
        cmocka_unit_test(plan_is_balanced),
        cmocka_unit_test(manifest_survives_the_text),
        cmocka_unit_test(every_flipped_bit_is_found),
        cmocka_unit_test(edited_manifests_are_refused),
        cmocka_unit_test(coverage_is_proved),
        cmocka_unit_test(names_of_folders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
