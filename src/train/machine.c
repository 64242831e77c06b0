/* What the machine gives this run: threads for each rank, and the speed of light, to which the log
 * line compares the run. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "run_impl.h"

static const struct group *world(const struct run *r) {
    return grid_group(r->grid, GROUP_WORLD);
}

/* ---- threads ------------------------------------------------------------------------------------ */
struct rank_threads {
    int threads;
    char how[CPU_TEXT_MAX], notice[CPU_TEXT_MAX];
};

int machine_device(struct run *r) {
    struct cpu_limits limits;
    cpus_read("", &limits);
    struct cpu_share share = comm_cpu_share(&limits);
    int threads = cpus_threads(&share, (int)r->cfg->run.threads_per_rank, getenv("OMP_NUM_THREADS"),
                               r->threads_how, r->threads_notice);
    return backend_create_cpu(DTYPE_F32, threads, 1, &r->be);
}

static bool same_threads(const struct rank_threads *a, const struct rank_threads *b) {
    return a->threads == b->threads && strcmp(a->how, b->how) == 0 &&
           strcmp(a->notice, b->notice) == 0;
}

/* Lines for runs of ranks that differ: nodes of another kind, bindings of another width. */
#define THREAD_LINES_MAX 16

void machine_report_threads(const struct run *r) {
    int n = group_size(world(r)), lines = 0, end;
    struct rank_threads *all = xcalloc((size_t)n, sizeof *all), mine = {.threads = r->be->threads};
    memcpy(mine.how, r->threads_how, sizeof mine.how);
    memcpy(mine.notice, r->threads_notice, sizeof mine.notice);
    comm_gather(world(r), &mine, sizeof mine, all);
    for (int first = 0; first < n && r->first_rank; first = end) {
        const struct rank_threads *t = &all[first];
        char who[48] = "";
        for (end = first + 1; end < n && same_threads(t, &all[end]);) end++;
        if (++lines > THREAD_LINES_MAX) break;
        if (end - first < n) snprintf(who, sizeof who, "ranks %d..%d: ", first, end - 1);
        log_info("%s%d thread%s per rank: %s", who, t->threads, t->threads == 1 ? "" : "s", t->how);
        if (t->notice[0] != '\0') log_warn("%s%s", who, t->notice);
    }
    free(all);
}

/* ---- the speed of light -------------------------------------------------------------------------- */
#define PEAK_ROUNDS 4 /* the first one warms up and does not count */
/* Measuring may add one part in so many to what the run computes: a run too short for that has no
 * peak, and its log lines no share of it. */
#define PEAK_WORTH 100

static void together(void *run) {
    comm_barrier(world(run));
}

/* Arithmetic of the steps that are left, on this rank, if all micro-batches were the largest. */
static double work_left(const struct run *r) {
    const struct pipeline_memory *p = &r->plan.pipeline;
    double steps = (double)(r->cfg->derived.train_iters - r->at.step);
    return steps * (double)r->layout.pipeline.micro_batches *
           (p->forward_flops + p->backward_flops);
}

struct rank_rounds {
    double flops, seconds[PEAK_ROUNDS];
};

/* FLOP/s of all ranks in one round. The ranks of a node share it, so a node is as fast as the
 * slowest of its ranks was while all of them computed. */
static double round_rate(const struct run *r, const struct rank_rounds *all, int round) {
    int n = group_size(world(r));
    double rate = 0;
    for (int first = 0; first < n; first++) {
        double flops = 0, slowest = 0;
        bool counted = false;
        for (int i = 0; i < n && !counted; i++) {
            if (grid_node(r->grid, i) != grid_node(r->grid, first)) continue;
            counted = i < first;
            flops += all[i].flops;
            slowest = all[i].seconds[round] > slowest ? all[i].seconds[round] : slowest;
        }
        if (!counted && slowest > 0) rate += flops / slowest;
    }
    return rate;
}

void machine_measure_peak(struct run *r) {
    int n = group_size(world(r));
    struct rank_rounds mine = {0}, *all = xcalloc((size_t)n, sizeof *all);
    double work[2] = {work_left(r), PEAK_ROUNDS * backend_peak_flops(r->be)};
    comm_allreduce_f64(world(r), work, 2, REDUCE_SUM);
    r->peak = 0;
    if (r->cfg->logging.log_throughput && work[0] >= PEAK_WORTH * work[1]) {
        mine.flops = backend_peak_flops(r->be);
        backend_measure_peak(r->be, PEAK_ROUNDS, together, r, mine.seconds);
        comm_gather(world(r), &mine, sizeof mine, all);
        for (int i = 1; i < PEAK_ROUNDS; i++) {
            double rate = round_rate(r, all, i);
            r->peak = rate > r->peak ? rate : r->peak;
        }
        log_info("peak: %.1f GFLOP/s per rank (sgemm, %d ranks at one time)", 1e-9 * r->peak / n,
                 n);
    }
    free(all);
}
