/* What the system lets this process use, what its node's ranks leave of it, and the threads. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cpus_impl.h"

/* ---- limits ---------------------------------------------------------------------------------- */
/* A machine of more cores than a cpu_set_t counts has no mask of this size: the first ones then. */
static bool affinity_of(pid_t pid, cpu_set_t *set) {
    CPU_ZERO(set);
    if (sched_getaffinity(pid, sizeof *set, set) == 0) return CPU_COUNT(set) > 0;
    if (pid != 0) return false;
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    for (long i = 0; i < (n < 1 ? 1 : n) && i < CPU_SETSIZE; i++) CPU_SET((size_t)i, set);
    return true;
}

/* Name and parent of a process: "pid (name) state parent ...", where a name may hold blanks. */
static bool process_parent(const char *root, pid_t pid, char name[64], pid_t *parent) {
    char *path = xasprintf("%s/proc/%d/stat", root, (int)pid), text[512];
    FILE *f = fopen(path, "r");
    free(path);
    bool got = f != NULL && fgets(text, sizeof text, f) != NULL;
    if (f != NULL) fclose(f);
    char *begin = got ? strchr(text, '(') : NULL, *end = got ? strrchr(text, ')') : NULL;
    int64_t number;
    if (begin == NULL || end == NULL || end < begin || strlen(end) < 5) return false;
    *end = '\0';
    end[4 + strcspn(end + 4, " ")] = '\0';
    if (!parse_int64(end + 4, &number)) return false;
    snprintf(name, 64, "%s", begin + 1);
    *parent = (pid_t)number;
    return true;
}

/* Those that bind what they start. srun binds too, but to what the allocation grants. */
static bool binds_ranks(const char *name) {
    static const char *const known[] = {"mpirun", "mpiexec", "orterun",
                                        "orted",  "prte",    "hydra_pmi"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strncmp(name, known[i], strlen(known[i])) == 0) return true;
    return false;
}

/* A launcher binds its ranks, not itself. A script or two may be in between. */
static void find_launcher(const char *root, struct cpu_limits *out) {
    pid_t pid = getppid();
    for (int level = 0; level < 8 && pid > 1; level++) {
        char name[64];
        pid_t parent;
        if (!process_parent(root, pid, name, &parent)) return;
        if (binds_ranks(name)) {
            if (!affinity_of(pid, &out->launcher)) CPU_ZERO(&out->launcher);
            return;
        }
        pid = parent;
    }
}

void cpus_read(const char *root, struct cpu_limits *out) {
    memset(out, 0, sizeof *out);
    affinity_of(0, &out->mine);
    find_launcher(root, out);
    cgroup_read_quotas(root, out);
}

/* ---- the share of one of several -------------------------------------------------------------- */
static bool has_quota(const struct cpu_limits *l, const struct cpu_quota *q) {
    for (int i = 0; i < l->n_quotas; i++)
        if (l->quota[i].device == q->device && l->quota[i].inode == q->inode) return true;
    return false;
}

/* Each quota is divided by the processes below it; the smallest part limits. */
static void share_quotas(const struct cpu_limits *all, int n, int me, struct cpu_share *s) {
    const struct cpu_limits *mine = &all[me];
    for (int i = 0; i < mine->n_quotas; i++) {
        int sharing = 0;
        for (int k = 0; k < n; k++) sharing += has_quota(&all[k], &mine->quota[i]);
        double cores = mine->quota[i].cores;
        if (s->quota > 0 && !(cores / sharing < s->quota / s->quota_sharing)) continue;
        s->quota = cores;
        s->quota_sharing = sharing;
    }
}

struct cpu_share cpus_share(const struct cpu_limits *all, int n, int me) {
    struct cpu_share s = {.cores = CPU_COUNT(&all[me].mine),
                          .launcher_cores = CPU_COUNT(&all[me].launcher),
                          .processes = n};
    cpu_set_t both, idle = all[me].launcher;
    for (int i = 0; i < n; i++) {
        CPU_AND(&both, &all[me].mine, &all[i].mine);
        s.sharing += CPU_COUNT(&both) > 0;
        CPU_AND(&both, &idle, &all[i].mine);
        CPU_XOR(&idle, &idle, &both);
    }
    s.idle = CPU_COUNT(&idle);
    share_quotas(all, n, me, &s);
    return s;
}

