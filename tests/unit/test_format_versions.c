/* Checkpoints that earlier versions wrote are read: tests/golden/checkpoint holds one of each format
 * version, in a folder of that name, made by
 *
 *   build/tests/unit/test_format_versions --write tests/golden/checkpoint/VERSION [deflate]
 *
 * from the code that wrote that version: 2 is written where there is a filter. It is loaded into several layouts, every value compared with
 * the formula of ckpt_model.h. A format of the future is refused in test_checkpoint.c. */
#include "ckpt_team.h"

#define GOLDEN "tests/golden/checkpoint"
static const struct ckpt_case writer = {
    .at = {2, 1, 2}, .split = {1}, .sharded = true, .one_layer = true};

static void read_version(const char *version) {
    static const struct ckpt_case reader[] = {
        {.at = {2, 1, 2}, .split = {1}, .sharded = true, .one_layer = true},
        {.at = {1, 1, 1}, .split = {1}, .one_layer = true},
        {.at = {3, 1, 1}, .split = {1}, .one_layer = true},
        {.at = {1, 1, 3}, .split = {1}, .sharded = true, .one_layer = true}};
    char *from = xasprintf("%s/%s/iter_0000001", GOLDEN, version), *says, *text;
    size_t bytes;
    struct ckpt_job job = {0};
    snprintf(job.folder, sizeof job.folder, "%s/%.60s", case_folder, version);
    char *to = xasprintf("%s/iter_0000001", job.folder);
    case_copy(from, to);
    for (size_t i = 0; i < sizeof reader / sizeof reader[0]; i++) {
        job.c = reader[i];
        const struct team_layout *at = &job.c.at;
        verdict(case_run(&job, case_load) == 1, "version %s into TP %d PP %d DP %d", version,
                at->tp, at->pp, at->dp);
    }
    char *manifest = xasprintf("%s/manifest.json", to);
    CHECK(file_read(manifest, (size_t)1 << 24, &text, &bytes) == 0, "%s", error_text());
    says = xasprintf("\"format_version\": \"%s\"", version);
    verdict(strstr(text, says) != NULL, "and it is of version %s", version);
    free(says);
    free(text);
    free(manifest);
    free(from);
    free(to);
}

int main(int argc, char **argv) {
    struct ckpt_job job = {.c = writer, .step = 1, .no_index = true};
    struct name_list list;
    case_begin();
    if (argc >= 3 && strcmp(argv[1], "--write") == 0) {
        if (argc == 4) job.filter = CKPT_FILTER_DEFLATE;
        snprintf(job.folder, sizeof job.folder, "%s", argv[2]);
        verdict(case_run(&job, case_save) == 0, "%s is written", argv[2]);
        return case_end();
    }
    CHECK(folder_list(GOLDEN, &list) == 0 && list.n > 0, "%s: %s", GOLDEN, error_text());
    for (int64_t i = 0; i < list.n; i++) read_version(list.name[i]);
    name_list_free(&list);
    return case_end();
}
