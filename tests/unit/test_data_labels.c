/* Templates, tokenizer rules and labels against golden vectors of the Mistral v1 tokenizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tokenizer_case.h"

/* One expected stretch: ids as text, targets or not. */
struct stretch {
    bool target;
    const char *ids;
};

static int64_t compare(const struct token_rows *got, int64_t at, const struct stretch *s) {
    const char *p = s->ids;
    char *end;
    for (long id = strtol(p, &end, 10); end != p; id = strtol(p, &end, 10), at++) {
        p = end;
        assert_true(at < got->n);
        assert_int_equal(got->ids[at], id);
        assert_int_equal(got->labels[at], s->target ? id : DATA_NO_TARGET);
    }
    return at;
}

/* texts: human, gpt, human, gpt ... up to NULL; want: stretches up to ids NULL. */
static void expect(enum data_template t, const char *system, bool strict, const char *const *texts,
                   const struct stretch *want) {
    struct turn turns[8];
    int n = 0;
    for (; texts[n] != NULL; n++) turns[n] = (struct turn){n % 2 == 0, texts[n], strlen(texts[n])};
    struct prompt p = {0};
    struct token_rows rows = {0};
    prompt_build(&p, t, system, turns, n, 1);
    bool masked = strict && prompt_is_mismatch(&p, t);
    assert_int_equal(prompt_encode(&p, tok, true, masked, &rows), 0);
    int64_t at = 0;
    for (; want->ids != NULL; want++) {
        struct stretch s = *want;
        if (masked) s.target = false;
        at = compare(&rows, at, &s);
    }
    assert_int_equal(at, rows.n);
    free(rows.ids);
    free(rows.labels);
    prompt_free(&p);
}

#define TEXTS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define WANT(...) ((const struct stretch[]){__VA_ARGS__, {false, NULL}})
#define NO(ids)                                                                                    \
    { false, ids }
#define YES(ids)                                                                                   \
    { true, ids }
#define INST TEMPLATE_MISTRAL_INSTRUCT
#define H "1 733 16289 28793 28705 -200 28705 13 28824 733 28748 16289 28793"
#define G1_PROMPT "1 733 16289 28793 28705 -200 28705 13 3195 349 4894 28804 733 28748 16289 28793"
#define G5_PROMPT                                                                                  \
    "1 330 10706 1444 264 13903 2188 304 396 18278 10895 13892 28723 415 13892 5212 10865 28725 "  \
    "10537 28725 304 27057 11194 298 272 2188 28742 28713 4224 28723 2223 725 28747 28705 -200 "   \
    "28705 13 3195 349 4894 28804 8602 8048 12738 28747"

static void test_mistral_instruct(void **state) {
    (void)state;
    for (int strict = 0; strict < 2; strict++) {
        expect(INST, NULL, strict, TEXTS("<image>\nWhat is shown?", "A cat."),
               WANT(NO(G1_PROMPT), YES("330 5255 28723 28705 2")));
        expect(INST, NULL, strict,
               TEXTS("<image>\nWhat is shown?", "A cat.", "What colour?", "Black"),
               WANT(NO(G1_PROMPT), YES("330 5255 28723 28705 2"),
                    NO("733 16289 28793 1824 11474 28804 733 28748 16289 28793"),
                    YES("4777 28705 2")));
        expect(INST, NULL, strict, TEXTS("Hello", "Hi there"),
               WANT(NO("1 733 16289 28793 22557 733 28748 16289 28793"), YES("15359 736 28705 2")));
        expect(INST, NULL, strict, TEXTS("<image>\nQ", "\nfoo"),
               WANT(NO(H), YES("28705 13 8014 28705 2")));
        expect(INST, NULL, strict, TEXTS("<image>\nQ", "\xe7\x8c\xab"),
               WANT(NO(H), YES("28705 31664 28705 2")));
        expect(INST, NULL, strict, TEXTS("<image>\nQ", " foo"),
               WANT(NO(H), YES("28705 19222 28705 2")));
    }
}

static void test_plain(void **state) {
    (void)state;
    expect(TEMPLATE_PLAIN, NULL, true, TEXTS("<image>", "a red bus"),
           WANT(NO("1 -200"), YES("264 2760 1579 13")));
    expect(TEMPLATE_PLAIN, NULL, true, TEXTS("<image>", ""), WANT(NO("1 -200"), YES("28705 13")));
}

