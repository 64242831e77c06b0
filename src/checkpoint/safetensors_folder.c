/* A folder of safetensors files as one set of tensors; its index is compared with what is there. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt_impl.h"
#include "safetensors_impl.h"

int64_t safetensors_count(const struct safetensors *s) {
    return s->n;
}

const struct safetensor *safetensors_at(const struct safetensors *s, int64_t i) {
    return &s->tensor[i];
}

const char *safetensors_path(const struct safetensors *s) {
    return s->path;
}

const char *safetensors_file(const struct safetensors *s, int file) {
    return s->file[file].name;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct safetensor *)a)->name, ((const struct safetensor *)b)->name);
}

const struct safetensor *safetensors_find(const struct safetensors *s, const char *name) {
    struct safetensor key = {.name = (char *)(uintptr_t)name};
    return s->n ? bsearch(&key, s->tensor, (size_t)s->n, sizeof key, by_name) : NULL;
}

void safetensors_close(struct safetensors *s) {
    if (s == NULL) return;
    for (int64_t i = 0; i < s->n; i++) free(s->tensor[i].name);
    for (int i = 0; i < s->n_files; i++) {
        close(s->file[i].fd);
        free(s->file[i].name);
    }
    free(s->tensor);
    free(s->file);
    free(s->path);
    free(s);
}

/* Sorted by name; the same name in two files is refused. */
static int sort_tensors(struct safetensors *s) {
    if (s->n > 0) qsort(s->tensor, (size_t)s->n, sizeof *s->tensor, by_name);
    for (int64_t i = 1; i < s->n; i++) {
        const struct safetensor *a = &s->tensor[i - 1], *b = &s->tensor[i];
        char shown[200];
        if (strcmp(a->name, b->name) != 0) continue;
        text_printable(a->name, shown, sizeof shown);
        return error_raise(EXIT_BAD_DATA, "%s: tensor \"%s\" is in %s and in %s", s->path, shown,
                           s->file[a->file].name, s->file[b->file].name);
    }
    return 0;
}

/* ---- the index ---------------------------------------------------------------------------------------- */
static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Each file once, in the order of their names. */
static int open_named(struct safetensors *s, int folder, const char *path, const char **file,
                      size_t n, bool follow_links) {
    if (n > 0) qsort(file, n, sizeof *file, by_text);
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && strcmp(file[i - 1], file[i]) == 0) continue;
        int rc = safetensors_add_file(s, folder, file[i], follow_links);
        if (rc) return error_note(rc, "which %s names", path);
    }
    return 0;
}

/* *file: the name that each tensor of the index has. */
static int list_shards(const char *path, const struct json *map, const char **file, size_t *n) {
    const char *key;
    const struct json *value;
    for (void *i = NULL; (i = json_member(map, i, &key, &value));) {
        const char *name = json_string(value, NULL);
        char shown[300], tensor[200];
        text_printable(key, tensor, sizeof tensor);
        text_printable(name != NULL ? name : "(no text)", shown, sizeof shown);
        if (name == NULL || !safetensors_name_legal(name))
            return error_raise(
                EXIT_BAD_DATA,
                "%s: tensor \"%s\" is said to be in \"%s\": allowed is the name of a "
                ".safetensors file beside the index, without a path",
                path, tensor, shown);
        file[(*n)++] = name;
    }
    return 0;
}

static int open_shards(struct safetensors *s, int folder, const char *path, const struct json *map,
                       bool follow_links) {
    const char **file = xmalloc((json_size(map) + 1) * sizeof *file);
    size_t n = 0;
    int rc = list_shards(path, map, file, &n);
    if (!rc) rc = open_named(s, folder, path, file, n, follow_links);
    free(file);
    return rc;
}

/* Each tensor of the index in the file it names, each tensor of the files in the index. */
static int check_map(const struct safetensors *s, const char *path, const struct json *map) {
    const char *key;
    const struct json *value;
    char shown[200];
    for (void *i = NULL; (i = json_member(map, i, &key, &value));) {
        const struct safetensor *t = safetensors_find(s, key);
        const char *file = json_string(value, NULL);
        text_printable(key, shown, sizeof shown);
        if (t == NULL || strcmp(s->file[t->file].name, file) != 0)
            return error_raise(EXIT_BAD_DATA,
                               "%s: tensor \"%s\" is not in %s, which the index names", path, shown,
                               file);
    }
    for (int64_t i = 0; i < s->n; i++) {
        text_printable(s->tensor[i].name, shown, sizeof shown);
        if (json_get(map, s->tensor[i].name) == NULL)
            return error_raise(EXIT_BAD_DATA, "%s: tensor \"%s\" of %s is not in the index", path,
                               shown, s->file[s->tensor[i].file].name);
    }
    return 0;
}

/* What the index says of itself decides nothing: no reader believes it, and known tools write the number
 * of tensors there, or a size from before they changed the type. Some gave it as a real number. */
static void compare_total(const struct safetensors *s, const char *path, const struct json *root) {
    const struct json *meta = json_get(root, "metadata");
    const struct json *size =
        meta != NULL && json_kind(meta) == JSON_OBJECT ? json_get(meta, "total_size") : NULL;
    int64_t total = 0;
    if (size == NULL) return;
    for (int64_t i = 0; i < s->n; i++) total += s->tensor[i].bytes;
    enum json_kind kind = json_kind(size);
    if ((kind == JSON_INTEGER && json_integer(size) == total) ||
        (kind == JSON_REAL && !(fabs(json_real(size) - (double)total) >= 1.0)))
        return;
    log_warn("%s: its total_size is not the %lld bytes that the tensors have; the tensors are read "
             "as their files say",
             path, (long long)total);
}

