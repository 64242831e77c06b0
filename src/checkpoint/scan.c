/* Reading files back byte by byte: sizes, checksums, and which tensor a damaged byte belongs to. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt_impl.h"

#define CHUNK ((size_t)1 << 20)

/* The code for a file of a checkpoint that cannot be opened or looked at: one that is missing, or a
 * link, is damage, because the manifest names it. */
static int code_of_errno(int error) {
    int code = error == ELOOP ? EXIT_NO_INPUT : file_code_of_errno(error);
    return code == EXIT_NO_INPUT ? EXIT_BAD_DATA : code;
}

/* A regular file inside the folder, never through a link. */
static int open_file(const char *dir, const char *name, int *fd) {
    struct stat st;
    int error = 0, tries = 0;
    do {
        int folder = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        *fd =
            folder < 0 ? -1 : openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        error = errno;
        if (folder >= 0) close(folder);
    } while (*fd < 0 && file_try_again(error, &tries));
    if (*fd < 0)
        return error_raise(code_of_errno(error), "%s/%s cannot be opened: %s", dir, name,
                           strerror(error));
    error = fstat(*fd, &st) == 0 ? 0 : errno;
    if (!error && S_ISREG(st.st_mode)) return 0;
    close(*fd);
    if (error)
        return error_raise(EXIT_IO, "%s/%s cannot be looked at: %s", dir, name, strerror(error));
    return error_raise(EXIT_BAD_DATA, "%s/%s is no regular file", dir, name);
}

/* Exactly n bytes at `at`. */
static int read_at(int fd, char *to, size_t n, int64_t at, const char *dir, const char *name) {
    int tries = 0;
    while (n > 0) {
        ssize_t got = pread(fd, to, n, at);
        if (got > 0) {
            to += got;
            at += got;
            n -= (size_t)got;
            continue;
        }
        if (got == 0)
            return error_raise(EXIT_BAD_DATA, "%s/%s ends at byte %lld", dir, name, (long long)at);
        if (!file_try_again(errno, &tries))
            return error_raise(EXIT_IO, "%s/%s: reading failed at byte %lld: %s", dir, name,
                               (long long)at, strerror(errno));
    }
    return 0;
}

/* A CRC block, or a stored chunk, as a range of the file. */
struct range {
    int64_t first, end;
    const struct ckpt_tensor *tensor;
    const struct ckpt_block *block;
    int64_t index;
    struct ckpt_chunk *chunk; /* NULL: a CRC block */
    uint32_t crc;
};

static int by_place(const void *a, const void *b) {
    int64_t x = ((const struct range *)a)->first, y = ((const struct range *)b)->first;
    return x < y ? -1 : x > y;
}

static struct range crc_range(const struct ckpt_tensor *t, const struct ckpt_block *b, int64_t k) {
    int64_t first = b->file_offset + k * CKPT_CRC_BLOCK, end = first + CKPT_CRC_BLOCK;
    if (end > b->file_offset + b->bytes) end = b->file_offset + b->bytes;
    return (struct range){.first = first, .end = end, .tensor = t, .block = b, .index = k};
}

/* Stored chunk k, or CRC block k. */
static struct range range_of(const struct ckpt_tensor *t, const struct ckpt_block *b, int64_t k) {
    struct ckpt_chunk *c = b->chunk;
    if (c == NULL) return crc_range(t, b, k);
    c += k;
    return (struct range){.first = c->file_offset,
                          .end = c->file_offset + c->bytes,
                          .tensor = t,
                          .block = b,
                          .index = k,
                          .chunk = c};
}

static int64_t count_ranges(const struct ckpt_block *b) {
    return b->chunk ? b->n_chunks : b->n_crc;
}

/* Elements [*first, *end) of the block lie in it. */
static void range_elements(const struct range *r, int64_t *first, int64_t *end) {
    int64_t element = (int64_t)dtype_size(r->tensor->dtype);
    if (r->chunk) {
        chunk_elements(r->block, r->index, first, end);
        return;
    }
    *first = (r->first - r->block->file_offset) / element;
    *end = (r->end - r->block->file_offset) / element;
}

static uint32_t expected_crc(const struct range *r) {
    return r->chunk ? r->chunk->crc : r->block->crc[r->index];
}

static int64_t collect_ranges(const struct scan *s, struct range **out) {
    int64_t n = 0, capacity = 0, number = 0;
    struct range *range = NULL;
    struct blocks_by_file own = {0};
    const struct blocks_by_file *all = s->blocks;
    if (all == NULL) own = manifest_by_file(s->m), all = &own;
    for (int64_t i = all->first[s->file]; i < all->first[s->file + 1]; i++) {
        const struct ckpt_block *b = all->block[i].block;
        for (int64_t k = 0; k < count_ranges(b); k++) {
            bool its_turn = number++ % s->one_in == s->turn % s->one_in;
            if (!its_turn && !(b->chunk && s->fill)) continue;
            if (n == capacity) {
                capacity = capacity ? 2 * capacity : 256;
                range = xrealloc(range, (size_t)capacity * sizeof *range);
            }
            range[n++] = range_of(all->block[i].tensor, b, k);
        }
    }
    blocks_by_file_free(&own);
    if (n > 0) qsort(range, (size_t)n, sizeof *range, by_place);
    *out = range;
    return n;
}

