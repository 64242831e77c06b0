/* cpus: how many cores a process may keep busy, and so how many threads a rank computes with.
 *
 * Three things limit it: the cores that it may run on (affinity, which also carries a cpuset), the
 * CPU quota of its control groups, which the kernel enforces by stopping the whole process for the
 * rest of each period, and the other ranks of the node that live on the same cores and quotas.
 * Each rank reads its limits; the limits of all ranks of the node give the share of one.
 */
#ifndef STRATA_CPUS_H
#define STRATA_CPUS_H

#include <sched.h>

#include "base.h"

/* A quota of one control group, in cores: quota / period. Processes with the same device and inode
 * share it. */
struct cpu_quota {
    uint64_t device, inode;
    double cores;
};
/* Quotas kept of one process, those nearest to it first. */
#define CPU_QUOTAS_MAX 16
struct cpu_limits {
    cpu_set_t mine;     /* cores that this process may run on */
    cpu_set_t launcher; /* cores that its mpirun may run on; empty: it was started otherwise */
    struct cpu_quota quota[CPU_QUOTAS_MAX]; /* of its control group and of those above it */
    int n_quotas;
};
/* out: the limits of this process. `root` is put before each path of /proc and /sys ("" but in
 * tests); what cannot be read there limits nothing. */
void cpus_read(const char *root, struct cpu_limits *out);

struct cpu_share {
    int cores;          /* cores that the process may run on */
    int sharing;        /* processes that may run on any of these cores, this one included */
    double quota;       /* cores of the quota whose share is smallest; 0: there is none */
    int quota_sharing;  /* processes under that quota, this one included */
    int launcher_cores; /* cores of the launcher; 0: not known */
    int idle;           /* of these, the cores that no process of the node may run on */
    int processes;      /* of the node */
};
/* Share of process `me` of the n processes of a node. */
struct cpu_share cpus_share(const struct cpu_limits *all, int n, int me);
/* Share of one of n processes with the same limits. */
struct cpu_share cpus_share_alike(const struct cpu_limits *limits, int n);

/* Threads of a process with this share, at least 1. asked: [run] threads_per_rank, 0: not given;
 * environment: OMP_NUM_THREADS or NULL, whose first number counts; else what the share grants.
 * how: where the number comes from ("CPU quota of 0.5 cores"). notice: a sentence if the number is
 * worse than it looks (cores that the launcher's binding leaves idle, more threads than the quota
 * carries), else "". */
#define CPU_TEXT_MAX 320
int cpus_threads(const struct cpu_share *share, int asked, const char *environment,
                 char how[CPU_TEXT_MAX], char notice[CPU_TEXT_MAX]);

#endif
