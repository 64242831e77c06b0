/* shard: brute force over small cuts, and the worked examples of doc/mathematics.md as literals. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "tensor.h"

static struct cut cut_blocks(int s, int64_t size, int64_t granule) {
    struct cut c = {.axis = 0, .n_blocks = s};
    for (int b = 0; b < s; b++) {
        c.size[b] = size;
        c.granule[b] = granule;
    }
    return c;
}

/* Disjoint cover, no empty rank, inverse; agreement with the stride rule where it applies. */
static void check_cut(const struct cut *c, int p) {
    char seen[CUT_BLOCKS_MAX * 64] = {0};
    int64_t size = cut_size(c), covered = 0;
    int64_t per_rank = size / p / c->n_blocks;
    bool even = cut_granules(c) % p == 0 && c->size[0] % c->granule[0] == 0;
    for (int r = 0; r < p; r++) {
        struct cut_part part = cut_part(c, p, r);
        assert_true(part.total > 0);
        for (int64_t l = 0; l < part.total; l++) {
            int64_t g = cut_local_to_global(c, p, r, l);
            assert_true(g >= 0 && g < size);
            assert_int_equal(seen[g], 0);
            seen[g] = 1;
            covered++;
            int owner;
            int64_t local;
            cut_global_to_owner(c, p, g, &owner, &local);
            assert_int_equal(owner, r);
            assert_int_equal(local, l);
            if (even) assert_int_equal(g, ((l / per_rank) * p + r) * per_rank + l % per_rank);
        }
        for (int b = 0; b < part.n_blocks; b++)
            for (int64_t i = 0; i < part.count[b]; i++)
                assert_int_equal(cut_local_to_global(c, p, r, part.local[b] + i),
                                 part.global[b] + i);
    }
    assert_int_equal(covered, size);
}

static void test_brute_force(void **state) {
    (void)state;
    for (int64_t d = 1; d < 60; d++)
        for (int64_t u = 1; u < 9; u++)
            for (int s = 1; s <= 3; s++) {
                struct cut c = cut_blocks(s, d, u);
                for (int p = 1; p <= cut_granules(&c); p++) {
                    assert_int_equal(cut_check(&c, p, "brute force"), 0);
                    check_cut(&c, p);
                }
            }
}

/* Blocks of unequal length with the same number of granules. */
static void test_unequal_blocks(void **state) {
    (void)state;
    for (int64_t granules = 1; granules <= 10; granules++)
        for (int64_t u0 = 1; u0 <= 5; u0++)
            for (int64_t u1 = 1; u1 <= 3; u1++)
                for (int64_t cut_short = 0; cut_short < u0; cut_short++) {
                    struct cut c = {
                        .axis = 0,
                        .n_blocks = 3,
                        .size = {granules * u0 - cut_short, granules * u1, granules * u1},
                        .granule = {u0, u1, u1}};
                    for (int p = 1; p <= granules; p++) {
                        int64_t total = 0;
                        for (int r = 0; r < p; r++) {
                            struct cut_part part = cut_part(&c, p, r);
                            assert_true(part.count[0] > 0);
                            assert_int_equal(part.count[1], part.count[2]);
                            total += part.total;
                            for (int64_t l = 0; l < part.total; l++) {
                                int owner;
                                int64_t local, g = cut_local_to_global(&c, p, r, l);
                                cut_global_to_owner(&c, p, g, &owner, &local);
                                assert_true(owner == r && local == l);
                            }
                        }
                        assert_int_equal(total, cut_size(&c));
                    }
                }
}

static void test_stride_example(void **state) {
    (void)state;
    struct cut c = cut_blocks(3, 4, 1);
    const int64_t expect[2][6] = {{0, 1, 4, 5, 8, 9}, {2, 3, 6, 7, 10, 11}};
    for (int r = 0; r < 2; r++)
        for (int l = 0; l < 6; l++)
            assert_int_equal(cut_local_to_global(&c, 2, r, l), expect[r][l]);
}

static void test_gpt2_xl_heads(void **state) {
    (void)state;
    struct cut c = cut_blocks(3, 25 * 64, 64);
    const int64_t rows[4] = {1344, 1152, 1152, 1152};
    assert_int_equal(cut_granules(&c), 25);
    for (int r = 0; r < 4; r++) assert_int_equal(cut_part(&c, 4, r).total, rows[r]);
    struct cut_part one = cut_part(&c, 4, 1);
    assert_int_equal(one.global[0], 448);
    assert_int_equal(one.global[1], 2048);
    assert_int_equal(one.global[2], 3648);
}

