/* run.lock: two jobs must not write into one folder. Made whole by link(2), so that it is never seen
 * half-written; a stale one is first renamed away, which only one taker can do. Rank 0 acts, all
 * ranks learn of it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "ckpt_impl.h"
#include "fault.h"

struct holder {
    char nonce[33], job[64], host[128], boot[64], started[32];
    int64_t restart, pid, pid_start;
};

static void read_boot(char *boot, size_t size) {
    char *text = NULL;
    size_t bytes;
    if (file_read("/proc/sys/kernel/random/boot_id", 256, &text, &bytes) != 0) error_clear();
    if (text) text[strcspn(text, "\n")] = 0;
    snprintf(boot, size, "%s", text ? text : "unknown");
    free(text);
}

static void describe_self(struct holder *h) {
    const char *job = getenv("SLURM_JOB_ID"), *restart = getenv("SLURM_RESTART_COUNT");
    uint8_t b[16];
    memset(h, 0, sizeof *h);
    CHECK(getrandom(b, sizeof b, 0) == sizeof b, "getrandom: %s", strerror(errno));
    for (int i = 0; i < 16; i++) snprintf(h->nonce + 2 * i, 3, "%02x", b[i]);
    snprintf(h->job, sizeof h->job, "%s", job ? job : "none");
    if (!restart || !parse_int64(restart, &h->restart)) h->restart = 0;
    gethostname(h->host, sizeof h->host - 1);
    h->pid = getpid();
    h->pid_start = process_start(h->pid);
    read_boot(h->boot, sizeof h->boot);
    clock_utc(h->started, false);
}

static char *holder_text(const struct holder *h) {
    return xasprintf("nonce %s\njob %s\nrestart %lld\nhost %s\nboot %s\npid %lld\npid_start %lld\n"
                     "started %s\n",
                     h->nonce, h->job, (long long)h->restart, h->host, h->boot, (long long)h->pid,
                     (long long)h->pid_start, h->started);
}

static void take_line(struct holder *h, char *line) {
    char *value = strchr(line, ' ');
    if (!value) return;
    *value++ = 0;
    struct {
        const char *key;
        char *text;
        size_t size;
        int64_t *number;
    } field[] = {{"nonce", h->nonce, sizeof h->nonce, NULL},
                 {"job", h->job, sizeof h->job, NULL},
                 {"host", h->host, sizeof h->host, NULL},
                 {"boot", h->boot, sizeof h->boot, NULL},
                 {"started", h->started, sizeof h->started, NULL},
                 {"restart", NULL, 0, &h->restart},
                 {"pid", NULL, 0, &h->pid},
                 {"pid_start", NULL, 0, &h->pid_start}};
    for (size_t i = 0; i < sizeof field / sizeof field[0]; i++) {
        if (strcmp(line, field[i].key) != 0) continue;
        if (field[i].text)
            snprintf(field[i].text, field[i].size, "%s", value);
        else if (!parse_int64(value, field[i].number))
            *field[i].number = -1;
    }
}

/* *there: somebody holds it. EXIT_IO: that cannot be told. */
static int read_holder(const char *path, struct holder *h, bool *there) {
    char *text = NULL;
    size_t bytes;
    memset(h, 0, sizeof *h);
    *there = access(path, F_OK) == 0;
    if (!*there && errno != ENOENT && errno != ENOTDIR)
        return error_raise(EXIT_IO, "%s cannot be looked at: %s", path, strerror(errno));
    if (!*there) return 0;
    int rc = file_read_regular(path, 4096, &text, &bytes);
    if (rc == EXIT_NO_INPUT) { /* gone in between */
        error_clear();
        *there = false;
        return 0;
    }
    if (rc) return rc;
    char *next = text;
    for (char *line; (line = strsep(&next, "\n"));) take_line(h, line);
    free(text);
    return 0;
}

/* Surely gone: an earlier start of this very job; a process of this host that is no more. Of another
 * host or job: Slurm does not know the job any more, and it has shown no life for three periods (either
 * may be wrong for a while: a controller that was restarted, a file system that hangs). */
static bool stale(const struct holder *h, const struct holder *me, int64_t age, char *why,
                  size_t size) {
    bool same_job = strcmp(me->job, "none") != 0 && strcmp(h->job, me->job) == 0;
    snprintf(why, size, "its process lives");
    if (same_job && h->restart < me->restart) return true;
    if (strcmp(h->host, me->host) == 0)
        return strcmp(h->boot, me->boot) != 0 || process_start(h->pid) != h->pid_start;
    snprintf(why, size, "it is alive");
    if (age <= 3 * CKPT_BEAT_SECONDS) return false;
    return slurm_job_state(h->job, why, size) == JOB_GONE;
}

