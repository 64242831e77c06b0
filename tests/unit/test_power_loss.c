/* The power goes: of what was not yet synced, any part may be on disk and any may not.
 *
 * Two ranks save five times, one step twice, with retention; every write, fsync, rename, mkdir and
 * removal below the folder is recorded in the order it came. Then, for points in between, folders are
 * laid out as a disk may show them afterwards: writes of a file that no fsync of it followed, and names
 * in a folder that no fsync of the folder followed, are there, missing or (writes) cut short, each by a
 * throw of its own. Nothing is assumed of file systems that order such things. What was reported as
 * saved before that point, or something newer, must be resumed from with every value right, and the
 * next save must go through. STRATA_LONG=1: every point. */
/* timeout: 3600 */
#include <stdatomic.h>

#include "ckpt_team.h"
#include "faults/io_shim.c"

static struct ckpt_case layout = {
    .at = {1, 1, 2}, .split = {1}, .sharded = true, .one_layer = true};
static const int64_t saved_steps[] = {1, 2, 2, 3, 4};
#define SAVES ((int)(sizeof saved_steps / sizeof saved_steps[0]))

/* ---- recording: in memory that the ranks share ------------------------------------------------------ */
#define LOG_BYTES ((int64_t)256 << 20)
struct record {
    int64_t size; /* to the next one */
    enum io_call call;
    int64_t at, n;
    char path[300], to[300];
    char data[];
};
static struct recording {
    atomic_llong used;
    char bytes[];
} * recording;

static void record(const struct io_event *e) {
    int64_t data = e->data ? e->n : 0;
    int64_t size = ((int64_t)sizeof(struct record) + data + 63) / 64 * 64;
    int64_t at = atomic_fetch_add(&recording->used, size);
    CHECK(at + size <= LOG_BYTES, "more calls than expected");
    struct record *r = (struct record *)(void *)(recording->bytes + at);
    *r = (struct record){.size = size, .call = e->call, .at = e->at, .n = e->n};
    snprintf(r->path, sizeof r->path, "%s", e->path ? e->path : "");
    snprintf(r->to, sizeof r->to, "%s", e->to ? e->to : "");
    if (data) memcpy(r->data, e->data, (size_t)data);
}

/* case_save with retention; rank 0 notes when all know that the step is saved. */
static int64_t save_all(const struct grid *grid, void *arg) {
    struct ckpt_job *job = arg;
    for (int i = 0; i < SAVES; i++) {
        struct ckpt_settings s = case_settings(job, job->folder);
        struct model m;
        s.most_recent_k = 2;
        case_model(&m, &job->c, grid);
        model_fill(&m, (int)saved_steps[i]);
        m.state.at = case_counters(saved_steps[i]);
        m.state.history = case_rows;
        m.state.n_history = 2;
        int rc = ckpt_save(&s, &m.state);
        model_free(&m);
        if (rc) return rc;
        if (group_rank(grid_group(grid, GROUP_WORLD)) == 0)
            record(&(struct io_event){.call = IO_CALL_MARK, .at = saved_steps[i]});
    }
    return 0;
}

/* ---- what the calls mean ----------------------------------------------------------------------------- */
#define NODES 4096
#define NAMES 32
struct node { /* a file or folder, whatever its name is at the moment */
    bool folder;
    int n_names;
    struct name {
        char text[120];
        int node;
    } name[NAMES];
};
struct change { /* a record in terms of nodes */
    const struct record *r;
    int node;              /* the file that is written; the one a name is for */
    int folder, to_folder; /* whose names change; -1: none */
    const char *name, *to_name;
    int64_t synced; /* index of the fsync that makes it last; INT64_MAX: none did */
};
static struct node *nodes;
static int n_nodes;
static struct change *change;
static int64_t n_changes;

static int node_new(bool folder) {
    CHECK(n_nodes < NODES, "more files than expected");
    nodes[n_nodes] = (struct node){.folder = folder};
    return n_nodes++;
}
static struct name *name_in(int folder, const char *text) {
    struct node *f = &nodes[folder];
    for (int i = 0; i < f->n_names; i++)
        if (strcmp(f->name[i].text, text) == 0) return &f->name[i];
    return NULL;
}
static void name_set(int folder, const char *text, int node) {
    struct node *f = &nodes[folder];
    struct name *n = name_in(folder, text);
    if (n == NULL) {
        CHECK(f->n_names < NAMES, "more names than expected");
        n = &f->name[f->n_names++];
        snprintf(n->text, sizeof n->text, "%s", text);
    }
    n->node = node;
}
/* Only if it is still that node's: another may have the name meanwhile. */
static void name_drop(int folder, const char *text, int node) {
    struct name *n = name_in(folder, text);
    if (n != NULL && n->node == node) *n = nodes[folder].name[--nodes[folder].n_names];
}

