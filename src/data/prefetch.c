/* Prefetch: threads that decode the images of coming micro-batches. One lock, one queue of tickets;
 * an image is the unit of work. A waiter decodes too in place of sleeping. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "dataset_impl.h"

struct ticket {
    int64_t id; /* 0: free */
    int64_t n, taken, done;
    int64_t *image; /* [max_images] */
    int64_t *first; /* [max_images] tiles before it in `out` */
    float *out;
    int code; /* of the first image, in their order, that failed */
    int64_t failed;
    char why[IMAGE_WHY_BYTES];
};

struct prefetch {
    const struct dataset *d;
    size_t tile_floats;
    pthread_mutex_t lock;
    pthread_cond_t work, finished;
    struct ticket *ticket; /* [n_tickets] */
    int n_tickets, n_threads, n_scratch;
    int64_t max_images, last_id;
    bool stop;
    pthread_t *thread;
    struct image_scratch *scratch; /* [n_scratch], the last is the waiter's */
};

/* The oldest ticket with an image nobody has taken. Lock held. */
static struct ticket *oldest(struct prefetch *p) {
    struct ticket *best = NULL;
    for (int i = 0; i < p->n_tickets; i++) {
        struct ticket *t = &p->ticket[i];
        if (t->id != 0 && t->taken < t->n && (best == NULL || t->id < best->id)) best = t;
    }
    return best;
}

/* Takes, decodes and books one image of the ticket. Lock held on entry and on return. */
static void work_once(struct prefetch *p, struct ticket *t, struct image_scratch *s) {
    int64_t k = t->taken++, image = t->image[k];
    float *out = t->out + (size_t)t->first[k] * p->tile_floats;
    pthread_mutex_unlock(&p->lock);
    int code = dataset_fetch(p->d, image, s, out);
    if (code == 0 && s->why[0] != '\0')
        log_warn("image %s %s: blank instead", dataset_image_name(p->d, image), s->why);
    pthread_mutex_lock(&p->lock);
    if (code != 0 && (t->code == 0 || k < t->failed)) {
        t->code = code;
        t->failed = k;
        memcpy(t->why, s->why, sizeof t->why);
    }
    if (++t->done == t->n) pthread_cond_broadcast(&p->finished);
}

struct start {
    struct prefetch *p;
    int number;
};

static void *run(void *arg) {
    struct start *start = arg;
    struct prefetch *p = start->p;
    struct image_scratch *s = &p->scratch[start->number];
    free(start);
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        struct ticket *t = oldest(p);
        if (t != NULL)
            work_once(p, t, s);
        else
            pthread_cond_wait(&p->work, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Signals are the main thread's. */
static void start_threads(struct prefetch *p, int n) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 0; i < n; i++) {
        struct start *start = xmalloc(sizeof *start);
        *start = (struct start){p, i};
        if (pthread_create(&p->thread[i], NULL, run, start) != 0) {
            free(start);
            log_warn("only %d of %d decoding threads could be started", i, n);
            break;
        }
        p->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

struct prefetch *prefetch_create(const struct dataset *d, int n_threads, int max_tickets,
                                 int64_t max_images_per_ticket) {
    CHECK(n_threads >= 0 && max_tickets > 0 && max_images_per_ticket >= 0,
          "prefetch with %d threads, %d tickets of %lld images", n_threads, max_tickets,
          (long long)max_images_per_ticket);
    struct prefetch *p = xcalloc(1, sizeof *p);
    p->d = d;
    p->tile_floats = 3 * (size_t)d->pipeline.img_h * (size_t)d->pipeline.img_w;
    p->n_tickets = max_tickets;
    p->max_images = max_images_per_ticket;
    p->ticket = xcalloc((size_t)max_tickets, sizeof *p->ticket);
    for (int i = 0; i < max_tickets; i++) {
        p->ticket[i].image = xcalloc((size_t)max_images_per_ticket + 1, sizeof(int64_t));
        p->ticket[i].first = xcalloc((size_t)max_images_per_ticket + 1, sizeof(int64_t));
    }
    p->thread = xcalloc((size_t)n_threads + 1, sizeof *p->thread);
    p->n_scratch = n_threads + 1;
    p->scratch = xcalloc((size_t)p->n_scratch, sizeof *p->scratch);
    for (int i = 0; i < p->n_scratch; i++)
        image_scratch_reserve(&d->pipeline, &p->scratch[i], &d->limits);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->finished, NULL);
    start_threads(p, n_threads);
    return p;
}

void prefetch_destroy(struct prefetch *p) {
    if (p == NULL) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_threads; i++) pthread_join(p->thread[i], NULL);
    for (int i = 0; i < p->n_scratch; i++) image_scratch_free(&p->scratch[i]);
    for (int i = 0; i < p->n_tickets; i++) {
        free(p->ticket[i].image);
        free(p->ticket[i].first);
    }
    pthread_cond_destroy(&p->finished);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p->scratch);
    free(p->thread);
    free(p->ticket);
    free(p);
}

static struct ticket *find(struct prefetch *p, int64_t id) {
    for (int i = 0; i < p->n_tickets; i++)
        if (p->ticket[i].id == id) return &p->ticket[i];
    return NULL;
}

int64_t prefetch_submit(struct prefetch *p, const int64_t *image, int64_t n, float *out) {
    CHECK(n >= 0 && n <= p->max_images, "%lld images in a ticket of %lld", (long long)n,
          (long long)p->max_images);
    pthread_mutex_lock(&p->lock);
    struct ticket *t = find(p, 0);
    CHECK(t != NULL, "more than %d tickets are outstanding", p->n_tickets);
    t->id = ++p->last_id;
    t->n = n;
    t->taken = t->done = 0;
    t->out = out;
    t->code = 0;
    for (int64_t k = 0, tiles = 0; k < n; k++) {
        t->image[k] = image[k];
        t->first[k] = tiles;
        tiles += dataset_tiles(p->d, image[k]);
    }
    pthread_cond_broadcast(&p->work);
    int64_t id = t->id;
    pthread_mutex_unlock(&p->lock);
    return id;
}

int prefetch_wait(struct prefetch *p, int64_t ticket) {
    pthread_mutex_lock(&p->lock);
    struct ticket *t = ticket > 0 ? find(p, ticket) : NULL;
    CHECK(t != NULL, "ticket %lld is not outstanding", (long long)ticket);
    while (t->done < t->n) {
        if (t->taken < t->n)
            work_once(p, t, &p->scratch[p->n_scratch - 1]);
        else
            pthread_cond_wait(&p->finished, &p->lock);
    }
    int code = t->code;
    if (code != 0)
        error_raise(code, "image %s %s", dataset_image_name(p->d, t->image[t->failed]), t->why);
    t->id = 0;
    pthread_mutex_unlock(&p->lock);
    return code;
}
