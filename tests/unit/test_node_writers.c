/* writers = node: the ranks of a machine share a file. Any machines, with unequal numbers of ranks and
 * ranks in any order; at once or beside the training; the parts are those that each rank writes
 * itself; they load into any layout bit for bit; what fails is agreed on and leaves the older
 * checkpoint alone. Ranks are processes without MPI (team.h). */
/* timeout: 1800 */
#include <time.h>

#include "ckpt_team.h"
#include "faults/io_shim.c"

struct node_job {
    struct ckpt_job job;
    int64_t ranks_per_writer;
    bool every_rank; /* writers = rank */
    bool beside;
    int victim; /* of the k-th call */
    int64_t k;
    enum io_fault_kind kind;
};
#define FIRED 100000
#define NEVER (-1)

static int save_beside(const struct ckpt_settings *s, struct model *m) {
    size_t bytes = model_room(s, &m->state);
    const struct timespec pause = {.tv_nsec = 1000000};
    char *host = xmalloc(bytes);
    struct ckpt_pending *p;
    int rc = ckpt_save_begin(s, &m->state, host, bytes, &p);
    model_fill(m, 77); /* the next step */
    while (rc == 0 && p != NULL) {
        int64_t busy = ckpt_save_busy(p);
        comm_allreduce_i64(grid_group(m->state.grid, GROUP_WORLD), &busy, 1, REDUCE_MAX);
        if (!busy) rc = ckpt_save_next(&p);
        nanosleep(&pause, NULL);
    }
    free(host);
    return rc;
}

/* Code of the save, + FIRED if the fault came. */
static int64_t save_node(const struct grid *grid, void *arg) {
    struct node_job *j = arg;
    const struct group *world = grid_group(grid, GROUP_WORLD);
    struct ckpt_settings s = case_settings(&j->job, j->job.folder);
    struct model m;
    s.writers_node = !j->every_rank;
    s.ranks_per_writer = j->ranks_per_writer;
    case_model(&m, &j->job.c, grid);
    model_fill(&m, (int)j->job.step);
    m.state.at = case_counters(j->job.step);
    m.state.history = case_rows;
    m.state.n_history = 2;
    io_fault_arm(j->job.folder, group_rank(world) == j->victim ? j->k : NEVER, j->kind);
    int64_t rc = j->beside ? save_beside(&s, &m) : ckpt_save(&s, &m.state);
    int64_t fired = io_fault_fired();
    io_fault_arm("", NEVER, IO_FAULT_EIO);
    if ((rc == 0) != (error_count() == 0)) rc = 1000;
    comm_broadcast(world, &fired, sizeof fired, j->victim);
    model_free(&m);
    return rc + FIRED * fired;
}

static int64_t run_save(struct node_job *j) {
    int64_t result[TEAM_MAX];
    int status = team_run(&j->job.c.at, 0.2, save_node, j, result);
    if (status) return -2000 - status;
    for (int r = 1; r < team_size(&j->job.c.at); r++)
        if (result[r] != result[0]) return -3000;
    return result[0];
}

static void folder_in(struct node_job *j, const char *name) {
    snprintf(j->job.folder, sizeof j->job.folder, "%s/%s", case_folder, name);
}
static char *step_folder(const struct node_job *j, int64_t step) {
    return xasprintf("%s/iter_%07lld", j->job.folder, (long long)step);
}

/* ---- who writes ------------------------------------------------------------------------------------ */
static void the_plan(void) {
    static const struct {
        int n, node[8];
        int64_t together;
        int writer[8];
    } plan[] = {{1, {0}, 0, {0}},
                {4, {0, 0, 0, 0}, 0, {0, 0, 0, 0}},
                {4, {0, 0, 0, 0}, 3, {0, 0, 0, 3}},
                {4, {0, 0, 0, 0}, 1, {0, 1, 2, 3}},
                {5, {0, 1, 0, 1, 0}, 0, {0, 1, 0, 1, 0}},
                {8, {0, 1, 0, 1, 0, 1, 1, 1}, 2, {0, 1, 0, 1, 4, 5, 5, 7}},
                {6, {0, 0, 0, 1, 1, 2}, 9, {0, 0, 0, 3, 3, 5}}};
    bool good = true;
    for (size_t i = 0; i < sizeof plan / sizeof plan[0]; i++) {
        int writer[8];
        ckpt_writers(plan[i].node, plan[i].n, plan[i].together, writer);
        good = good && memcmp(writer, plan[i].writer, (size_t)plan[i].n * sizeof writer[0]) == 0;
    }
    verdict(good, "the first rank of each machine writes, or of so many of its ranks");
}

