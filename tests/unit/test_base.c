/* base: known answers, strictness, arenas, error trace, files, json. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "encoding.h"
#include "json.h"

/* Philox4x32-10 answers published with the paper's library (zeros, ones, digits of pi). */
static void test_philox_known_answers(void **state) {
    (void)state;
    static const struct {
        struct rng_key key;
        uint32_t counter[4], out[4];
    } known[] = {
        {{{0, 0}}, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{{~0u, ~0u}}, {~0u, ~0u, ~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{{0xa4093822, 0x299f31d0}},
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < 3; i++) {
        uint32_t out[4];
        philox4x32(known[i].key, known[i].counter, out);
        assert_memory_equal(out, known[i].out, sizeof out);
    }
}

/* The packing of tensor-parallel sections 7 and 12, spelled out a second time. */
static void test_rng_packing(void **state) {
    (void)state;
    struct rng_key run = rng_run_key(0x0123456789abcdef);
    assert_int_equal(run.k[0], 0x89abcdef);
    assert_int_equal(run.k[1], 0x01234567);
    uint32_t w[4];
    philox4x32(run, (const uint32_t[4]){RNG_INIT, crc32c(0, "abc", 3), 0, 0}, w);
    struct rng_key sub = rng_init_key(run, "abc");
    assert_int_equal(sub.k[0], w[0]);
    assert_int_equal(sub.k[1], w[1]);
    uint64_t block = 0x500000007;
    philox4x32(sub, (const uint32_t[4]){7, 5, 0, 0}, w);
    for (int i = 0; i < 4; i++) {
        double u1 = (w[i / 2 * 2] + 1.0) / 4294967296.0, u2 = w[i / 2 * 2 + 1] / 4294967296.0;
        double r = sqrt(-2 * log(u1)), z = i % 2 ? r * sin(2 * M_PI * u2) : r * cos(2 * M_PI * u2);
        assert_true(fabs(rng_normal(sub, 4 * block + (uint64_t)i) - z) <= 1e-15);
        assert_true(rng_uniform(sub, 4 * block + (uint64_t)i) == w[i] / 2147483648.0 - 1);
    }
    philox4x32(run, (const uint32_t[4]){RNG_DROP_ATTENTION, 3, 9, 2}, w);
    sub = rng_drop_key(run, RNG_DROP_ATTENTION, 3, 0x200000009);
    assert_int_equal(sub.k[0], w[0]);
    philox4x32(sub, (const uint32_t[4]){25, 11, 12, 13}, w);
    assert_int_equal(rng_drop_word(sub, 102, 11, 12, 13), w[2]);
}

static void test_rng_moments(void **state) {
    (void)state;
    struct rng_key sub = rng_init_key(rng_run_key(1234), "moments");
    const int n = 200000;
    double normal1 = 0, normal2 = 0, uniform1 = 0, uniform2 = 0;
    for (int i = 0; i < n; i++) {
        double z = rng_normal(sub, (uint64_t)i), u = rng_uniform(sub, (uint64_t)i);
        normal1 += z / n, normal2 += z * z / n, uniform1 += u / n, uniform2 += u * u / n;
        assert_true(u >= -1 && u < 1);
    }
    assert_true(fabs(normal1) <= 0.01 && fabs(normal2 - 1) <= 0.02);
    assert_true(fabs(uniform1) <= 0.01 && fabs(uniform2 - 1.0 / 3) <= 0.01);
}

static void test_rng_permutation(void **state) {
    (void)state;
    enum { N = 997 };
    int64_t a[N], b[N], seen[N] = {0}, count[6] = {0};
    rng_permutation(rng_run_key(5), 0, N, a);
    rng_permutation(rng_run_key(5), 1, N, b);
    assert_memory_not_equal(a, b, sizeof a);
    rng_permutation(rng_run_key(5), 0, N, b);
    assert_memory_equal(a, b, sizeof a);
    for (int i = 0; i < N; i++) seen[a[i]]++;
    for (int i = 0; i < N; i++) assert_int_equal(seen[i], 1);
    /* All six orders of three, about equally often. */
    for (int e = 0; e < 6000; e++) {
        rng_permutation(rng_run_key(5), e, 3, a);
        count[a[0] * 2 + (a[1] > a[2])]++;
    }
    for (int i = 0; i < 6; i++) assert_true(count[i] > 850 && count[i] < 1150);
}

/* Bit by bit, from the definition. */
static uint32_t slow_crc(const uint8_t *p, size_t n) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

static void crc_of_long_and_joined_stretches(void) {
    static uint8_t data[100001];
    static const size_t length[] = {1, 7, 8, 4096, 12288, 24575, 24576, 24577, 36865, 100000};
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * i * 2654435761u >> 13);
    for (size_t k = 0; k < sizeof length / sizeof length[0]; k++) {
        size_t n = length[k], cut = n / 3;
        uint32_t whole = crc32c(0, data + 1, n);
        assert_int_equal(whole, slow_crc(data + 1, n));
        uint32_t a = crc32c(0, data + 1, cut), b = crc32c(0, data + 1 + cut, n - cut);
        assert_int_equal(crc32c(a, data + 1 + cut, n - cut), whole);
        assert_int_equal(crc32c_join(a, b, n - cut), whole);
    }
}

static void test_checksums(void **state) {
    (void)state;
    assert_int_equal(crc32c(0, "123456789", 9), 0xE3069283);
    assert_int_equal(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xE3069283);
    assert_int_equal(crc32c(0, "", 0), 0);
    crc_of_long_and_joined_stretches();
    static const char *const known[][2] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    for (size_t i = 0; i < 3; i++) {
        struct sha256 s;
        char hex[65];
        sha256_begin(&s);
        sha256_add(&s, known[i][0], strlen(known[i][0]) / 2);
        sha256_add(&s, known[i][0] + strlen(known[i][0]) / 2,
                   strlen(known[i][0]) - strlen(known[i][0]) / 2);
        sha256_end(&s, hex);
        assert_string_equal(hex, known[i][1]);
    }
    /* A million times 'a', in pieces that cross every block position. */
    struct sha256 s;
    char hex[65], as[1000];
    memset(as, 'a', sizeof as);
    sha256_begin(&s);
    for (int i = 0; i < 1000; i++) sha256_add(&s, as, sizeof as);
    sha256_end(&s, hex);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void test_parse(void **state) {
    (void)state;
    int64_t i = 0;
    double r = 0;
    bool b = false;
    assert_true(parse_int64("010", &i) && i == 10);
    assert_true(parse_int64("-9223372036854775808", &i) && i == INT64_MIN);
    assert_true(parse_int64("9223372036854775807", &i) && i == INT64_MAX);
    static const char *const no_int[] = {
        "", "12abc", "1e3", " 1", "1 ", "+8", "8.0", "0x1", "-", "--1", "99999999999999999999"};
    for (size_t k = 0; k < sizeof no_int / sizeof *no_int; k++)
        assert_false(parse_int64(no_int[k], &i));
    assert_true(parse_real("1e-4", &r) && r == 1e-4);
    assert_true(parse_real(".5", &r) && r == 0.5);
    assert_true(parse_real("-3.", &r) && r == -3);
    assert_true(parse_real("010", &r) && r == 10);
    static const char *const no_real[] = {"",      "nan", "inf", "0x1p3", "1e",    "1e999",
                                          "1e-4x", ".",   "1,5", " 1",    "1e-999"};
    for (size_t k = 0; k < sizeof no_real / sizeof *no_real; k++)
        assert_false(parse_real(no_real[k], &r));
    assert_true(parse_bool("Yes", &b) && b);
    assert_true(parse_bool("OFF", &b) && !b);
    assert_true(parse_bool("1", &b) && b);
    assert_false(parse_bool("2", &b) || parse_bool("", &b) || parse_bool("0x10", &b));
}

static void test_arena(void **state) {
    (void)state;
    char *block = aligned_alloc(ARENA_ALIGN, 4096);
    struct arena real, measure;
    arena_init(&real, "real", block, 4096);
    arena_init_measuring(&measure, "measure");
    size_t mark = 0;
    for (size_t bytes = 0; bytes < 300; bytes += 50) {
        char *p = arena_alloc(&real, bytes), *q = arena_alloc(&measure, bytes);
        assert_int_equal((uintptr_t)p % ARENA_ALIGN, 0);
        assert_int_equal((uintptr_t)q % ARENA_ALIGN, 0);
        assert_int_equal(p - real.base, q - measure.base);
        if (bytes == 100) mark = arena_mark(&real);
    }
    assert_int_equal(real.used, measure.used);
    arena_release(&real, mark);
    assert_int_equal(real.used, mark);
    assert_int_equal(real.peak, measure.peak);
    arena_alloc(&measure, (size_t)1 << 40);
    free(block);
}

/* Ends a child by overrunning an arena; the exit code and the sentence must arrive. */
static void test_check_ends_the_job(void **state) {
    (void)state;
    int pipe_fd[2];
    assert_int_equal(pipe(pipe_fd), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(pipe_fd[1], 2);
        static _Alignas(ARENA_ALIGN) char block[128];
        struct arena a;
        error_clear();
        arena_init(&a, "small", block, sizeof block);
        arena_alloc(&a, 129);
        _exit(0);
    }
    char text[1024] = {0};
    int status;
    waitpid(child, &status, 0);
    assert_true(read(pipe_fd[0], text, sizeof text - 1) > 0);
    assert_int_equal(WEXITSTATUS(status), EXIT_INTERNAL);
    assert_non_null(strstr(text, "error: internal: "));
    assert_non_null(strstr(text, "arena small holds 128 bytes"));
    close(pipe_fd[0]);
    close(pipe_fd[1]);
}

static int fails(void) {
    return error_raise(EXIT_IO, "disk %d is full\nerror: forged", 3);
}

static int fails_above(void) {
    TRY(fails());
    return 0;
}

static void test_error_trace(void **state) {
    (void)state;
    error_clear();
    assert_string_equal(error_text(), "");
    assert_int_equal(fails_above(), EXIT_IO);
    assert_int_equal(error_note(EXIT_IO, "while writing %s", "x"), EXIT_IO);
    assert_int_equal(error_raise(EXIT_USAGE, "second"), EXIT_USAGE);
    assert_int_equal(error_count(), 2);
    assert_int_equal(error_code(), EXIT_IO);
    assert_string_equal(error_text(), "disk 3 is full error: forged, while writing x\nsecond");
    char *printed;
    size_t bytes;
    FILE *f = open_memstream(&printed, &bytes);
    error_print(f);
    fclose(f);
    assert_string_equal(printed,
                        "error: disk 3 is full error: forged, while writing x\nerror: second\n");
    free(printed);
    for (int i = 0; i < 100000; i++) error_raise(EXIT_IO, "many");
    assert_int_equal(error_count(), 100002);
    error_clear();
    assert_int_equal(error_code(), 0);
}

static void test_files(void **state) {
    (void)state;
    char dir[] = "/tmp/strata_base_XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *deep = xasprintf("%s/a//b/c/", dir), *file = xasprintf("%s/a/b/c/f", dir), *data;
    size_t bytes;
    error_clear();
    assert_int_equal(dir_make(deep), 0);
    assert_int_equal(dir_make(deep), 0);
    assert_int_equal(file_write_atomic(file, "one\0two", 7), 0);
    assert_int_equal(file_write_atomic(file, "three\0x", 7), 0);
    assert_int_equal(file_read(file, 7, &data, &bytes), 0);
    assert_int_equal(bytes, 7);
    assert_memory_equal(data, "three\0x", 8);
    free(data);
    assert_int_equal(file_read(file, 6, &data, &bytes), EXIT_BAD_DATA);
    assert_int_equal(dir_make(file), EXIT_CANT_CREATE);
    assert_int_equal(file_read("/nowhere/at/all", 6, &data, &bytes), EXIT_NO_INPUT);
    assert_int_equal(file_write_atomic("/nowhere/at/all", "", 0), EXIT_CANT_CREATE);
    assert_int_equal(error_count(), 4);
    error_clear();
    unlink(file);
    char *sub[] = {"a/b/c", "a/b", "a", ""};
    for (int i = 0; i < 4; i++) {
        char *path = xasprintf("%s/%s", dir, sub[i]);
        assert_int_equal(rmdir(path), 0);
        free(path);
    }
    free(deep);
    free(file);
}

static struct json *read_json(const char *text) {
    struct json *root = NULL;
    error_clear();
    return json_read_text("text", text, strlen(text), &root) == 0 ? root : NULL;
}

/* Accepted: what Git LFS writes, with an extension too. Not: other versions of a text, or a long one. */
static void test_lfs_pointers(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool is_one;
    } row[] = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", true},
        {"version https://git-lfs.github.com/spec/v1\next-0-x sha256:1\noid sha256:4d\n", true},
        {"version https://git-lfs.github.com/spec/", false},
        {"version 3\nhttps://git-lfs.github.com/spec/v1\n", false},
        {" version https://git-lfs.github.com/spec/v1\n", false},
        {"", false},
    };
    char dir[] = "/tmp/strata_base_XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *path = xasprintf("%s/pointer", dir);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        assert_int_equal(lfs_pointer(row[i].text, strlen(row[i].text)), row[i].is_one);
        assert_int_equal(file_write_atomic(path, row[i].text, strlen(row[i].text)), 0);
        assert_int_equal(lfs_pointer_file(path), row[i].is_one);
    }
    char large[1024] = "version https://git-lfs.github.com/spec/v1\n";
    assert_false(lfs_pointer(large, sizeof large));
    assert_int_equal(file_write_atomic(path, large, sizeof large), 0);
    assert_false(lfs_pointer_file(path));
    unlink(path);
    assert_false(lfs_pointer_file(path));
    free(path);
    rmdir(dir);
}

