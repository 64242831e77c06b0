/* Whether a file is still the one that was read: size, time of the last change, and a checksum of its
 * first bytes, which a copy with an old time cannot keep. The rest of the file is not read. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "index_impl.h"

#define HEAD_BYTES 4096 /* a block: reading less costs the same */

static int64_t stamp_of(const int64_t *field, size_t bytes) {
    struct sha256 h;
    char hex[65];
    sha256_begin(&h);
    sha256_add(&h, field, bytes);
    sha256_end(&h, hex);
    hex[15] = '\0'; /* 60 bits: a positive number */
    return (int64_t)strtoull(hex, NULL, 16);
}

int64_t file_stamp(int folder, const char *name) {
    char head[HEAD_BYTES];
    struct stat st;
    int64_t field[5] = {0};
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0) {
        field[4] = errno;
    } else if (!S_ISREG(st.st_mode)) {
        field[4] = -1;
    } else {
        ssize_t n = pread(fd, head, sizeof head, 0);
        field[0] = st.st_size;
        field[1] = st.st_mtim.tv_sec;
        field[2] = st.st_mtim.tv_nsec;
        field[3] = n >= 0 ? (int64_t)crc32c(0, head, (size_t)n) : -1;
        field[4] = n >= 0 ? 0 : errno;
    }
    if (fd >= 0) close(fd);
    return stamp_of(field, sizeof field);
}

struct stamping {
    int folder;
    const char *const *name;
    int64_t n, *stamp;
    atomic_llong next;
};

static void *stamp_thread(void *arg) {
    struct stamping *s = arg;
    for (int64_t i = atomic_fetch_add(&s->next, 1); i < s->n; i = atomic_fetch_add(&s->next, 1))
        s->stamp[i] = file_stamp(s->folder, s->name[i]);
    return NULL;
}

void file_stamps(const char *folder, const char *const *name, int64_t n, int n_threads,
                 int64_t *stamp) {
    struct stamping s = {.name = name, .n = n, .stamp = stamp};
    s.folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (n_threads > n / 64) n_threads = (int)(n / 64); /* a thread costs as much as a few files */
    pthread_t *thread = xcalloc((size_t)n_threads + 1, sizeof *thread);
    int started = 0;
    while (started < n_threads && pthread_create(&thread[started], NULL, stamp_thread, &s) == 0)
        started++;
    stamp_thread(&s);
    for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
    free(thread);
    if (s.folder >= 0) close(s.folder);
}

/* ---- the images of an index ----------------------------------------------------------------------- */

char *index_find_changed(const struct index *x, const char *folder, int n_threads) {
    int64_t n = x->col[COL_IMAGE_STAMP].n, left = x->col[COL_LEFT_STAMP].n;
    const char **name = xcalloc((size_t)(n + left) + 1, sizeof *name);
    int64_t *now = xcalloc((size_t)(n + left) + 1, sizeof *now);
    for (int64_t i = 0; i < n; i++) name[i] = index_image_name(x, i);
    for (int64_t i = 0; i < left; i++)
        name[n + i] =
            (const char *)x->col[COL_LEFT_NAMES].data + index_i64(x, COL_LEFT_NAME_OFFSET)[i];
    file_stamps(folder, name, n + left, n_threads, now);
    char *changed = NULL;
    for (int64_t i = 0; i < n + left && changed == NULL; i++) {
        int64_t was =
            i < n ? index_i64(x, COL_IMAGE_STAMP)[i] : index_i64(x, COL_LEFT_STAMP)[i - n];
        if (now[i] != was) changed = xasprintf("%s/%s", folder, name[i]);
    }
    free(name);
    free(now);
    return changed;
}