/* The folder a path lies in, and its last component. Node 0 is the folder of the test. */
static int parent_of(const char *path, const char **last) {
    int at = 0;
    CHECK(strncmp(path, case_folder, strlen(case_folder)) == 0, "%s", path);
    path += strlen(case_folder);
    path += *path == '/';
    for (const char *slash; (slash = strchr(path, '/')) != NULL; path = slash + 1) {
        char text[120];
        snprintf(text, sizeof text, "%.*s", (int)(slash - path), path);
        struct name *n = name_in(at, text);
        CHECK(n != NULL, "%s is in no folder", path);
        at = n->node;
    }
    *last = path;
    return at;
}
static int node_at(const char *path) {
    const char *last;
    int folder = parent_of(path, &last);
    if (*last == 0) return folder;
    struct name *n = name_in(folder, last);
    CHECK(n != NULL, "%s is not there", path);
    return n->node;
}

/* Follows the calls with every name in place, as the running system saw them. */
static void resolve(struct change *c) {
    const struct record *r = c->r;
    c->folder = c->to_folder = -1;
    c->synced = INT64_MAX;
    if (r->call == IO_CALL_MARK) return;
    if (r->call == IO_CALL_CREATE || r->call == IO_CALL_MKDIR) {
        c->node = node_new(r->call == IO_CALL_MKDIR);
        c->to_folder = parent_of(r->path, &c->to_name);
        name_set(c->to_folder, c->to_name, c->node);
        return;
    }
    c->node = node_at(r->path);
    if (r->call != IO_CALL_RENAME && r->call != IO_CALL_REMOVE) return;
    c->folder = parent_of(r->path, &c->name);
    name_drop(c->folder, c->name, c->node);
    if (r->call == IO_CALL_REMOVE) return;
    c->to_folder = parent_of(r->to, &c->to_name);
    name_set(c->to_folder, c->to_name, c->node);
}

static bool names_change(const struct change *c) {
    return c->folder >= 0 || c->to_folder >= 0;
}
static void note_syncs(int64_t at) {
    for (int64_t i = 0; i < at; i++) {
        struct change *c = &change[i];
        bool write = c->r->call == IO_CALL_WRITE || c->r->call == IO_CALL_TRUNCATE;
        bool names = c->folder == change[at].node || c->to_folder == change[at].node;
        CHECK(c->folder < 0 || c->to_folder < 0 || c->folder == c->to_folder,
              "a file moves from one folder to another");
        if (c->synced == INT64_MAX && (write ? c->node == change[at].node : names)) c->synced = at;
    }
}

static void understand(void) {
    change = xcalloc(100000, sizeof *change);
    nodes = xcalloc(NODES, sizeof *nodes);
    node_new(true);
    for (int64_t at = 0; at < recording->used; n_changes++) {
        CHECK(n_changes < 100000, "more calls than expected");
        change[n_changes].r = (const struct record *)(const void *)(recording->bytes + at);
        resolve(&change[n_changes]);
        if (change[n_changes].r->call == IO_CALL_FSYNC) note_syncs(n_changes);
        at += change[n_changes].r->size;
    }
}

/* ---- a disk after the power went ---------------------------------------------------------------------- */
enum fate { LOST, HALF, WHOLE };
static uint64_t dice = 88172645463325252u;
static uint64_t throw(uint64_t sides) {
    dice ^= dice << 13;
    dice ^= dice >> 7;
    dice ^= dice << 17;
    return (dice >> 11) % sides;
}

/* percent: how likely a call that was not synced is there; 0 and 100 are certain. */
static void choose(enum fate *fate, int64_t point, int percent) {
    for (int64_t i = 0; i < point; i++) {
        bool there = throw(100) < (uint64_t)percent;
        fate[i] = change[i].synced < point || there ? WHOLE : LOST;
        if (change[i].synced >= point && percent > 0 && percent < 100 && throw(8) == 0)
            fate[i] = change[i].r->call == IO_CALL_WRITE ? HALF : fate[i];
    }
}

