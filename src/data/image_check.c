/* Looks at every image of an index under construction, with several threads: a file that cannot be
 * decoded is found before the first step, not at step 22. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "index_impl.h"

struct verdict {
    int code; /* 0: decoded */
    int64_t stamp;
    char *why;
    struct image image;
};
struct check {
    const struct index *x;
    const struct image_pipeline *pipeline;
    const char *folder;
    int folder_fd;
    struct verdict *verdict; /* [images] */
    int64_t n;
    atomic_llong next, done;
};

static void check_one(struct check *c, struct image_scratch *s, int64_t i) {
    struct verdict *v = &c->verdict[i];
    /* Stamped first: a change while it is read shows at the next start. */
    v->stamp = file_stamp(c->folder_fd, index_image_name(c->x, i));
    v->code = image_load(c->pipeline, c->folder, index_image_name(c->x, i), s, &v->image, NULL);
    if (v->code != 0) v->why = xstrdup(s->why);
    atomic_fetch_add(&c->done, 1);
}

static void *check_thread(void *arg) {
    struct check *c = arg;
    struct image_scratch s = {0};
    for (int64_t i = atomic_fetch_add(&c->next, 1); i < c->n; i = atomic_fetch_add(&c->next, 1))
        check_one(c, &s, i);
    image_scratch_free(&s);
    return NULL;
}

/* The calling thread reports while the others work. */
static void check_all(struct check *c, struct builder *b) {
    int n_threads = b->set->num_workers < 1 ? 1 : b->set->num_workers;
    pthread_t *thread = xcalloc((size_t)n_threads, sizeof *thread);
    int started = 0;
    while (started < n_threads && pthread_create(&thread[started], NULL, check_thread, c) == 0)
        started++;
    if (started == 0) check_thread(c);
    for (int64_t seen = 0; seen < c->n;) {
        int64_t done = atomic_load(&c->done);
        for (; seen < done; seen++) builder_step(b);
        if (seen < c->n) nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
    for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
    free(thread);
}

/* A file that could not be read because of the storage is no bad image: no policy forgives it. */
static bool is_forgiven(const struct builder *b, const struct verdict *v) {
    return b->set->on_bad_image != BAD_IMAGE_FAIL && v->code != EXIT_IO;
}

static void tell_bad(struct builder *b, int64_t i, int64_t image, const struct verdict *v) {
    const char *path = b->set->path, *name = index_name(&b->x, i),
               *image_name = index_image_name(&b->x, image);
    long long record = index_i64(&b->x, COL_RECORD)[i];
    if (!is_forgiven(b, v))
        builder_problem(b, v->code, "%s: record %lld (id %s): image %s %s", path, record, name,
                        image_name, v->why);
    else if (b->set->on_bad_image == BAD_IMAGE_SKIP)
        builder_leave_out(b, "record %lld (id %s): image %s %s", record, name, image_name, v->why);
    else
        log_warn("%s: record %lld (id %s): image %s %s: blank instead", path, record, name,
                 image_name, v->why);
}

static void note_image(struct index *x, int64_t image, const struct verdict *v) {
    bool good = v->code == 0;
    ((int32_t *)x->col[COL_IMAGE_WIDTH].data)[image] = good ? v->image.width : 0;
    ((int32_t *)x->col[COL_IMAGE_HEIGHT].data)[image] = good ? v->image.height : 0;
    ((int64_t *)x->col[COL_IMAGE_BYTES].data)[image] = good ? (int64_t)v->image.file_bytes : 0;
    ((uint8_t *)x->col[COL_IMAGE_BLANK].data)[image] = !good;
    ((int64_t *)x->col[COL_IMAGE_STAMP].data)[image] = v->stamp;
}

/* Images of sample i that cannot be used. */
static int64_t judge_sample(struct builder *b, const struct check *c, int64_t i) {
    const int64_t *range = index_i64(&b->x, COL_IMAGE_OFFSET) + i;
    int64_t n_bad = 0;
    for (int64_t k = range[0]; k < range[1]; k++) {
        note_image(&b->x, k, &c->verdict[k]);
        if (c->verdict[k].code == 0) continue;
        tell_bad(b, i, k, &c->verdict[k]);
        n_bad++;
    }
    return n_bad;
}

static int check_limit(struct builder *b, int64_t n_bad) {
    if (b->set->on_bad_image == BAD_IMAGE_FAIL || n_bad <= b->set->max_bad_images) return 0;
    return error_raise(EXIT_BAD_DATA,
                       "%s: %lld images cannot be used, max_bad_images = %lld; the warnings above "
                       "name them",
                       b->set->path, (long long)n_bad, (long long)b->set->max_bad_images);
}

static int judge_all(struct builder *b, const struct check *c) {
    int64_t n = index_samples(&b->x), n_bad = 0, n_skipped = 0;
    bool *keep = xcalloc((size_t)n, sizeof *keep);
    for (int64_t i = 0; i < n; i++) {
        int64_t bad = judge_sample(b, c, i);
        keep[i] = bad == 0 || b->set->on_bad_image != BAD_IMAGE_SKIP;
        n_skipped += !keep[i];
        n_bad += bad;
    }
    int rc = check_limit(b, n_bad);
    if (rc == 0 && n_skipped > 0) {
        b->x.skipped_bad_image = n_skipped;
        index_keep(&b->x, keep);
    }
    free(keep);
    return rc;
}

int builder_check_images(struct builder *b) {
    struct image_pipeline pipeline;
    image_pipeline_init(&pipeline, b->set);
    int64_t n = index_images(&b->x);
    char *folder = data_image_folder(b->set);
    struct check c = {.x = &b->x, .pipeline = &pipeline, .folder = folder, .n = n};
    c.verdict = xcalloc((size_t)n + 1, sizeof *c.verdict);
    c.folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check_all(&c, b);
    if (c.folder_fd >= 0) close(c.folder_fd);
    int rc = judge_all(b, &c);
    for (int64_t i = 0; i < n; i++) free(c.verdict[i].why);
    free(c.verdict);
    free(folder);
    return rc;
}