static void test_v1(void **state) {
    (void)state;
    expect(TEMPLATE_V1, NULL, true, TEXTS("<image>\nWhat is shown?", "A cat."),
           WANT(NO(G5_PROMPT), YES("330 5255 28723 2")));
    expect(TEMPLATE_V1, NULL, true,
           TEXTS("<image>\nWhat is shown?", "A cat.", "What colour?", "Black"),
           WANT(NO(G5_PROMPT), YES("330 5255 28723 2"),
                NO("2223 725 28747 1824 11474 28804 8602 8048 12738 28747"), YES("4777 2")));
}

/* Rows that LLaVA's own code masks whole: kept by default, masked with strict_llava_masking. */
static void test_mismatch(void **state) {
    (void)state;
    for (int strict = 0; strict < 2; strict++) {
        expect(INST, NULL, strict, TEXTS("<image>\nQ", "use [/INST] tag"),
               WANT(NO(H), YES("938 733 28748 16289 28793 5846 28705 2")));
        expect(INST, NULL, strict, TEXTS("<image>\nQ", ""), WANT(NO(H)));
        expect(INST, NULL, strict, TEXTS("<image>\nQ", "A", "R", ""),
               WANT(NO(H), YES("330 28705 2"), NO("733 16289 28793 399 733 28748 16289 28793")));
    }
    /* without an answer in between, question and next question are one chunk */
    expect(INST, NULL, false, TEXTS("<image>\nQ", "", "R", "A"),
           WANT(NO("1 733 16289 28793 28705 -200 28705 13 28824 733 28748 16289 3328 16289 28793 "
                   "399 733 28748 16289 28793"),
                YES("330 28705 2")));
}

static void test_mismatch_is_found(void **state) {
    (void)state;
    static const struct {
        enum data_template t;
        const char *human, *gpt;
        bool mismatch;
    } row[] = {
        {INST, "Q", "A", false},          {INST, "Q", "", true},
        {INST, "Q", "a [/INST] b", true}, {INST, "Q", "a [/INST]", true},
        {INST, "Q", "a</s>b", true},      {INST, "Q </s> R", "b", true},
        {TEMPLATE_V1, "Q", "A", false},   {TEMPLATE_V1, "Q", "x ASSISTANT: y", true},
        {TEMPLATE_V1, "Q", "", true},     {TEMPLATE_CHATML_DIRECT, "Q", "", false},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct turn turns[2] = {{true, row[i].human, strlen(row[i].human)},
                                {false, row[i].gpt, strlen(row[i].gpt)}};
        struct prompt p = {0};
        prompt_build(&p, row[i].t, NULL, turns, 2, 0);
        assert_int_equal(prompt_is_mismatch(&p, row[i].t), row[i].mismatch);
        prompt_free(&p);
    }
}

static void test_llava_llama_2(void **state) {
    (void)state;
    expect(TEMPLATE_LLAVA_LLAMA_2, "S", true, TEXTS("<image>\nQ", "A", "R", "B"),
           WANT(NO("1 733 16289 28793 2087 18741 4060 13 28735 13 28789 700 18741 4060 13 13 -200 "
                   "28705 13 28824 733 28748 16289 28793"),
                YES("330 28705 2"), NO("1 733 16289 28793 399 733 28748 16289 28793"),
                YES("365 28705 2")));
}

static void test_chatml_text(void **state) {
    (void)state;
    struct turn turns[2] = {{true, "Q", 1}, {false, "A", 1}};
    struct prompt p = {0};
    prompt_build(&p, TEMPLATE_CHATML_DIRECT, NULL, turns, 2, 0);
    assert_string_equal(p.text.data, "<|im_start|>system\nAnswer the questions.<|im_end|>"
                                     "<|im_start|>user\nQ<|im_end|><|im_start|>assistant\n"
                                     "A<|im_end|>");
    assert_int_equal(p.n_spans, 1);
    assert_int_equal(p.text.bytes - p.span[0].begin, strlen("A<|im_end|>"));
    prompt_free(&p);
}

