/* What import and export share: the model of a job file without its memory, files that are copied. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hf_impl.h"

#define COPY_MAX ((size_t)256 << 20)

/* The text becomes a file without a name, which config reads under the name that is given here. */
static int load_text(const char *name, const char *folder, const char *text, struct config **out) {
    int fd = memfd_create("job", MFD_CLOEXEC), rc = 0;
    char *path = xasprintf("/proc/self/fd/%d", fd), *shown = xasprintf("job file for %s", name);
    size_t n = strlen(text);
    if (fd < 0 || write(fd, text, n) != (ssize_t)n)
        rc = error_raise(EXIT_CANT_CREATE, "%s: no room for the job file: %s", name,
                         strerror(errno));
    if (!rc) rc = config_load_named(path, shown, folder, out);
    if (fd >= 0) close(fd);
    free(path);
    free(shown);
    return rc;
}

int hf_model_build(const char *name, const char *folder, const char *text, struct hf_model *out) {
    memset(out, 0, sizeof *out);
    TRY(load_text(name, folder, text, &out->cfg));
    int rc = stack_build(out->cfg, &out->stack);
    if (!rc)
        rc = stage_build(&out->stack, 0, out->stack.n_layers, 1, 0, REPEAT_NOTHING, 0, &out->stage);
    for (int i = 0; !rc && i < out->stage.params.n; i++) {
        struct param *p = &out->stage.params.param[i];
        p->w = tensor_view(NULL, p->rows, p->cols, DTYPE_F32);
    }
    if (rc) hf_model_free(out);
    return rc;
}

void hf_model_free(struct hf_model *m) {
    stage_free(&m->stage);
    stack_free(&m->stack);
    config_free(m->cfg);
    memset(m, 0, sizeof *m);
}

#define HF_WAIT_MINUTES 1440

int hf_grid_create(struct grid **grid) {
    return grid_create(1, 1, false, HF_WAIT_MINUTES, grid);
}

int hf_copy_file(const char *from_folder, const char *name, const char *to_folder,
                 const char *to_name, int *n_copied) {
    char *from = xasprintf("%s/%s", from_folder, name),
         *to = xasprintf("%s/%s", to_folder, to_name);
    char *data = NULL;
    size_t bytes;
    int rc = 0;
    if (access(from, F_OK) == 0) {
        rc = file_read(from, COPY_MAX, &data, &bytes);
        if (!rc && lfs_pointer(data, bytes))
            rc = error_raise(EXIT_BAD_DATA, "%s " LFS_POINTER, from);
        if (!rc) rc = file_write_atomic(to, data, bytes);
        if (!rc) ++*n_copied;
    }
    free(data);
    free(from);
    free(to);
    return rc;
}

int hf_copy_tokenizer(const char *from, const char *to, int *n_copied) {
    static const char *const name[] = {"tokenizer.model",       "tokenizer.json",
                                       "tokenizer_config.json", "special_tokens_map.json",
                                       "added_tokens.json",     "chat_template.json",
                                       "chat_template.jinja"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++)
        TRY(hf_copy_file(from, name[i], to, name[i], n_copied));
    return 0;
}

int hf_make_folder(const char *path, const char *taken) {
    char *there = xasprintf("%s/%s", path, taken);
    bool found = access(there, F_OK) == 0;
    int rc = found
                 ? error_raise(EXIT_CANT_CREATE, "%s is there already: give another folder", there)
                 : dir_make(path);
    free(there);
    return rc;
}

int hf_option_value(int argc, char **argv, int *i, const char **value) {
    if (*i + 1 >= argc) return error_raise(EXIT_USAGE, "%s needs a word behind it", argv[*i]);
    *value = argv[++*i];
    return 0;
}