static int refuse(const char *path, const struct holder *h, int64_t age, const char *why) {
    char job[80], host[160], started[48], printable[256];
    text_printable(h->job, job, sizeof job);
    text_printable(h->host, host, sizeof host);
    text_printable(h->started, started, sizeof started);
    text_printable(why, printable, sizeof printable);
    return error_raise(EXIT_NO_PERMISSION,
                       "%s: another run writes there: job %s on host %s, pid %lld, since %s, last "
                       "sign of life %lld s ago (%s); if it is surely gone, remove the file",
                       path, job, host, (long long)h->pid, started, (long long)age, printable);
}

/* A lock that is in the way is renamed away if it is stale. `mine` was made just now. */
static int clear_stale(const char *path, const char *mine, const struct holder *me) {
    struct holder other;
    bool there;
    char why[160];
    TRY(read_holder(path, &other, &there));
    if (!there) return 0;
    int64_t age = lock_beat_age(path, mine);
    if (!stale(&other, me, age, why, sizeof why)) return refuse(path, &other, age, why);
    char *away = xasprintf("%s.stale-%s", path, me->nonce);
    if (rename(path, away) == 0) {
        char job[80], host[160];
        text_printable(other.job, job, sizeof job);
        text_printable(other.host, host, sizeof host);
        log_info("%s of a run that is gone (pid %lld, job %s, host %s) is taken over", path,
                 (long long)other.pid, job, host);
    }
    fault_point("lock.stale");
    unlink(away);
    free(away);
    return 0;
}

static int take(const char *path, const struct holder *me, struct ckpt_beat **beat) {
    char *mine = xasprintf("%s.%s", path, me->nonce), *text = holder_text(me);
    fault_point("lock.before");
    int rc = file_write_atomic(mine, text, strlen(text));
    fault_point("lock.in");
    if (!rc) rc = lock_beat_begin(mine, beat);
    for (int i = 0; !rc; i++) {
        if (link(mine, path) == 0) break;
        if (errno != EEXIST || i == 8) {
            rc = error_raise(exit_code_of_errno(errno), "%s could not be made: %s", path,
                             strerror(errno));
        } else {
            rc = clear_stale(path, mine, me);
        }
    }
    fault_point("lock.taken");
    unlink(mine);
    fault_point("lock.after");
    free(mine);
    free(text);
    return rc;
}

int ckpt_lock(const char *save, const struct grid *grid, struct ckpt_lock *lock) {
    const struct group *world = grid_group(grid, GROUP_WORLD);
    int rc = 0;
    memset(lock, 0, sizeof *lock);
    if (group_rank(world) == 0) {
        struct holder me;
        describe_self(&me);
        lock->path = xasprintf("%s/run.lock", save);
        memcpy(lock->nonce, me.nonce, sizeof lock->nonce);
        rc = dir_make(save);
        if (!rc) rc = take(lock->path, &me, &lock->beat);
    }
    rc = ckpt_agree(world, rc);
    if (rc) {
        lock_beat_end(lock->beat);
        free(lock->path);
        *lock = (struct ckpt_lock){0};
    }
    return rc;
}

int ckpt_lock_check(const struct ckpt_lock *lock) {
    struct holder h;
    bool there;
    if (!lock || !lock->path) return 0;
    TRY(read_holder(lock->path, &h, &there));
    if (!there)
        return error_raise(EXIT_NO_PERMISSION, "%s is gone: somebody else may write there now",
                           lock->path);
    return strcmp(h.nonce, lock->nonce) == 0 ? 0
                                             : refuse(lock->path, &h, 0, "it took the lock over");
}

bool ckpt_lock_lost(const struct ckpt_lock *lock) {
    struct holder h;
    bool there, lost = lock && lock->path && read_holder(lock->path, &h, &there) == 0 && there &&
                       strcmp(h.nonce, lock->nonce) != 0;
    error_clear();
    return lost;
}

void ckpt_unlock(struct ckpt_lock *lock) {
    fault_point("unlock.before");
    lock_beat_end(lock->beat);
    if (lock->path && ckpt_lock_check(lock) == 0) unlink(lock->path);
    fault_point("unlock.after");
    free(lock->path);
    memset(lock, 0, sizeof *lock);
}
