/* Captioned folder: each image below the folder has a text file of the same stem, whose lines that are
 * not empty, or the first of them, are the caption. Order: bytes of the relative path. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "encoding.h"
#include "index_impl.h"

#define DEPTH_MAX 32

struct entry {
    char *name;  /* relative path */
    size_t stem; /* its length without extension */
    bool caption;
};
struct listing {
    const char *root, *extension;
    struct entry *entry;
    int64_t n, capacity;
};

static void listing_free(struct listing *l) {
    for (int64_t i = 0; i < l->n; i++) free(l->entry[i].name);
    free(l->entry);
}

static void listing_add(struct listing *l, char *name) {
    if (l->n == l->capacity) {
        l->capacity = 2 * l->capacity + 256;
        l->entry = xrealloc(l->entry, (size_t)l->capacity * sizeof *l->entry);
    }
    struct entry *e = &l->entry[l->n++];
    size_t length = strlen(name), extension = strlen(l->extension);
    const char *base = strrchr(name, '/'), *dot = strrchr(base != NULL ? base : name, '.');
    *e = (struct entry){name, dot != NULL ? (size_t)(dot - name) : length, false};
    if (length > extension && strcmp(name + length - extension, l->extension) == 0) {
        e->caption = true;
        e->stem = length - extension;
    }
}

static int walk(struct listing *l, int fd, const char *prefix, int depth);