static void test_grouped_query(void **state) {
    (void)state;
    struct cut c = {
        .axis = 0, .n_blocks = 3, .size = {4096, 1024, 1024}, .granule = {512, 128, 128}};
    const int64_t rows[3] = {2304, 2304, 1536};
    for (int r = 0; r < 3; r++) assert_int_equal(cut_part(&c, 3, r).total, rows[r]);
    struct cut_part one = cut_part(&c, 3, 1);
    assert_int_equal(one.global[0], 1536);
    assert_int_equal(one.global[1], 4480);
    assert_int_equal(one.global[2], 5504);
    struct cut dense = cut_even(1, 4096, 512);
    assert_true(cut_equal(&c, &dense));
    struct cut by_head = cut_even(1, 4096, 128);
    assert_false(cut_equal(&c, &by_head));
    for (int p = 1; p <= 8; p++)
        for (int r = 0; r < p; r++)
            assert_int_equal(cut_part(&c, p, r).count[0], cut_part(&dense, p, r).total);
}

static void test_vocabulary(void **state) {
    (void)state;
    struct cut one = cut_even(0, 50257, 1), wide = cut_even(0, 50257, 64);
    const int64_t by_one[4] = {12565, 12564, 12564, 12564};
    const int64_t by_64[4] = {12608, 12608, 12544, 12497};
    for (int r = 0; r < 4; r++) {
        assert_int_equal(cut_part(&one, 4, r).total, by_one[r]);
        assert_int_equal(cut_part(&wide, 4, r).total, by_64[r]);
    }
}

static void test_not_cut(void **state) {
    (void)state;
    struct cut c = cut_none();
    c.size[0] = 7;
    assert_int_equal(cut_check(&c, 64, "x"), 0);
    for (int r = 0; r < 4; r++) {
        struct cut_part part = cut_part(&c, 4, r);
        assert_int_equal(part.n_blocks, 1);
        assert_int_equal(part.total, 7);
        assert_int_equal(part.global[0], 0);
        assert_int_equal(part.count[0], 7);
    }
}

static void test_refusals(void **state) {
    (void)state;
    struct cut few = cut_even(0, 6 * 64, 64);
    error_clear();
    assert_int_equal(cut_check(&few, 7, "layer 3 qkv"), EXIT_USAGE);
    assert_non_null(strstr(error_text(), "layer 3 qkv"));
    assert_non_null(strstr(error_text(), "1 to 6"));
    assert_int_equal(cut_check(&few, 6, "layer 3 qkv"), 0);
    struct cut unlike = {.axis = 0, .n_blocks = 2, .size = {8, 9}, .granule = {2, 2}};
    error_clear();
    assert_int_equal(cut_check(&unlike, 2, "kv"), EXIT_USAGE);
    assert_non_null(strstr(error_text(), "block 1"));
    struct cut none = cut_even(0, 0, 1);
    error_clear();
    assert_int_equal(cut_check(&none, 1, "empty"), EXIT_USAGE);
    error_clear();
}

static void test_rows_share(void **state) {
    (void)state;
    for (int64_t n = 0; n < 40; n++)
        for (int p = 1; p < 12; p++) {
            int64_t next = 0;
            for (int r = 0; r < p; r++) {
                int64_t first, count;
                rows_share(n, p, r, &first, &count);
                assert_int_equal(first, next);
                assert_true(count == n / p || count == n / p + 1);
                assert_true(count == n / p + (r < n % p));
                next += count;
            }
            assert_int_equal(next, n);
        }
}

static void test_views(void **state) {
    (void)state;
    float data[12];
    struct tensor t = tensor_view(data, 3, 4, DTYPE_F32);
    assert_int_equal(tensor_bytes(&t), 48);
    struct tensor rows = tensor_rows(t, 1, 2);
    assert_ptr_equal(rows.data, data + 4);
    assert_true(rows.rows == 2 && rows.cols == 4);
    struct tensor cols = tensor_cols(rows, 3, 1);
    assert_ptr_equal(cols.data, data + 7);
    assert_true(cols.ld == 4 && cols.cols == 1 && !tensor_contiguous(&cols));
    assert_int_equal(tensor_count(&cols), 2);
    assert_int_equal(dtype_size(DTYPE_BF16), 2);
    assert_string_equal(dtype_name(DTYPE_I64), "int64");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_brute_force),    cmocka_unit_test(test_unequal_blocks),
        cmocka_unit_test(test_stride_example), cmocka_unit_test(test_gpt2_xl_heads),
        cmocka_unit_test(test_grouped_query),  cmocka_unit_test(test_vocabulary),
        cmocka_unit_test(test_not_cut),        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_rows_share),     cmocka_unit_test(test_views),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