/* ---- the same parts, loaded into any layout ------------------------------------------------------------ */
static const struct shared {
    struct ckpt_case c;
    int64_t together;
    int files;
    enum ckpt_filter filter;
} shared[] = {
    {{.at = {1, 1, 1}, .split = {8}}, 0, 1, CKPT_FILTER_NONE},
    {{.at = {2, 2, 1, {0, 0, 0, 1}}, .split = {3, 5}}, 0, 2, CKPT_FILTER_NONE},
    {{.at = {2, 1, 2, {0, 1, 0, 1}}, .split = {8}, .sharded = true}, 0, 2, CKPT_FILTER_DEFLATE},
    {{.at = {1, 2, 2, {0, 0, 0, 0}}, .split = {6, 2}, .sharded = true}, 0, 1, CKPT_FILTER_NONE},
    {{.at = {3, 1, 1, {0, 1, 1}}, .split = {8}}, 0, 2, CKPT_FILTER_NONE},
    {{.at = {2, 2, 2, {0, 1, 1, 1, 1, 1, 0, 1}}, .split = {4, 4}, .sharded = true},
     4,
     3,
     CKPT_FILTER_FLETCHER32},
};
#define N_SHARED ((int)(sizeof shared / sizeof shared[0]))

/* Every block that rank r writes alone lies in the file of the rank that writes for r. */
static bool same_blocks(const struct node_job *j, const char *alone, const char *together) {
    struct ckpt_manifest *a, *b;
    int n = team_size(&j->job.c.at), writer[TEAM_MAX], index[TEAM_MAX] = {0}, found = 0;
    ckpt_writers(j->job.c.at.node, n, j->ranks_per_writer, writer);
    for (int r = 0; r < n; r++) index[r] = writer[r] == r ? found++ : index[writer[r]];
    if (ckpt_read_manifest(alone, &a) || ckpt_read_manifest(together, &b)) return false;
    bool same = a->n_tensors == b->n_tensors && a->writers == n && b->writers == found;
    for (int64_t i = 0; same && i < a->n_tensors; i++) {
        const struct ckpt_tensor *x = &a->tensor[i], *y = &b->tensor[i];
        same = strcmp(x->name, y->name) == 0 && x->n_blocks == y->n_blocks;
        for (int64_t k = 0; same && k < x->n_blocks; k++) {
            const struct ckpt_block *p = &x->block[k], *q = &y->block[k];
            same = memcmp(&p->box, &q->box, sizeof p->box) == 0 && p->bytes == q->bytes &&
                   memcmp(p->crc, q->crc, (size_t)p->n_crc * sizeof *p->crc) == 0 &&
                   q->file == index[p->file];
        }
    }
    manifest_free(a);
    manifest_free(b);
    return same;
}

static bool loads(const struct node_job *j, const struct ckpt_case *into) {
    struct ckpt_job job = {.c = *into};
    memcpy(job.folder, j->job.folder, sizeof job.folder);
    return case_run(&job, case_load) == j->job.step;
}

