/* Checkpoints of every working type (fp32, bf16, fp16 weights; moments of fp32 or fp64): saved in one
 * layout and loaded into another bit for bit, NaN patterns too; and read as fp32 rows of whole tensors
 * (ckpt_reader), whatever layout wrote them. Ranks are processes without MPI (team.h). */
#include <math.h>

#include "ckpt_team.h"

static void host_copy(struct backend *be, void *to, const void *from, size_t bytes) {
    (void)be;
    memcpy(to, from, bytes);
}
static void nothing(struct backend *be) {
    (void)be;
}
static const struct backend_ops host_ops = {
    .name = "host", .download = host_copy, .upload = host_copy, .synchronize = nothing};

/* The fp32 value of an element, spelled out: what is stored is sign, exponent, mantissa. */
static float as_float(enum dtype t, const char bits[8]) {
    uint16_t h;
    double d;
    float f;
    if (t == DTYPE_F32) {
        memcpy(&f, bits, 4);
        return f;
    }
    if (t == DTYPE_F64) {
        memcpy(&d, bits, 8);
        return (float)d;
    }
    memcpy(&h, bits, 2);
    int exponent_bits = t == DTYPE_BF16 ? 8 : 5, mantissa_bits = 15 - exponent_bits;
    int exponent = h >> mantissa_bits & ((1 << exponent_bits) - 1);
    int mantissa = h & ((1 << mantissa_bits) - 1), bias = (1 << (exponent_bits - 1)) - 1;
    float sign = h >> 15 ? -1.0f : 1.0f;
    if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexpf((float)mantissa, 1 - bias - mantissa_bits);
    return sign * ldexpf((float)(mantissa + (1 << mantissa_bits)), exponent - bias - mantissa_bits);
}

/* Rows [first, first+n) of one tensor; the elements that differ. */
static int64_t compare_rows(struct ckpt_reader *r, const struct param *p, int64_t first, int64_t n,
                            int version) {
    int64_t cols = param_global_count(p) / p->shape[0], wrong = 0;
    float *rows = xcalloc((size_t)(n * cols) + 1, sizeof *rows);
    if (ckpt_reader_rows(r, p, first, n, rows) != 0) wrong = n * cols;
    for (int64_t i = 0; i < n * cols && !wrong; i++) {
        char bits[8];
        model_value(case_backend->dtype, model_bits(p->name, 0, first * cols + i, version), bits);
        float want = as_float(case_backend->dtype, bits);
        wrong += isnan(want) ? !isnan(rows[i]) : !(rows[i] == want);
    }
    free(rows);
    return wrong;
}

/* Every tensor through the reader, three rows at a time; -code or -1000 - wrong elements. */
static int64_t read_rows(const struct grid *grid, void *arg) {
    const struct ckpt_job *job = arg;
    struct ckpt_settings s = case_settings(job, job->folder);
    struct model m;
    struct ckpt_found found;
    struct ckpt_reader *r;
    int64_t wrong = 0;
    case_model(&m, &job->c, grid);
    int rc = ckpt_find(&s, grid, &found);
    if (!rc) rc = ckpt_reader_open(&s, &found, &r);
    if (rc) return -rc;
    for (int i = 0; i < m.set.n; i++) {
        const struct param *p = &m.set.param[i];
        for (int64_t at = 0; at < p->shape[0]; at += 3)
            wrong += compare_rows(r, p, at, p->shape[0] - at < 3 ? p->shape[0] - at : 3,
                                  (int)found.step);
    }
    rc = ckpt_reader_close(0, r);
    ckpt_found_free(&found);
    model_free(&m);
    return rc ? -rc : wrong ? -1000 - wrong : job->step;
}

static void one_type(enum dtype weights, enum dtype moments) {
    static const struct ckpt_case from = {.at = {2, 2, 2}, .split = {3, 5}, .sharded = true};
    static const struct ckpt_case into = {.at = {3, 1, 1}, .split = {CASE_LAYERS}};
    static const struct ckpt_case one = {.at = {1, 1, 1}, .split = {CASE_LAYERS}};
    struct backend be = {.ops = &host_ops, .dtype = weights, .acc = moments};
    struct ckpt_job job = {.c = from, .step = 4};
    case_backend = &be;
    snprintf(job.folder, sizeof job.folder, "%s/%s-%s", case_folder, dtype_name(weights),
             dtype_name(moments));
    int64_t saved = case_run(&job, case_save);
    job.c = into;
    int64_t loaded = saved == 0 ? case_run(&job, case_load) : -1;
    verdict(loaded == 4, "weights %s, moments %s: saved by TP 2 PP 2 DP 2, loaded by TP 3",
            dtype_name(weights), dtype_name(moments));
    for (int used = 0; used < 2; used++) {
        job.c = one;
        job.verify = used ? CKPT_VERIFY_USED : CKPT_VERIFY_ALL;
        int64_t read = case_run(&job, read_rows);
        verdict(read == 4, "weights %s: whole tensors as fp32 rows, verified %s (%lld)",
                dtype_name(weights), used ? "as they are read" : "before", (long long)read);
    }
}

int main(void) {
    static const enum dtype weights[] = {DTYPE_F32, DTYPE_F64, DTYPE_BF16, DTYPE_F16};
    case_begin();
    struct backend *cpu = case_backend;
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++)
        one_type(weights[i], i % 2 ? DTYPE_F64 : DTYPE_F32);
    case_backend = cpu;
    return case_end();
}
