/* The effective keys of the job that wrote a checkpoint. */
#include <stdlib.h>
#include <string.h>

#include "h5_impl.h"

/* Keys and values as NUL-terminated texts, one after the other. */
struct texts {
    char *bytes;
    size_t n;
    int rc;
};

static void add_text(struct texts *t, const char *text) {
    size_t n = strlen(text) + 1;
    t->bytes = xrealloc(t->bytes, t->n + n);
    memcpy(t->bytes + t->n, text, n);
    t->n += n;
}

static herr_t keep_attribute(hid_t at, const char *name, const H5A_info_t *info, void *arg) {
    struct texts *t = arg;
    char *value;
    (void)info;
    t->rc = h5_get_text(at, name, &value);
    if (t->rc) return -1;
    add_text(t, name);
    add_text(t, value);
    free(value);
    return 0;
}

static int read_config(const struct ckpt_settings *settings, const struct ckpt_found *found,
                       struct texts *t) {
    struct shard_reader r;
    h5_begin(settings);
    int rc = reader_open(&r, found->dir, found->manifest, 0, 0);
    hid_t g = -1;
    if (!rc) rc = h5_open_group(r.file, r.path, "config", &g);
    if (!rc && H5Aiterate2(g, H5_INDEX_CRT_ORDER, H5_ITER_INC, NULL, keep_attribute, t) < 0)
        rc = t->rc ? t->rc : h5_error(EXIT_BAD_DATA, "%s: /config cannot be listed", r.path);
    rc = h5_close(rc, g, "config");
    rc = reader_close(rc, &r);
    h5_end(settings);
    return rc;
}

bool ckpt_name_listed(const char *names, const char *name) {
    size_t n = strlen(name);
    for (const char *at = names; *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == n && memcmp(at, name, n) == 0) return true;
    return false;
}

int ckpt_config(const struct ckpt_settings *settings, const struct ckpt_found *found,
                const struct grid *grid,
                void (*each)(void *arg, const char *section, const char *key, const char *value,
                             bool defaulted),
                void *arg) {
    const struct group *world = grid_group(grid, GROUP_WORLD);
    struct texts t = {0};
    size_t bytes;
    const char *defaulted = "";
    int rc = group_rank(world) == 0 ? read_config(settings, found, &t) : 0;
    rc = ckpt_agree(world, rc);
    if (rc) {
        free(t.bytes);
        return rc;
    }
    char *all = ckpt_share(world, t.bytes, t.n, 0, &bytes), *end = all + bytes;
    free(t.bytes);
    for (char *name = all; name < end; name += strlen(name) + 1) {
        char *value = name + strlen(name) + 1;
        if (strcmp(name, "defaulted") == 0) defaulted = value;
        name = value;
    }
    for (char *name = all; name < end;) {
        char *value = name + strlen(name) + 1, *dot = strchr(name, '.');
        if (dot) {
            bool is_default = ckpt_name_listed(defaulted, name);
            *dot = 0;
            each(arg, name, dot + 1, value, is_default);
        }
        name = value + strlen(value) + 1;
    }
    free(all);
    return 0;
}