static void share_files(int i) {
    struct node_job now = {
        .job = {.c = shared[i].c, .step = 3}, .ranks_per_writer = shared[i].together, .k = NEVER};
    now.job.filter = shared[i].filter;
    struct node_job alone = now, beside = now;
    alone.every_rank = true;
    beside.beside = true;
    folder_in(&alone, "alone");
    folder_in(&now, "now");
    folder_in(&beside, "beside");
    bool good = run_save(&alone) == 0 && run_save(&now) == 0 && run_save(&beside) == 0;
    char *a = step_folder(&alone, 3), *b = step_folder(&now, 3), *c = step_folder(&beside, 3);
    bool same = good && same_blocks(&now, a, b), equal = good && case_digest(b) == case_digest(c);
    bool all = good && loads(&now, &shared[i].c) && loads(&now, &shared[(i + 2) % N_SHARED].c);
    const struct team_layout *l = &shared[i].c.at;
    verdict(same,
            "TP %d PP %d DP %d, %d written: the blocks of each rank lie in its machine's file",
            l->tp, l->pp, l->dp, shared[i].files);
    verdict(equal, "and are the same bytes when written beside the training");
    verdict(all && ckpt_verify_folder(b) == 0, "and load into two layouts, bit for bit");
    case_remove(alone.job.folder);
    case_remove(now.job.folder);
    case_remove(beside.job.folder);
    free(a);
    free(b);
    free(c);
}

/* ---- failures ---------------------------------------------------------------------------------------------- */
/* A few calls of a writer, in turn: agreed on; the older one stands; in the end step 2 is saved. */
static void a_writer_fails(int victim, enum io_fault_kind kind, bool beside) {
    struct node_job j = {.job = {.c = shared[1].c, .step = 1}, .k = NEVER, .victim = victim};
    int64_t fired = 0, failed = 0, stride = case_long() ? 5 : victim == 0 ? 173 : 61;
    j.beside = beside;
    j.kind = kind;
    folder_in(&j, "fails");
    bool good = run_save(&j) == 0, more = true;
    char *one = step_folder(&j, 1), *two = step_folder(&j, 2);
    int64_t old = case_digest(one);
    for (int64_t k = victim; more; k += stride) {
        j.job.step = 2;
        j.k = k;
        int64_t rc = run_save(&j);
        bool whole = case_digest(two) >= 0;
        more = rc != 0;
        fired += more;
        failed += more && !whole;
        bool killed = kind == IO_FAULT_KILL && more;
        j.job.step = whole ? 2 : 1;
        bool fine = old >= 0 && case_digest(one) == old && loads(&j, &shared[1].c);
        j.job.step = 2; /* only its name was missing: the next start gave it */
        if (killed && !fine) fine = case_digest(one) == old && loads(&j, &shared[1].c);
        fine = fine && (killed || (whole ? rc == 0 || rc >= FIRED : rc > FIRED));
        if (!fine) printf("# call %lld: %lld\n", (long long)k, (long long)rc);
        good = good && fine;
        case_remove(two);
    }
    j.k = NEVER;
    j.job.step = 2;
    good = run_save(&j) == 0 && loads(&j, &shared[1].c) && good;
    verdict(good && failed > 1, "%s, writing rank %d%s: %lld calls, %lld saves failed",
            io_fault_name(kind), victim, beside ? " beside the training" : "", (long long)fired,
            (long long)failed);
    case_remove(j.job.folder);
    free(one);
    free(two);
}

/* Rank 1 hands its parts over and touches no file. */
static void a_guest_writes_nothing(void) {
    struct node_job j = {.job = {.c = shared[1].c, .step = 1}, .victim = 1, .kind = IO_FAULT_EIO};
    folder_in(&j, "guest");
    verdict(run_save(&j) == 0, "a rank that hands its part over makes no call below the folder");
    case_remove(j.job.folder);
}

int main(void) {
    case_begin();
    the_plan();
    for (int i = 0; i < N_SHARED; i++) share_files(i);
    a_guest_writes_nothing();
    a_writer_fails(0, IO_FAULT_FULL, false);
    a_writer_fails(0, IO_FAULT_FULL, true);
    a_writer_fails(3, IO_FAULT_FULL, false);
    for (int beside = 0; case_long() && beside < 2; beside++) {
        a_writer_fails(0, IO_FAULT_KILL, beside != 0);
        a_writer_fails(3, IO_FAULT_KILL, beside != 0);
        a_writer_fails(0, IO_FAULT_ENOSPC, beside != 0);
        a_writer_fails(3, IO_FAULT_ENOSPC, beside != 0);
    }
    return case_end();
}