static int visit(struct listing *l, int parent, const char *prefix, const char *base, int depth) {
    struct stat st;
    char *name = xasprintf("%s%s%s", prefix, prefix[0] != '\0' ? "/" : "", base);
    int rc = 0;
    if (fstatat(parent, base, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        rc = error_raise(EXIT_IO, "%s/%s: %s", l->root, name, strerror(errno));
    } else if (S_ISDIR(st.st_mode)) {
        int fd = openat(parent, base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        rc = fd < 0 ? error_raise(EXIT_IO, "%s/%s: %s", l->root, name, strerror(errno))
                    : walk(l, fd, name, depth + 1);
    } else if (S_ISREG(st.st_mode)) {
        listing_add(l, name);
        return 0;
    } else {
        rc = error_raise(EXIT_BAD_DATA,
                         "%s/%s is neither file nor folder; links inside a captioned folder are "
                         "not followed",
                         l->root, name);
    }
    free(name);
    return rc;
}

/* Takes over fd. Names that begin with a dot are other programs' business. */
static int walk(struct listing *l, int fd, const char *prefix, int depth) {
    DIR *dir = depth > DEPTH_MAX ? NULL : fdopendir(fd);
    if (dir == NULL) {
        close(fd);
        return error_raise(EXIT_BAD_DATA, "%s/%s is nested deeper than %d or cannot be read",
                           l->root, prefix, DEPTH_MAX);
    }
    int rc = 0;
    for (struct dirent *d = readdir(dir); d != NULL && rc == 0; d = readdir(dir))
        if (d->d_name[0] != '.') rc = visit(l, fd, prefix, d->d_name, depth);
    closedir(dir);
    return rc;
}

/* By stem, then caption before image: partners lie side by side. */
static int by_stem(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    size_t n = x->stem < y->stem ? x->stem : y->stem;
    int order = memcmp(x->name, y->name, n);
    if (order != 0) return order;
    if (x->stem != y->stem) return x->stem < y->stem ? -1 : 1;
    if (x->caption != y->caption) return x->caption ? -1 : 1;
    return strcmp(x->name, y->name);
}

static bool same_stem(const struct entry *x, const struct entry *y) {
    return x->stem == y->stem && memcmp(x->name, y->name, x->stem) == 0;
}

static int list_folder(const char *path, const char *extension, struct listing *l) {
    *l = (struct listing){.root = path, .extension = extension};
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_raise(errno == ENOENT ? EXIT_NO_INPUT : EXIT_IO,
                           "data_path %s cannot be opened as a folder: %s", path, strerror(errno));
    TRY(walk(l, fd, "", 0));
    if (l->n == 0) return error_raise(EXIT_BAD_DATA, "data_path %s holds no file", path);
    qsort(l->entry, (size_t)l->n, sizeof *l->entry, by_stem);
    return 0;
}

int folder_fingerprint(const struct data_settings *s, struct sha256 *h) {
    struct listing l;
    int rc = list_folder(s->path, s->caption_extension, &l);
    if (rc == 0) {
        const char **caption = xcalloc((size_t)l.n + 1, sizeof *caption);
        int64_t *stamp = xcalloc((size_t)l.n + 1, sizeof *stamp), n = 0;
        for (int64_t i = 0; i < l.n; i++) {
            sha256_add(h, l.entry[i].name, strlen(l.entry[i].name) + 1);
            if (l.entry[i].caption) caption[n++] = l.entry[i].name;
        }
        file_stamps(s->path, caption, n, s->num_workers, stamp);
        sha256_add(h, stamp, (size_t)n * sizeof *stamp);
        free(caption);
        free(stamp);
    }
    listing_free(&l);
    return rc;
}

/* ---- captions -------------------------------------------------------------------------------- */

struct folder_scratch {
    struct image_scratch file;
    struct text human, caption;
};

/* The next line that is not empty, without the blanks around it; false if there is none. Lines end as
 * Python reads them: in a line feed, a carriage return, or both. */
static bool next_line(const char **at, const char *end, const char **line, size_t *bytes) {
    while (*at < end) {
        const char *stop = *at;
        while (stop < end && *stop != '\n' && *stop != '\r') stop++;
        *line = *at;
        *bytes = (size_t)(stop - *at);
        text_trim(line, bytes);
        *at = stop + 1;
        if (*bytes > 0) return true;
    }
    return false;
}

/* The caption: all lines, joined by a line feed, or the first; the others are then counted. */
static void read_caption(struct builder *b, const char *text, size_t bytes, struct text *out) {
    const char *end = text + bytes, *line = text;
    size_t n = 0;
    int64_t lines = 0, left_out = 0;
    out->bytes = 0;
    while (next_line(&text, end, &line, &n)) {
        if (lines++ > 0 && b->set->caption_lines == CAPTION_FIRST) {
            left_out++;
            continue;
        }
        if (lines > 1) text_add(out, "\n", 1);
        text_add(out, line, n);
    }
    b->lines_left_out += left_out;
    b->captions_cut += left_out > 0;
}

static int add_pair(struct builder *b, struct folder_scratch *f, const struct entry *caption,
                    const struct entry *image, int64_t number) {
    size_t bytes;
    char why[ENCODING_WHY_BYTES];
    const char *root = b->set->path, *name = image->name;
    int rc = image_read_file(root, caption->name, &f->file, &bytes);
    if (rc != 0) {
        builder_problem(b, rc, "%s/%s %s", root, caption->name, f->file.why);
        return 0;
    }
    const char *text = f->file.file.data;
    if (!encoding_is_text(text, bytes, why)) {
        builder_problem(b, EXIT_BAD_DATA, "%s/%s %s", root, caption->name, why);
        return 0;
    }
    if (!encoding_is_utf8(text, bytes)) {
        builder_problem(b, EXIT_BAD_DATA, "%s/%s is no UTF-8 text", root, caption->name);
        return 0;
    }
    size_t mark = encoding_mark(text, bytes);
    read_caption(b, text + mark, bytes - mark, &f->caption);
    if (f->caption.bytes == 0) {
        builder_problem(b, EXIT_BAD_DATA, "%s/%s holds no caption: every line is empty", root,
                        caption->name);
        return 0;
    }
    struct turn turns[2] = {{true, f->human.data, f->human.bytes},
                            {false, f->caption.data, f->caption.bytes}};
    return builder_add(b, &(struct record){number, name, turns, 2, &name, 1});
}

static void report_lone(struct builder *b, const struct entry *e) {
    builder_problem(b, EXIT_BAD_DATA, "%s/%s has no %s of the same name beside it", b->set->path,
                    e->name, e->caption ? "image" : b->set->caption_extension);
}

static int add_pairs(struct builder *b, struct listing *l, struct folder_scratch *f) {
    int64_t number = 0;
    for (int64_t i = 0; i < l->n && b->n_problems < PROBLEMS_MAX; builder_step(b)) {
        const struct entry *e = &l->entry[i];
        int64_t n = 1;
        while (i + n < l->n && same_stem(e, e + n)) n++;
        if (n == 1) {
            report_lone(b, e);
        } else if (n > 2 || !e->caption || e[1].caption) {
            builder_problem(b, EXIT_BAD_DATA,
                            "%s/%s and %s have the same stem: which one belongs "
                            "to the caption?",
                            b->set->path, e[n - 2].name, e[n - 1].name);
        } else {
            TRY(add_pair(b, f, e, e + 1, number++));
        }
        i += n;
    }
    return 0;
}

int source_folder_read(struct builder *b) {
    struct listing l;
    struct folder_scratch f = {0};
    int rc = list_folder(b->set->path, b->set->caption_extension, &l);
    b->total = l.n / 2;
    text_puts(&f.human, IMAGE_TEXT "\n");
    if (b->set->caption_prompt != NULL) text_puts(&f.human, b->set->caption_prompt);
    if (rc == 0) rc = add_pairs(b, &l, &f);
    free(f.human.data);
    free(f.caption.data);
    image_scratch_free(&f.file);
    listing_free(&l);
    return rc;
}
