/* used.ini: what it says of a job file that is taken must load, and to the same values. */
/* max_len: 4096 */
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "target.h"

struct values {
    char *text;
    size_t bytes;
    FILE *to;
};

static void note(void *arg, const char *section, const char *key, const char *value,
                 bool defaulted) {
    struct values *v = arg;
    (void)defaulted;
    /* The path of used.ini is another one: what counts from the job file is absolute in both. */
    fprintf(v->to, "%s %s %s\n", section, key, value != NULL ? value : "(unset)");
}

static struct values values_of(const struct config *cfg) {
    struct values v = {0};
    v.to = open_memstream(&v.text, &v.bytes);
    CHECK(v.to != NULL, "no memory");
    config_each(cfg, note, &v);
    fclose(v.to);
    return v;
}

static void repeat(const struct config *cfg) {
    struct values used = {0}, before = values_of(cfg), after;
    struct config *again = NULL;
    used.to = open_memstream(&used.text, &used.bytes);
    CHECK(used.to != NULL && config_write_used(cfg, used.to) == 0, "used.ini");
    fclose(used.to);
    int rc = config_load(fuzz_file("used.ini", used.text, used.bytes, 0), 0, NULL, &again);
    if (rc != 0) fputs(used.text, stderr);
    fuzz_expect(rc == 0, "used.ini is refused");
    after = values_of(again);
    bool same = strcmp(before.text, after.text) == 0;
    if (!same) fprintf(stderr, "before:\n%s\nafter:\n%s\n", before.text, after.text);
    fuzz_expect(same, "used.ini has other values");
    config_free(again);
    free(before.text);
    free(after.text);
    free(used.text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct config *cfg = NULL;
    int rc = config_load(fuzz_file("job.ini", data, bytes, 0), 0, NULL, &cfg);
    if (rc == 0) repeat(cfg);
    config_free(cfg);
    fuzz_judge(rc);
    return 0;
}
