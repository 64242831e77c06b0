/* Tables of figures in the run directory: one row per step, the first column its number. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault.h"
#include "train_impl.h"

/* Keeps the rows up to `step` below the header; a crash may have left later ones. */
static char *kept_rows(const char *text, const char *header, int64_t step) {
    char *out = xmalloc(strlen(text) + strlen(header) + 3);
    size_t n = strlen(header);
    memcpy(out, header, n);
    out[n++] = '\n';
    const char *line = strchr(text, '\n');
    while (line != NULL && line[1] != 0) {
        const char *end = strchr(++line, '\n');
        if (end == NULL || strtoll(line, NULL, 10) > step) break;
        memcpy(out + n, line, (size_t)(end - line) + 1);
        n += (size_t)(end - line) + 1;
        line = end;
    }
    out[n] = 0;
    return out;
}

static int open_at(const char *path, const char *header, int64_t step, FILE **out) {
    char *text = NULL;
    size_t bytes = 0;
    if (access(path, F_OK) == 0) TRY(file_read(path, (size_t)1 << 32, &text, &bytes));
    char *kept = kept_rows(text != NULL ? text : "", header, step);
    fault_point("start.metrics.before");
    int rc = file_write_atomic(path, kept, strlen(kept));
    fault_point("start.metrics.cut");
    free(text);
    free(kept);
    TRY(rc);
    *out = fopen(path, "a");
    if (*out == NULL) return error_raise(EXIT_CANT_CREATE, "%s cannot be written", path);
    return 0;
}

bool table_exists(const char *dir, const char *name) {
    char *path = xasprintf("%s/%s", dir, name);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

int table_open(const char *dir, const char *name, const char *header, int64_t step, FILE **out) {
    char *path = xasprintf("%s/%s", dir, name);
    int rc = open_at(path, header, step, out);
    free(path);
    return rc;
}