struct cpu_share cpus_share_alike(const struct cpu_limits *limits, int n) {
    struct cpu_share s = cpus_share(limits, 1, 0);
    s.sharing = s.quota_sharing = s.processes = n;
    return s;
}

/* ---- threads ------------------------------------------------------------------------------------ */
static const char *plural(int n) {
    return n == 1 ? "" : "s";
}

/* The first number of "4" or "4,2". */
static int environment_threads(const char *text) {
    char first[16];
    int64_t n;
    if (text == NULL) return 0;
    snprintf(first, sizeof first, "%.*s", (int)strcspn(text, ","), text);
    return parse_int64(first, &n) && n >= 1 && n <= 4096 ? (int)n : 0;
}

/* Whole cores of the quota's share: a thread more would be stopped in each period, and the others
 * wait for it. */
static int quota_threads(const struct cpu_share *s) {
    return (int)(s->quota / s->quota_sharing + 1e-6);
}

static int at_least_one(int n) {
    return n > 1 ? n : 1;
}

static void describe_quota(const struct cpu_share *s, char *text, size_t size) {
    int n = snprintf(text, size, "CPU quota of %g core%s", s->quota, s->quota == 1 ? "" : "s");
    if (s->quota_sharing > 1)
        snprintf(text + n, size - (size_t)n, " for %d ranks", s->quota_sharing);
}

static int granted_threads(const struct cpu_share *s, char how[CPU_TEXT_MAX]) {
    int n = at_least_one(s->cores / s->sharing);
    if (s->quota > 0 && quota_threads(s) < s->cores / s->sharing) {
        describe_quota(s, how, CPU_TEXT_MAX);
        return at_least_one(quota_threads(s));
    }
    int at = snprintf(how, CPU_TEXT_MAX, "%d core%s", s->cores, plural(s->cores));
    if (s->sharing > 1) snprintf(how + at, CPU_TEXT_MAX - (size_t)at, " for %d ranks", s->sharing);
    return n;
}

/* Threads that the share would grant if the launcher bound nothing. */
static int unbound_threads(const struct cpu_share *s) {
    int n = at_least_one(s->launcher_cores / s->processes);
    if (s->quota > 0 && quota_threads(s) < n) n = at_least_one(quota_threads(s));
    return n;
}

static void find_notice(const struct cpu_share *s, int threads, bool chosen,
                        char notice[CPU_TEXT_MAX]) {
    int room = s->cores / s->sharing;
    bool cramped = chosen ? threads > at_least_one(room) : threads < unbound_threads(s);
    char quota[96];
    notice[0] = '\0';
    if (s->idle > 0 && cramped) {
        snprintf(
            notice, CPU_TEXT_MAX,
            "the launcher binds a rank to %d of the %d cores that it has itself, and %d core%s "
            "of the node stay%s idle: start with mpirun --bind-to none, or with more ranks",
            s->cores, s->launcher_cores, s->idle, plural(s->idle), s->idle == 1 ? "s" : "");
    } else if (chosen && s->quota > 0 && threads > at_least_one(quota_threads(s))) {
        describe_quota(s, quota, sizeof quota);
        snprintf(
            notice, CPU_TEXT_MAX,
            "%d threads per rank are more than a %s carries: the kernel stops the rank for the "
            "rest of each period; without threads_per_rank and OMP_NUM_THREADS it takes %d",
            threads, quota, at_least_one(quota_threads(s)));
    }
}

int cpus_threads(const struct cpu_share *share, int asked, const char *environment,
                 char how[CPU_TEXT_MAX], char notice[CPU_TEXT_MAX]) {
    int from_environment = environment_threads(environment);
    bool chosen = asked > 0 || from_environment > 0;
    int threads = asked > 0 ? asked : from_environment;
    if (asked > 0)
        snprintf(how, CPU_TEXT_MAX, "threads_per_rank = %d", asked);
    else if (from_environment > 0)
        snprintf(how, CPU_TEXT_MAX, "OMP_NUM_THREADS = %s", environment);
    else
        threads = granted_threads(share, how);
    find_notice(share, threads, chosen, notice);
    return threads;
}