static void lay_out_file(const char *path, int node, const enum fate *fate, int64_t point) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    CHECK(fd >= 0, "%s: %s", path, strerror(errno));
    for (int64_t i = 0; i < point; i++) {
        const struct record *r = change[i].r;
        if (change[i].node != node || names_change(&change[i]) || fate[i] == LOST) continue;
        int64_t n = fate[i] == HALF ? r->n / 2 : r->n;
        if (r->call == IO_CALL_WRITE)
            CHECK(pwrite(fd, r->data, (size_t)n, r->at) == (ssize_t)n, "%s", path);
        if (r->call == IO_CALL_TRUNCATE) CHECK(ftruncate(fd, r->at) == 0, "%s", path);
    }
    close(fd);
}
static void lay_out_folder(const char *path, int folder, const enum fate *fate, int64_t point) {
    CHECK(dir_make(path) == 0, "%s", error_text());
    for (int i = 0; i < nodes[folder].n_names; i++) {
        const struct name *n = &nodes[folder].name[i];
        char *below = xasprintf("%s/%s", path, n->text);
        if (nodes[n->node].folder)
            lay_out_folder(below, n->node, fate, point);
        else
            lay_out_file(below, n->node, fate, point);
        free(below);
    }
}
static void lay_out(const char *path, const enum fate *fate, int64_t point) {
    for (int i = 0; i < n_nodes; i++) nodes[i].n_names = 0;
    for (int64_t i = 0; i < point; i++) {
        const struct change *c = &change[i];
        if (fate[i] == LOST) continue;
        if (c->folder >= 0) name_drop(c->folder, c->name, c->node);
        if (c->to_folder >= 0) name_set(c->to_folder, c->to_name, c->node);
    }
    case_remove(path);
    lay_out_folder(path, 0, fate, point);
}

/* ---- the claim ---------------------------------------------------------------------------------------- */
static int64_t told_before(int64_t point) {
    int64_t step = 0;
    for (int64_t i = 0; i < point; i++)
        if (change[i].r->call == IO_CALL_MARK) step = change[i].r->at;
    return step;
}

static bool survives(int64_t point, int percent) {
    static enum fate fate[100000];
    static int64_t tried;
    char disk[280];
    struct ckpt_job job = {.c = layout};
    snprintf(disk, sizeof disk, "%.200s/disk", case_folder);
    snprintf(job.folder, sizeof job.folder, "%s/runs/save", disk);
    choose(fate, point, percent);
    lay_out(disk, fate, point);
    int64_t told = told_before(point), found = case_run(&job, case_load);
    bool good = found >= told;
    if (good && ++tried % 5 == 0) {
        job.step = 9;
        good = case_run(&job, case_save) == 0 && case_run(&job, case_load) == 9;
    }
    if (!good)
        printf("# before call %lld, %d %% of what was not synced is there: step %lld was told, "
               "%lld found\n",
               (long long)point, percent, (long long)told, (long long)found);
    return good;
}

int main(void) {
    static const int percents[] = {0, 100, 50, 15, 85, 50, 97};
    struct ckpt_job job = {.c = layout};
    int64_t tried = 0, wrong = 0, stride = case_long() ? 1 : 7;
    case_begin();
    recording = mmap(NULL, sizeof *recording + (size_t)LOG_BYTES, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(recording != MAP_FAILED, "mmap: %s", strerror(errno));
    snprintf(job.folder, sizeof job.folder, "%s/runs/save", case_folder);
    io_watch(case_folder, record);
    CHECK(case_run(&job, save_all) == 0, "five saves");
    io_watch(NULL, NULL);
    understand();
    int n_percents = case_long() ? (int)(sizeof percents / sizeof percents[0]) : 4;
    for (int64_t point = n_changes; point >= 0; point -= stride)
        for (int i = 0; i < n_percents; i++, tried++) wrong += !survives(point, percents[i]);
    verdict(
        wrong == 0 && n_changes > 200 && told_before(n_changes) == 4,
        "%lld calls; %lld disks as a loss of power leaves them, %lld of them lost what was saved",
        (long long)n_changes, (long long)tried, (long long)wrong);
    return case_end();
}
