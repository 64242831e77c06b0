/* What all ranks must know: whether one of them failed, and why; bytes that one of them has. */
#include <stdlib.h>
#include <string.h>

#include "ckpt_impl.h"
#include "fault.h"

char *ckpt_share(const struct group *world, const void *mine, size_t mine_bytes, int root,
                 size_t *bytes) {
    int64_t n = (int64_t)mine_bytes;
    comm_broadcast(world, &n, sizeof n, root);
    char *copy = xmalloc((size_t)n + 1);
    if (n > 0 && group_rank(world) == root) memcpy(copy, mine, (size_t)n);
    if (n > 0) comm_broadcast(world, copy, (size_t)n, root);
    copy[n] = 0;
    *bytes = (size_t)n;
    return copy;
}

void ckpt_record_lines(int code, const char *who, char *text) {
    char *next = text;
    for (char *line; (line = strsep(&next, "\n"));)
        if (*line) error_raise(code, "%s%s", who, line);
}

int ckpt_recode(int code) {
    char *text = xstrdup(error_text());
    error_clear();
    ckpt_record_lines(code, "", text);
    free(text);
    return code;
}

int ckpt_agree(const struct group *world, int rc) {
    int64_t v[2] = {rc, rc ? group_size(world) - group_rank(world) : 0};
    comm_allreduce_i64(world, v, 2, REDUCE_MAX);
    fault_point("agree.in");
    if (v[0] == 0) return 0;
    int root = (int)(group_size(world) - v[1]);
    size_t bytes;
    char who[32];
    char *text = ckpt_share(world, error_text(), strlen(error_text()), root, &bytes);
    snprintf(who, sizeof who, "rank %d: ", root);
    if (!rc) ckpt_record_lines((int)v[0], who, text);
    free(text);
    return (int)v[0];
}
