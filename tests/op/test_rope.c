/* rope_table, rope. */
#include "op/kit.h"

#define HEADS 3
#define DIM 6

/* variant 0: the whole head turns; 1: the first 4 of 6 columns; 2: inverse; 3: and is scaled. */
static void rope_inputs(struct kit_case *c, bool big) {
    c->in[0] = mat_random(big ? 5000 : 4, HEADS * DIM, 2, 1);
}

static struct mat turn(struct kit_case *c, struct mat in, bool inverse) {
    const struct backend_ops *ops = c->k->be->ops;
    struct tensor x = kit_tensor(c->k, in);
    struct tensor table = kit_output(c->k, 50, c->variant == 1 ? 4 : DIM);
    int32_t *position = xmalloc((size_t)x.rows * sizeof *position);
    for (int64_t i = 0; i < x.rows; i++) position[i] = (int32_t)(i * 7 % 50);
    int32_t *on_device = kit_ints(c->k, position, x.rows);
    float frequency[DIM / 2];
    for (int64_t i = 0; i < table.cols / 2; i++)
        frequency[i] = (float)pow(100, -2.0 * (double)i / (double)table.cols);
    ops->rope_table(c->k->be, frequency, c->variant == 3 ? 1.25 : 1, &table);
    ops->rope(c->k->be, &x, HEADS, DIM, &table, on_device, inverse);
    free(position);
    return kit_download(c->k, x);
}

static struct mat rope_forward(struct kit_case *c) {
    return turn(c, c->in[0], c->variant == 2);
}

static void rope_backward(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]) {
    grad[0] = turn(c, dy, c->variant != 2);
}

static void test_rope(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"rope", 4, 0, 0, rope_inputs, rope_forward, rope_backward});
}

/* Against the definition with complex numbers x[i] + i x[i + n/2]; back again is the identity. */
static void test_definition(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++)
        for (int64_t variant = 0; variant < 2; variant++) {
            struct kit *k = kit_open(&kit_backends[b], 1);
            struct kit_case c = {.k = k, .variant = variant};
            rope_inputs(&c, false);
            struct mat y = rope_forward(&c), e = mat_copy(c.in[0]), back = turn(&c, y, true);
            int64_t half = variant == 1 ? 2 : DIM / 2;
            for (int64_t r = 0; r < e.rows; r++)
                for (int64_t h = 0; h < HEADS; h++)
                    for (int64_t i = 0; i < half; i++) {
                        double angle = (double)(r * 7 % 50) * pow(100, -(double)i / (double)half);
                        double u = *mat_at(&c.in[0], r, h * DIM + i);
                        double v = *mat_at(&c.in[0], r, h * DIM + i + half);
                        *mat_at(&e, r, h * DIM + i) = u * cos(angle) - v * sin(angle);
                        *mat_at(&e, r, h * DIM + i + half) = v * cos(angle) + u * sin(angle);
                    }
            KIT_NEAR(y, e, 3e-6, "rotation"); /* the angle is fp32 */
            KIT_NEAR(back, c.in[0], 1e-6, "rotation and back");
            mat_free(&y);
            mat_free(&e);
            mat_free(&back);
            kit_case_free(&c);
            kit_close(k);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_definition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