static void test_encoding(void **state) {
    (void)state;
    static const struct {
        const char *data;
        size_t bytes;
        const char *why;
    } row[] = {
        {"", 0, NULL},
        {"a\nb", 3, NULL},
        {"\xef\xbb\xbf", 3, NULL},
        {"\xff\xfe"
         "a\0",
         4, "is UTF-16 text; write it as UTF-8"},
        {"\xfe\xff\0a", 4, "is UTF-16 text"},
        {"[\0\n\0]\0", 6, "is UTF-16 text"},
        {"\0[\0]", 4, "is UTF-16 text"},
        {"\xff\xfe\0\0", 4, "is UTF-32 text"},
        {"\0\0\xfe\xff", 4, "is UTF-32 text"},
        {"one\ntwo\0", 8, "holds a NUL byte in line 2 (byte 7)"},
        {"\0", 1, "holds a NUL byte in line 1 (byte 0)"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 57, "is a Git LFS pointer"},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        char why[ENCODING_WHY_BYTES] = "";
        bool good = encoding_is_text(row[i].data, row[i].bytes, why);
        if (good != (row[i].why == NULL) || (!good && strstr(why, row[i].why) != why))
            fail_msg("row %zu: %s", i, why);
    }
    assert_int_equal(encoding_mark("\xef\xbb\xbf\xef\xbb\xbf"
                                   "a",
                                   7),
                     6);
    assert_int_equal(encoding_mark("a\xef\xbb\xbf", 4), 0);
    assert_int_equal(encoding_mark("\xef\xbb", 2), 0);
    assert_true(encoding_is_utf8("a\xc3\xa9\xe7\x8c\xab\xf0\x9f\x98\x80", 10));
    static const char *const bad[] = {
        "\xc3", "\xc0\xaf",         "\xe0\x80\xaf",    "\xed\xa0\x80", "\xf5\x80\x80\x80",
        "\x80", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(encoding_is_utf8(bad[i], strlen(bad[i])));
}

static void test_json_reads_and_writes(void **state) {
    (void)state;
    struct json *o = json_new_object(), *a = json_new_array();
    json_append(a, json_new_integer(-5));
    json_append(a, json_new_real(0.1));
    json_append(a, json_new_real(NAN));
    json_append(a, json_new_bool(true));
    json_set(o, "z", a);
    json_set(o, "a", json_new_string("\xff \xc3\xa4"));
    char *text = json_text(o, 0);
    assert_string_equal(text, "{\"z\": [-5, 0.10000000000000001, null, true], \"a\": \"? ??\"}");
    json_free(o);
    o = read_json(text);
    const struct json *z = json_get(o, "z");
    assert_int_equal(json_kind(z), JSON_ARRAY);
    assert_int_equal(json_size(z), 4);
    assert_int_equal(json_integer(json_at(z, 0)), -5);
    assert_true(json_real(json_at(z, 0)) == -5 && json_real(json_at(z, 1)) == 0.1);
    assert_int_equal(json_kind(json_at(z, 2)), JSON_NULL);
    assert_true(json_kind(json_at(z, 3)) == JSON_BOOL && json_bool(json_at(z, 3)));
    assert_null(json_get(o, "nothing"));
    const char *key;
    const struct json *v;
    void *iter = json_member(o, NULL, &key, &v);
    assert_string_equal(key, "z");
    iter = json_member(o, iter, &key, &v);
    assert_string_equal(key, "a");
    size_t bytes;
    assert_string_equal(json_string(v, &bytes), "? ??");
    assert_int_equal(bytes, 4);
    assert_null(json_member(o, iter, &key, &v));
    json_free(o);
    free(text);
}

static void test_json_compares_and_copies(void **state) {
    (void)state;
    static const struct {
        const char *a, *b;
        bool same;
    } pair[] = {{"1", "1.0", true},
                {"1", "1.5", false},
                {"0.1", "0.1", true},
                {"1", "true", false},
                {"null", "0", false},
                {"\"a\"", "\"b\"", false},
                {"{\"a\": 1, \"b\": [2, 3]}", "{\"b\": [2.0, 3], \"a\": 1}", true},
                {"{\"a\": 1}", "{\"a\": 1, \"b\": 1}", false},
                {"{\"a\": 1}", "{\"b\": 1}", false},
                {"[1, 2]", "[2, 1]", false}};
    for (size_t i = 0; i < sizeof pair / sizeof *pair; i++) {
        struct json *a = read_json(pair[i].a), *b = read_json(pair[i].b);
        assert_int_equal(json_same(a, b), pair[i].same);
        struct json *copy = json_duplicate(a);
        assert_true(json_same(a, copy));
        if (json_kind(copy) == JSON_OBJECT) { /* what is below is a copy too */
            json_remove(copy, "a");
            json_remove(copy, "nothing");
            json_set(copy, "n", json_new_null());
            assert_non_null(json_get(a, json_get(a, "a") != NULL ? "a" : "b"));
            assert_false(json_same(a, copy));
        }
        json_free(copy);
        json_free(a);
        json_free(b);
    }
}

static void test_json_refuses(void **state) {
    (void)state;
    char deep[200];
    memset(deep, '[', 65);
    memset(deep + 65, ']', 65);
    deep[130] = '\0';
    const char *bad[] = {"",    "{",       "[1,]",     "{\"a\":1,\"a\":2}", deep,
                         "NaN", "[1] x",   "'a'",      "\"\xc0\xaf\"",      "\"\\ud800\"",
                         "01",  "[1e999]", "\"\x80\"", "\xef\xbb\xbf[]",    "\"\t\"",
                         "[\"", "{1:2}",   "[--1]",    "\"\\u0000\""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_null(read_json(bad[i]));
        assert_int_equal(error_code(), EXIT_BAD_DATA);
        assert_non_null(strstr(error_text(), "text: byte "));
        assert_null(strstr(error_text(), "JSON_ALLOW_NUL")); /* a flag of the library, not ours */
    }
    memmove(deep, deep + 1, 128);
    deep[128] = '\0';
    struct json *ok = read_json(deep);
    assert_non_null(ok);
    json_free(ok);
    ok = read_json("[\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"]");
    assert_non_null(ok);
    json_free(ok);
    /* As Python's, an integer of any length is a number; beyond 64 bits it is the nearest real. */
    ok = read_json("99999999999999999999");
    assert_non_null(ok);
    assert_true(json_real(ok) == 99999999999999999999.0);
    json_free(ok);
    error_clear();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_rng_packing),
        cmocka_unit_test(test_rng_moments),
        cmocka_unit_test(test_rng_permutation),
        cmocka_unit_test(test_checksums),
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_check_ends_the_job),
        cmocka_unit_test(test_error_trace),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_lfs_pointers),
        cmocka_unit_test(test_encoding),
        cmocka_unit_test(test_json_reads_and_writes),
        cmocka_unit_test(test_json_compares_and_copies),
        cmocka_unit_test(test_json_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