static void test_generation_prompt(void **state) {
    (void)state;
    char *text = template_prompt(INST, "What is shown in this image?", 1);
    assert_string_equal(text, "[INST] <image>\nWhat is shown in this image? [/INST]");
    free(text);
    text = template_prompt(TEMPLATE_PLAIN, "", 2);
    assert_string_equal(text, "<image><image>");
    free(text);
    text = template_prompt(TEMPLATE_V1, "Hm", 0);
    assert_non_null(strstr(text, "user's questions. USER: Hm ASSISTANT:"));
    free(text);
}

static void test_normalisation(void **state) {
    (void)state;
    static const char *const pair[][2] = {
        {"What?\n<image>", "<image>\nWhat?"},
        {"<image>\nWhat?", "<image>\nWhat?"},
        {"  a <image> b<image> ", "<image>\na  b"},
        {"<image>", "<image>"},
        {"<image>\xe3\x80\x80\xc2\xa0 x", "<image>\nx"},
        {"  no marker  ", "  no marker  "},
    };
    for (size_t i = 0; i < sizeof pair / sizeof pair[0]; i++) {
        struct text t = {0};
        text_normalise_marker(&t, pair[i][0], strlen(pair[i][0]));
        assert_string_equal(t.data, pair[i][1]);
        free(t.data);
    }
}

static void expect_ids(const char *text, bool images, const char *ids) {
    struct id_list list = {0};
    assert_int_equal(tokenizer_encode(tok, text, strlen(text), false, images, &list), 0);
    struct token_rows rows = {list.ids, list.ids, list.n, list.n};
    assert_int_equal(compare(&rows, 0, &(struct stretch){true, ids}), list.n);
    free(list.ids);
}

static void test_tokenizer(void **state) {
    (void)state;
    assert_int_equal(tokenizer_vocab_size(tok), 32000);
    assert_int_equal(tokenizer_bos(tok), 1);
    assert_int_equal(tokenizer_eos(tok), 2);
    assert_string_equal(tokenizer_sha256(tok),
                        "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055");
    expect_ids("Hello world!", true, "22557 1526 28808");
    expect_ids("\n", true, "28705 13");
    expect_ids(" ", true, "259");
    expect_ids("", true, "");
    expect_ids("[INST]", true, "733 16289 28793");
    expect_ids("</s>Hello<s><unk>Hello", true, "2 22557 1 0 22557");
    expect_ids("<image>", true, "-200");
    expect_ids("<image>", false, "523 4075 28767");
    assert_int_equal(tokenizer_piece_id(tok, "<0x0A>"), 13);
    assert_int_equal(tokenizer_piece_id(tok, "<pad>"), -1);
}

static void test_decode(void **state) {
    (void)state;
    static const char *const texts[] = {"Hello world!", "\xe7\x8c\xab \xf0\x9f\x98\x80 a\n b"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct id_list list = {0};
        assert_int_equal(tokenizer_encode(tok, texts[i], strlen(texts[i]), true, true, &list), 0);
        char *back = tokenizer_decode(tok, list.ids, list.n, NULL);
        assert_string_equal(back, texts[i]);
        free(back);
        free(list.ids);
    }
    assert_null(tokenizer_decode(tok, &(int32_t){32000}, 1, NULL));
    assert_non_null(strstr(error_text(), "32000"));
    error_clear();
}

static void test_refused(void **state) {
    (void)state;
    struct tokenizer *t;
    assert_int_equal(tokenizer_open("TikTokenizer", TOKENIZER_MODEL, &t), EXIT_USAGE);
    assert_non_null(strstr(error_text(), "TikTokenizer"));
    error_clear();
    assert_int_equal(tokenizer_open("Llama2Tokenizer", "no/such.model", &t), EXIT_NO_INPUT);
    assert_non_null(strstr(error_text(), "no/such.model"));
    error_clear();
    assert_int_equal(tokenizer_open("Llama2Tokenizer", "Makefile", &t), EXIT_BAD_DATA);
    assert_non_null(strstr(error_text(), "Makefile"));
    error_clear();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mistral_instruct),
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_v1),
        cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_mismatch_is_found),
        cmocka_unit_test(test_llava_llama_2),
        cmocka_unit_test(test_chatml_text),
        cmocka_unit_test(test_generation_prompt),
        cmocka_unit_test(test_normalisation),
        cmocka_unit_test(test_tokenizer),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("data labels", tests, open_model, close_model);
}
