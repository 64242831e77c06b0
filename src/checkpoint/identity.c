/* What a checkpoint is called: its uuids, its time, its temporary folder. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "ckpt_impl.h"

void ckpt_job_id(char *text, size_t size) {
    const char *job = getenv("SLURM_JOB_ID");
    if (job)
        snprintf(text, size, "%s", job);
    else
        snprintf(text, size, "pid%ld", (long)getpid());
}

int64_t process_start(int64_t pid) {
    char path[64], *text = NULL;
    size_t bytes;
    int64_t start = -1;
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    if (access(path, R_OK) != 0 || file_read(path, 65536, &text, &bytes) != 0) {
        error_clear();
        return -1;
    }
    char *field = strrchr(text, ')'); /* field 2 may hold anything */
    if (field && (strncmp(field, ") Z", 3) == 0 || strncmp(field, ") X", 3) == 0)) field = NULL;
    for (int i = 2; field && i < 22; i++) field = strchr(field + 1, ' ');
    if (field) {
        char *end = strchr(field + 1, ' ');
        if (end) *end = 0;
        if (!parse_int64(field + 1, &start)) start = -1;
    }
    free(text);
    return start;
}

static void format_uuid(const uint8_t b[16], int version, char uuid[37]) {
    char *at = uuid;
    for (int i = 0; i < 16; i++) {
        unsigned v = b[i];
        if (i == 6) v = (v & 0x0f) | (unsigned)version << 4;
        if (i == 8) v = (v & 0x3f) | 0x80;
        at += snprintf(at, 4, "%02x%s", v, i == 3 || i == 5 || i == 7 || i == 9 ? "-" : "");
    }
}

static void random_uuid(char uuid[37]) {
    uint8_t b[16];
    CHECK(getrandom(b, sizeof b, 0) == sizeof b, "getrandom: %s", strerror(errno));
    format_uuid(b, 4, uuid);
}

/* The same job, step and layout give the same name. */
static void derived_uuid(const struct ckpt_manifest *m, const struct ckpt_state *st,
                         const char *what, int64_t step, char uuid[37]) {
    char *text =
        xasprintf("%s\n%s\n%lld %lld %lld %lld %s %lld\n", what, st->used_ini ? st->used_ini : "",
                  (long long)step, (long long)m->tp, (long long)m->pp, (long long)m->dp,
                  m->split_spec, (long long)m->writers);
    struct sha256 sha;
    char hex[65];
    uint8_t b[16];
    sha256_begin(&sha);
    sha256_add(&sha, text, strlen(text));
    sha256_end(&sha, hex);
    for (int i = 0; i < 16; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], 0};
        b[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    format_uuid(b, 8, uuid);
    free(text);
}

static void make_created(bool reproducible, char created[32]) {
    int64_t seconds = 0;
    const char *epoch = getenv("SOURCE_DATE_EPOCH");
    if (!reproducible) {
        clock_utc(created, false);
        return;
    }
    if (epoch && !parse_int64(epoch, &seconds)) seconds = 0;
    time_t t = (time_t)seconds;
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(created, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

void ckpt_make_names(const struct ckpt_manifest *m, const struct ckpt_state *st, bool reproducible,
                     struct ckpt_names *n) {
    const char *restart = getenv("SLURM_RESTART_COUNT");
    char job[64];
    memset(n, 0, sizeof *n);
    ckpt_job_id(job, sizeof job);
    snprintf(n->folder, sizeof n->folder, "iter_%07lld.tmp-%.32s-%.16s", (long long)m->step, job,
             restart ? restart : "0");
    make_created(reproducible, n->created);
    if (reproducible) {
        derived_uuid(m, st, "checkpoint", m->step, n->uuid);
        derived_uuid(m, st, "run", 0, n->run_uuid);
        memset(n->parent_uuid, '0', 36);
        n->parent_uuid[8] = n->parent_uuid[13] = n->parent_uuid[18] = n->parent_uuid[23] = '-';
        return;
    }
    random_uuid(n->uuid);
    if (st->run_uuid && st->run_uuid[0])
        snprintf(n->run_uuid, sizeof n->run_uuid, "%s", st->run_uuid);
    else
        random_uuid(n->run_uuid);
    if (st->parent_uuid) snprintf(n->parent_uuid, sizeof n->parent_uuid, "%s", st->parent_uuid);
}

void ckpt_take_names(struct ckpt_manifest *m, const struct ckpt_names *n) {
    memcpy(m->uuid, n->uuid, sizeof m->uuid);
    memcpy(m->run_uuid, n->run_uuid, sizeof m->run_uuid);
    memcpy(m->parent_uuid, n->parent_uuid, sizeof m->parent_uuid);
    memcpy(m->created, n->created, sizeof m->created);
}