static int damaged(const char *dir, const struct ckpt_manifest *m, const struct range *r) {
    char box[160];
    int64_t first, end;
    range_elements(r, &first, &end);
    box_text(&r->block->box, box, sizeof box);
    return error_raise(EXIT_BAD_DATA,
                       "%s/%s: tensor %s is damaged: elements %lld to %lld of dataset %s (box %s), "
                       "bytes %lld to %lld of the file: CRC32C %08x, expected %08x",
                       dir, m->file[r->block->file].name, r->tensor->name, (long long)first,
                       (long long)end - 1, r->block->dataset, box, (long long)r->first,
                       (long long)r->end - 1, r->crc, expected_crc(r));
}

/* The ranges of a file, ascending and apart, and the checksum of the file as far as it was read. */
struct tally {
    struct range *range;
    int64_t n, next;
    uint32_t file;
};

/* Two blocks in the same bytes would be counted twice, and no writer does that. */
static int check_apart(const struct scan *s, const struct tally *t) {
    for (int64_t i = 1; i < t->n; i++)
        if (t->range[i].first < t->range[i - 1].end)
            return error_raise(EXIT_BAD_DATA, "%s/%s: tensors %s and %s share bytes of the file",
                               s->dir, s->m->file[s->file].name, t->range[i - 1].tensor->name,
                               t->range[i].tensor->name);
    return 0;
}

/* Bytes [at, at+n) of the file pass by, each through one checksum: that of the range it lies in, which
 * joins the file's when it is complete, or the file's own. */
static void feed(struct tally *t, const char *bytes, int64_t at, int64_t n) {
    for (int64_t end = at + n; at < end;) {
        struct range *r = t->next < t->n ? &t->range[t->next] : NULL;
        bool inside = r && at >= r->first;
        int64_t stop = !r ? end : inside ? r->end : r->first;
        if (stop > end) stop = end;
        uint32_t *crc = inside ? &r->crc : &t->file;
        *crc = crc32c(*crc, bytes, (size_t)(stop - at));
        bytes += stop - at;
        at = stop;
        if (!inside || at != r->end) continue;
        t->file = crc32c_join(t->file, r->crc, (size_t)(r->end - r->first));
        t->next++;
    }
}

static int compare_file(const struct scan *s, const struct tally *t, const char *sha) {
    struct ckpt_file *f = &s->m->file[s->file];
    int rc = 0;
    for (int64_t i = 0; i < t->n; i++) {
        const struct range *r = &t->range[i];
        if (r->chunk && s->fill)
            r->chunk->crc = r->crc;
        else if (r->crc != expected_crc(r))
            rc = damaged(s->dir, s->m, r);
    }
    if (s->fill) {
        f->crc = t->file;
        if (s->sha256) memcpy(f->sha256, sha, sizeof f->sha256);
        return rc;
    }
    if (!rc && t->file != f->crc)
        rc = error_raise(EXIT_BAD_DATA,
                         "%s/%s is damaged outside the tensors (in what describes them): CRC32C "
                         "%08x, expected %08x",
                         s->dir, f->name, t->file, f->crc);
    if (!rc && s->sha256 && f->sha256[0] && strcmp(sha, f->sha256) != 0)
        rc = error_raise(EXIT_BAD_DATA, "%s/%s was altered: its SHA-256 is %s", s->dir, f->name,
                         sha);
    return rc;
}

static int scan_open_file(const struct scan *s, int fd, struct tally *tally) {
    struct ckpt_file *f = &s->m->file[s->file];
    struct stat st;
    struct sha256 sha;
    char hex[65] = "";
    if (fstat(fd, &st) != 0) return error_raise(EXIT_IO, "%s/%s: fstat failed", s->dir, f->name);
    if (s->fill) f->bytes = st.st_size;
    if (st.st_size != f->bytes)
        return error_raise(EXIT_BAD_DATA, "%s/%s has %lld bytes, the manifest says %lld", s->dir,
                           f->name, (long long)st.st_size, (long long)f->bytes);
    if (s->drop_cache) posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    char *chunk = xmalloc(CHUNK);
    int rc = 0;
    sha256_begin(&sha);
    for (int64_t at = 0; !rc && at < f->bytes; at += (int64_t)CHUNK) {
        size_t n = (size_t)(f->bytes - at) < CHUNK ? (size_t)(f->bytes - at) : CHUNK;
        rc = read_at(fd, chunk, n, at, s->dir, f->name);
        if (rc) break;
        if (s->sha256) sha256_add(&sha, chunk, n);
        feed(tally, chunk, at, (int64_t)n);
    }
    free(chunk);
    sha256_end(&sha, hex);
    return rc ? rc : compare_file(s, tally, hex);
}

