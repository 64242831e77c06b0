/* /provenance: where and how a checkpoint was made. Nothing of it is loaded. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "save_impl.h"

#define HOST_BYTES 64
#define COMMAND_MAX ((size_t)1 << 16)

/* Each once, in the order of their first ranks. Collective over the world. */
static char *list_hosts(const struct group *world) {
    int n = group_size(world);
    char mine[HOST_BYTES] = "", (*all)[HOST_BYTES] = xcalloc((size_t)n, sizeof *all);
    char *text = xstrdup("");
    gethostname(mine, sizeof mine - 1);
    comm_gather(world, mine, sizeof mine, all);
    for (int i = 0, j; i < n; i++) {
        for (j = 0; j < i && strcmp(all[i], all[j]) != 0;) j++;
        if (j < i) continue;
        char *longer = xasprintf("%s%s%s", text, i > 0 ? "," : "", all[i]);
        free(text);
        text = longer;
    }
    free(all);
    return text;
}

/* A word as a shell would take it. */
static void add_word(FILE *to, const char *word) {
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:=,@%+-";
    if (word[0] && word[strspn(word, plain)] == 0) {
        fputs(word, to);
        return;
    }
    fputc('\'', to);
    for (const char *c = word; *c; c++) fputs(*c == '\'' ? "'\\''" : (char[]){*c, 0}, to);
    fputc('\'', to);
}

/* Of this process, as the system knows it. */
static char *command_line(void) {
    char *raw = xcalloc(COMMAND_MAX + 1, 1), *text = NULL;
    size_t bytes = 0, size;
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && bytes < COMMAND_MAX) {
        ssize_t got = read(fd, raw + bytes, COMMAND_MAX - bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        bytes += (size_t)got;
    }
    if (fd >= 0) close(fd);
    FILE *to = open_memstream(&text, &size);
    CHECK(to, "no memory");
    for (size_t at = 0; at < bytes; at += strlen(raw + at) + 1) {
        if (at > 0) fputc(' ', to);
        add_word(to, raw + at);
    }
    fclose(to);
    free(raw);
    return text;
}

/* What changes how fast a run is or where it runs; never secrets, so no other variable. */
static char *environment(void) {
    static const char *const name[] = {
        "OMP_NUM_THREADS",   "OMP_PROC_BIND",       "OMP_PLACES",          "OPENBLAS_NUM_THREADS",
        "OPENBLAS_CORETYPE", "SLURM_CLUSTER_NAME",  "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST",
        "SLURM_NTASKS",      "SLURM_CPUS_PER_TASK", "SLURM_ARRAY_JOB_ID",  "SLURM_ARRAY_TASK_ID",
        "SOURCE_DATE_EPOCH", "OMPI_COMM_WORLD_SIZE"};
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);
    CHECK(to, "no memory");
    for (size_t i = 0; i < sizeof name / sizeof name[0]; i++) {
        const char *value = getenv(name[i]);
        if (value == NULL) continue;
        fprintf(to, "%s%s=", ftell(to) > 0 ? " " : "", name[i]);
        add_word(to, value);
    }
    fclose(to);
    return text;
}

/* Since this process began. */
static double wall_seconds(void) {
    struct timespec now;
    int64_t begun = process_start(getpid());
    if (begun < 0 || clock_gettime(CLOCK_BOOTTIME, &now) != 0) return 0;
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec -
           (double)begun / (double)sysconf(_SC_CLK_TCK);
}

static void add(struct provenance *p, const char *key, char *value) {
    CHECK(p->n < PROVENANCE_MAX, "%s: no room", key);
    p->text[p->n++] = (struct ckpt_text){key, value};
}

static void add_digest(struct provenance *p, const char *key, const char *hex) {
    add(p, key, xstrdup(hex ? hex : ""));
}

void provenance_collect(const struct ckpt_state *st, struct provenance *p) {
    const char *restart = getenv("SLURM_RESTART_COUNT");
    char job[64];
    ckpt_job_id(job, sizeof job);
    p->n = 0;
    add(p, "hosts", list_hosts(grid_group(st->grid, GROUP_WORLD)));
    add(p, "job_id", xstrdup(job));
    add(p, "restart_count", xstrdup(restart ? restart : "0"));
    add(p, "command_line", command_line());
    add(p, "environment", environment());
    add(p, "wall_seconds", xasprintf("%.3f", wall_seconds()));
    add_digest(p, "job_file_sha256", st->inputs.job_file);
    add_digest(p, "data_sha256", st->inputs.data);
    add_digest(p, "valid_data_sha256", st->inputs.valid_data);
    add_digest(p, "tokenizer_model_sha256", st->inputs.tokenizer_model);
}

void provenance_free(struct provenance *p) {
    for (int64_t i = 0; i < p->n; i++) free((char *)(uintptr_t)p->text[i].value);
    p->n = 0;
}
