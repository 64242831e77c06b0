/* Rotary position embedding (arXiv 2104.09864), pairs (i, i + n/2). */
#include "real_impl.h"

/* The angle is rounded to fp32 in both working types, so that they describe the same model. */
void NAME(rope_table)(struct backend *be, const float *frequency, double scale,
                      const struct tensor *table) {
    (void)be;
    NEED(table, table->rows, table->cols);
    int64_t half = table->cols / 2;
    CHECK(table->cols == 2 * half, "rotary embedding of %ld columns, an odd number",
          (long)table->cols);
    for (int64_t pos = 0; pos < table->rows; pos++) {
        real *row = row_of(table, pos);
        for (int64_t i = 0; i < half; i++) {
            float angle = (float)pos * frequency[i];
            row[i] = (real)(scale * cos((double)angle));
            row[half + i] = (real)(scale * sin((double)angle));
        }
    }
}

struct rotation {
    const struct tensor *x, *table;
    const int32_t *position;
    int64_t heads, head_dim;
    real sign; /* of the sine */
    struct tiles tiles;
};

static void rotation_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct rotation *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    int64_t half = p->table->cols / 2;
    real sign = p->sign;
    for (int64_t r = t.row; r < t.row_end; r++) {
        CHECK(p->position[r] >= 0 && p->position[r] < p->table->rows,
              "row %ld has position %d; the rotary table has %ld", (long)r, p->position[r],
              (long)p->table->rows);
        const real *cosine = row_of(p->table, p->position[r]), *sine = cosine + half;
        for (int64_t h = 0; h < p->heads; h++) {
            real *a = row_of(p->x, r) + h * p->head_dim, *b = a + half;
            EACH (int64_t j = 0; j < half; j++) {
                real s = sign * sine[j], u = a[j], v = b[j];
                a[j] = u * cosine[j] - v * s;
                b[j] = v * cosine[j] + u * s;
            }
        }
    }
}

void NAME(rope)(struct backend *be, const struct tensor *x, int64_t heads, int64_t head_dim,
                const struct tensor *table, const int32_t *position, bool inverse) {
    NEED(x, x->rows, heads * head_dim);
    NEED(table, table->rows, table->cols);
    CHECK(table->cols % 2 == 0 && table->cols <= head_dim,
          "rotary table of %ld columns, head of %ld", (long)table->cols, (long)head_dim);
    struct rotation p = {
        x, table, position, heads, head_dim, inverse ? -1 : 1, tiles_rows(x->rows, x->cols)};
    cpu_parallel(be, p.tiles.n, rotation_body, &p);
}