static int open_index(struct safetensors *s, int folder, bool follow_links) {
    char *path = xasprintf("%s/%s", s->path, ST_INDEX_NAME);
    struct json *root = NULL;
    struct stat st;
    int rc = 0;
    if (fstatat(folder, ST_INDEX_NAME, &st, follow_links ? 0 : AT_SYMLINK_NOFOLLOW) != 0)
        rc = error_raise(file_code_of_errno(errno), "%s cannot be looked at: %s", path,
                         strerror(errno));
    else if (!S_ISREG(st.st_mode))
        rc = error_raise(EXIT_BAD_DATA, "%s is no regular file", path);
    if (!rc) rc = json_read_file(path, ST_INDEX_MAX, &root);
    const struct json *map =
        !rc && json_kind(root) == JSON_OBJECT ? json_get(root, "weight_map") : NULL;
    if (!rc && (map == NULL || json_kind(map) != JSON_OBJECT))
        rc = error_raise(EXIT_BAD_DATA, "%s: it has no object \"weight_map\"", path);
    if (!rc) rc = open_shards(s, folder, path, map, follow_links);
    if (!rc) rc = sort_tensors(s);
    if (!rc) rc = check_map(s, path, map);
    if (!rc) compare_total(s, path, root);
    if (root != NULL) json_free(root);
    free(path);
    return rc;
}

/* ---- which file of the folder -------------------------------------------------------------------------- */
static bool has_suffix(const char *name, const char *suffix) {
    size_t n = strlen(name), k = strlen(suffix);
    return n > k && strcmp(name + n - k, suffix) == 0;
}

/* Whether the folder has something of that name, be it a link to nowhere. */
static int look(const struct safetensors *s, int folder, const char *name, bool *there) {
    int rc, tries = 0;
    do {
        rc = faccessat(folder, name, F_OK, AT_SYMLINK_NOFOLLOW);
    } while (rc != 0 && file_try_again(errno, &tries));
    *there = rc == 0;
    if (rc == 0 || file_code_of_errno(errno) == EXIT_NO_INPUT) return 0;
    return error_raise(file_code_of_errno(errno), "%s/%s cannot be looked at: %s", s->path, name,
                       strerror(errno));
}

static int choose_other(const struct safetensors *s, int folder, char *name, size_t size) {
    struct name_list list;
    int64_t n = 0, pickles = 0;
    TRY(folder_list(s->path, &list));
    for (int64_t i = 0; i < list.n; i++) {
        pickles += has_suffix(list.name[i], ".bin") || has_suffix(list.name[i], ".pth") ||
                   has_suffix(list.name[i], ".pt");
        if (!safetensors_name_legal(list.name[i])) continue;
        snprintf(name, size, "%s", list.name[i]);
        n++;
    }
    name_list_free(&list);
    if (n == 1) return 0;
    bool tf = false;
    if (n == 0) TRY(look(s, folder, TF_WEIGHTS, &tf));
    if (tf) {
        snprintf(name, size, "%s", TF_WEIGHTS);
        return 0;
    }
    if (n > 1)
        return error_raise(EXIT_NO_INPUT,
                           "%s has %lld .safetensors files and no %s that joins them", s->path,
                           (long long)n, ST_INDEX_NAME);
    return error_raise(EXIT_NO_INPUT, "%s has no .safetensors file%s", s->path,
                       pickles ? "; .bin, .pt and .pth files are programs and are never read: save "
                                 "the model as safetensors"
                               : "");
}

static int open_folder(struct safetensors *s, int folder, bool follow_links) {
    static const char *const single[] = {"model.safetensors", "consolidated.safetensors"};
    char name[300] = "";
    bool there;
    TRY(look(s, folder, ST_INDEX_NAME, &there));
    if (there) return open_index(s, folder, follow_links);
    for (int i = 1; i >= 0; i--) {
        TRY(look(s, folder, single[i], &there));
        if (there) snprintf(name, sizeof name, "%s", single[i]);
    }
    if (name[0] == 0) TRY(choose_other(s, folder, name, sizeof name));
    int rc = safetensors_add_file(s, folder, name, follow_links);
    if (rc) return error_note(rc, "in %s", s->path);
    return sort_tensors(s);
}

static int open_path(struct safetensors *s, bool follow_links) {
    struct stat st;
    bool there;
    TRY(file_look(s->path, &there));
    if (!there || stat(s->path, &st) != 0)
        return error_raise(EXIT_NO_INPUT, "%s: there is no such file or folder", s->path);
    if (!S_ISDIR(st.st_mode)) {
        TRY(safetensors_add_file(s, AT_FDCWD, s->path, follow_links));
        return sort_tensors(s);
    }
    int folder = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return error_raise(file_code_of_errno(errno), "%s cannot be opened: %s", s->path,
                           strerror(errno));
    int rc = open_folder(s, folder, follow_links);
    close(folder);
    return rc;
}

int safetensors_open(const char *path, const struct safetensors_options *options,
                     struct safetensors **out) {
    struct safetensors *s = xcalloc(1, sizeof *s);
    s->path = xstrdup(path);
    int rc = open_path(s, options != NULL && options->follow_links);
    *out = rc ? NULL : s;
    if (rc) safetensors_close(s);
    return rc;
}