int ckpt_scan_file(const struct scan *s) {
    int fd;
    struct tally tally = {0};
    TRY(open_file(s->dir, s->m->file[s->file].name, &fd));
    tally.n = collect_ranges(s, &tally.range);
    int rc = check_apart(s, &tally);
    if (!rc) rc = scan_open_file(s, fd, &tally);
    free(tally.range);
    if (close(fd) != 0 && !rc)
        rc = error_raise(EXIT_IO, "%s/%s: close failed", s->dir, s->m->file[s->file].name);
    return rc;
}

static int check_range(const char *dir, const struct ckpt_manifest *m, int fd, struct range r,
                       char *bytes) {
    TRY(read_at(fd, bytes, (size_t)(r.end - r.first), r.first, dir, m->file[r.block->file].name));
    r.crc = crc32c(0, bytes, (size_t)(r.end - r.first));
    return r.crc == expected_crc(&r) ? 0 : damaged(dir, m, &r);
}

int ckpt_check_block(const char *dir, const struct ckpt_manifest *m, const struct ckpt_tensor *t,
                     const struct ckpt_block *b, int64_t first, int64_t count) {
    int64_t element = (int64_t)dtype_size(t->dtype), from, to;
    int64_t room = b->chunk ? chunk_stored_most(chunk_bytes(b)) : CKPT_CRC_BLOCK;
    int fd, rc = 0;
    TRY(open_file(dir, m->file[b->file].name, &fd));
    char *bytes = xmalloc((size_t)room);
    for (int64_t k = 0; !rc && k < count_ranges(b); k++) {
        struct range r = range_of(t, b, k);
        range_elements(&r, &from, &to);
        if (to * element > first && from * element < first + count)
            rc = check_range(dir, m, fd, r, bytes);
    }
    free(bytes);
    close(fd);
    return rc;
}

/* ---- the list of files ----------------------------------------------------------------------------------- */
static int check_size(const char *dir, const struct ckpt_file *f) {
    struct stat st;
    char *path = xasprintf("%s/%s", dir, f->name);
    int rc = 0, error, tries = 0;
    do {
        error = lstat(path, &st) == 0 ? 0 : errno;
    } while (error && file_try_again(error, &tries));
    if (error && f->inspection)
        rc = 0;
    else if (error)
        rc = error_raise(code_of_errno(error), "%s %s: %s", path,
                         code_of_errno(error) == EXIT_BAD_DATA ? "is missing"
                                                               : "cannot be looked at",
                         strerror(error));
    else if (!S_ISREG(st.st_mode))
        rc = error_raise(EXIT_BAD_DATA, "%s is no regular file", path);
    else if (st.st_size != f->bytes && !f->inspection && lfs_pointer_file(path))
        rc = error_raise(EXIT_BAD_DATA, "%s " LFS_POINTER, path);
    else if (st.st_size != f->bytes && !f->inspection)
        rc = error_raise(EXIT_BAD_DATA, "%s has %lld bytes, the manifest says %lld: %s", path,
                         (long long)st.st_size, (long long)f->bytes,
                         st.st_size < f->bytes ? "it was cut short" : "something was added");
    free(path);
    return rc;
}

int ckpt_check_files(const char *dir, const struct ckpt_manifest *m) {
    struct name_list list;
    int rc = 0, one;
    for (int64_t i = 0; i < m->n_files && (rc == 0 || ckpt_is_damage(rc)); i++)
        if ((one = check_size(dir, &m->file[i])) && (!rc || !ckpt_is_damage(one))) rc = one;
    if (rc && !ckpt_is_damage(rc)) return rc;
    TRY(folder_list(dir, &list));
    const struct ckpt_file **file = manifest_files_by_name(m);
    for (int64_t i = 0, j = 0; i < list.n; i++) { /* both are sorted */
        while (j < m->n_files && strcmp(file[j]->name, list.name[i]) < 0) j++;
        bool known = strcmp(list.name[i], CKPT_MANIFEST) == 0 ||
                     (j < m->n_files && strcmp(file[j]->name, list.name[i]) == 0);
        if (known) continue;
        char shown[300];
        text_printable(list.name[i], shown, sizeof shown);
        one = error_raise(EXIT_BAD_DATA, "%s/%s is not in the manifest", dir, shown);
        if (!rc) rc = one;
    }
    free(file);
    name_list_free(&list);
    return rc;
}

int ckpt_verify_folder(const char *dir) {
    struct ckpt_manifest *m;
    TRY(ckpt_read_manifest(dir, &m));
    int rc = ckpt_check_files(dir, m);
    if (!rc) rc = manifest_check_coverage(m, dir);
    struct blocks_by_file blocks = manifest_by_file(m);
    for (int64_t i = 0, first = rc; !first && i < m->n_files; i++) {
        if (m->file[i].inspection) continue;
        struct scan s = {.dir = dir, .m = m, .blocks = &blocks, .file = (int)i, .one_in = 1};
        s.sha256 = m->file[i].sha256[0] != 0;
        int one = ckpt_scan_file(&s);
        if (one && (!rc || !ckpt_is_damage(one))) rc = one;
        if (one && !ckpt_is_damage(one)) break;
    }
    blocks_by_file_free(&blocks);
    manifest_free(m);
    return rc;
}
