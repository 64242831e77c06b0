/* Damage is found, named and answered. One flipped bit at every byte of a small checkpoint, manifest
 * included; random flips, zeroed, swapped and repeated pages, cut ends in a large one. Each time the
 * whole folder is verified as `train` and `strata checkpoint verify` do: nothing may pass, nothing may
 * crash, and the sentence names the file, and the tensor where the byte belongs to one. Now and then a
 * whole resume follows: the next older checkpoint is taken. STRATA_LONG=1: every byte, and 10^4
 * changes of 100 MiB; otherwise a sample. */
/* timeout: 7200 */
#include "ckpt_team.h"

static const struct ckpt_case layout = {.at = {2, 1, 1}, .split = {1}, .one_layer = true};

/* ---- what a byte belongs to ----------------------------------------------------------------------- */
static const char *tensor_at(const struct ckpt_manifest *m, int file, int64_t at) {
    for (int64_t i = 0; i < m->n_tensors; i++)
        for (int64_t j = 0; j < m->tensor[i].n_blocks; j++) {
            const struct ckpt_block *b = &m->tensor[i].block[j];
            if (b->file != file) continue;
            bool inside = !b->chunk && at >= b->file_offset && at < b->file_offset + b->bytes;
            for (int64_t k = 0; k < b->n_chunks && !inside; k++)
                inside = at >= b->chunk[k].file_offset &&
                         at < b->chunk[k].file_offset + b->chunk[k].bytes;
            if (inside) return m->tensor[i].name;
        }
    return NULL;
}

/* After a change of bytes [first, end) of one file: found, and named. */
static bool noticed(const char *dir, const struct ckpt_manifest *m, int file, int64_t first,
                    int64_t end) {
    const char *name = file < 0 ? CKPT_MANIFEST : m->file[file].name;
    int rc = ckpt_verify_folder(dir);
    bool good = rc == EXIT_BAD_DATA || (file < 0 && rc == EXIT_RESUME);
    good = good && strstr(error_text(), name);
    for (int64_t at = first; good && file >= 0 && at<end; at += end - first> 64 ? 64 : 1) {
        const char *tensor = tensor_at(m, file, at);
        if (tensor) good = strstr(error_text(), tensor) != NULL;
    }
    if (!good)
        printf("# %s, bytes %lld to %lld: %d \"%.300s\"\n", name, (long long)first,
               (long long)end - 1, rc, error_text());
    error_clear();
    return good;
}

struct open_file {
    int fd;
    int64_t bytes;
};
static struct open_file open_in(const char *dir, const char *name) {
    char *path = xasprintf("%s/%s", dir, name);
    struct open_file f = {.fd = open(path, O_RDWR)};
    struct stat st;
    CHECK(f.fd >= 0 && fstat(f.fd, &st) == 0, "%s", path);
    f.bytes = st.st_size;
    free(path);
    return f;
}
static void flip(int fd, int64_t at, int bit) {
    unsigned char c;
    CHECK(pread(fd, &c, 1, at) == 1, "byte %lld", (long long)at);
    c = (unsigned char)(c ^ (1u << bit));
    CHECK(pwrite(fd, &c, 1, at) == 1, "byte %lld", (long long)at);
}

/* ---- every byte of a small one -------------------------------------------------------------------- */
/* The newer of two is damaged: what a resume takes; the marks are removed again. */
static bool falls_back(const char *folder) {
    struct ckpt_job job = {.c = layout};
    snprintf(job.folder, sizeof job.folder, "%s", folder);
    int64_t step = case_run(&job, case_load);
    char *mark = xasprintf("%s/iter_0000002.refused", folder);
    bool good = step == 1 && unlink(mark) == 0;
    free(mark);
    if (!good) printf("# resumed from %lld\n", (long long)step);
    return good;
}

static void every_byte(enum ckpt_filter filter) {
    struct ckpt_job job = {.c = layout, .no_index = true, .filter = filter};
    struct ckpt_manifest *m;
    char dir[400];
    int64_t tried = 0, resumed = 0, stride = case_long() ? 1 : 97;
    snprintf(job.folder, sizeof job.folder, "%s/small-%s", case_folder, ckpt_filter_name(filter));
    snprintf(dir, sizeof dir, "%s/iter_0000002", job.folder);
    bool good = true;
    for (job.step = 1; job.step <= 2; job.step++) good = case_run(&job, case_save) == 0 && good;
    CHECK(good && ckpt_read_manifest(dir, &m) == 0, "%s", error_text());
    for (int file = -1; file < m->n_files; file++) {
        struct open_file f = open_in(dir, file < 0 ? CKPT_MANIFEST : m->file[file].name);
        for (int64_t at = 0; at < f.bytes; at += stride, tried++) {
            flip(f.fd, at, (int)((at * 5 + file) & 7));
            good = noticed(dir, m, file, at, at + 1) && good;
            if (tried % (case_long() ? 2999 : 97) == 0) {
                good = falls_back(job.folder) && good;
                resumed++;
            }
            flip(f.fd, at, (int)((at * 5 + file) & 7));
        }
        close(f.fd);
    }
    good = ckpt_verify_folder(dir) == 0 && good;
    verdict(good,
            "a flipped bit at %lld bytes of a small checkpoint (filter %s); %lld resumes fell back",
            (long long)tried, ckpt_filter_name(filter), (long long)resumed);
    manifest_free(m);
}

/* ---- a large one ------------------------------------------------------------------------------------ */
#define LARGE_ROWS 1024

/* One rank, two tensors of two writers' size each, so that several CRC blocks and pages are there. */
static void declare_large(struct model *m, int64_t megabytes) {
    memset(m, 0, sizeof *m);
    for (int i = 0; i < 4; i++) {
        char name[64];
        int64_t columns = megabytes * (1 << 20) / 4 / 4 / LARGE_ROWS;
        snprintf(name, sizeof name, "model/language_model/layers/%03d/weight", i);
        param_declare(&m->set, model_param(name, i, "out_features,in_features", 2,
                                           (int64_t[]){LARGE_ROWS, columns}, cut_none(), false));
    }
    CHECK(param_set_layout(&m->set, 1, 0) == 0, "%s", error_text());
    model_storage(m, case_backend);
    m->state = (struct ckpt_state){.set = &m->set,
                                   .be = case_backend,
                                   .family = "llava",
                                   .run_uuid = m->run_uuid,
                                   .parent_uuid = m->parent_uuid};
}

struct large_job {
    char folder[300];
    int64_t megabytes;
    enum ckpt_filter filter;
};
static int64_t save_large(const struct grid *grid, void *arg) {
    struct large_job *job = arg;
    struct ckpt_job plain = {.no_index = true, .filter = job->filter};
    struct ckpt_settings s = case_settings(&plain, job->folder);
    struct model m;
    declare_large(&m, job->megabytes);
    m.state.grid = grid;
    m.state.at.step = 1;
    model_fill(&m, 1);
    return ckpt_save(&s, &m.state);
}

enum change { FLIP, ZERO_PAGE, SWAP_PAGES, REPEAT_PAGE, CUT, CHANGES };
#define PAGE 4096

static uint64_t next_random(uint64_t *x) {
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return *x >> 24;
}

static void get(int fd, void *to, int64_t at, size_t n) {
    CHECK(pread(fd, to, n, at) == (ssize_t)n, "byte %lld", (long long)at);
}
static void put(int fd, const void *from, int64_t at, size_t n) {
    CHECK(pwrite(fd, from, n, at) == (ssize_t)n, "byte %lld", (long long)at);
}

/* One change, verified, undone. false: not noticed, or not named. */
static bool one_change(const char *dir, const struct ckpt_manifest *m, struct open_file f,
                       enum change kind, uint64_t *x, int64_t *same) {
    char a[PAGE], b[PAGE], zero[PAGE] = {0};
    int64_t pages = f.bytes / PAGE, p = (int64_t)(next_random(x) % (uint64_t)pages) * PAGE;
    int64_t q = (int64_t)(next_random(x) % (uint64_t)pages) * PAGE;
    int64_t at = (int64_t)(next_random(x) % (uint64_t)f.bytes);
    get(f.fd, a, p, PAGE);
    get(f.fd, b, q, PAGE);
    bool good;
    if (kind == FLIP) {
        flip(f.fd, at, (int)(at & 7));
        good = noticed(dir, m, 0, at, at + 1);
        flip(f.fd, at, (int)(at & 7));
        return good;
    }
    if (kind == CUT) {
        char *tail = xmalloc((size_t)(f.bytes - at));
        get(f.fd, tail, at, (size_t)(f.bytes - at));
        CHECK(ftruncate(f.fd, at) == 0, "ftruncate");
        good = noticed(dir, m, 0, 0, 0);
        put(f.fd, tail, at, (size_t)(f.bytes - at));
        free(tail);
        return good;
    }
    const char *instead = kind == ZERO_PAGE ? zero : b;
    if (memcmp(a, instead, PAGE) == 0) { /* nothing would change */
        (*same)++;
        return true;
    }
    put(f.fd, instead, p, PAGE);
    if (kind == SWAP_PAGES) put(f.fd, a, q, PAGE);
    good = noticed(dir, m, 0, p, p); /* which bytes differ is not known: the file must be named */
    put(f.fd, a, p, PAGE);
    put(f.fd, b, q, PAGE);
    return good;
}

static void random_changes(enum ckpt_filter filter) {
    static const char *const name[CHANGES] = {"flipped bits", "zeroed pages", "swapped pages",
                                              "repeated pages", "cut ends"};
    struct large_job job = {.megabytes = case_long() ? 104 : 8, .filter = filter};
    struct team_layout one = {.tp = 1, .pp = 1, .dp = 1};
    struct ckpt_manifest *m;
    char dir[400];
    int64_t result[TEAM_MAX], same = 0, count[CHANGES] = {0};
    int64_t n = !case_long() ? 100 : filter ? 2000 : 10000;
    uint64_t x = 20240229;
    snprintf(job.folder, sizeof job.folder, "%s/large-%s", case_folder, ckpt_filter_name(filter));
    snprintf(dir, sizeof dir, "%s/iter_0000001", job.folder);
    bool good = team_run(&one, 1.0, save_large, &job, result) == 0 && result[0] == 0;
    CHECK(good && ckpt_read_manifest(dir, &m) == 0, "%s", error_text());
    struct open_file f = open_in(dir, m->file[0].name);
    for (int64_t i = 0; i < n; i++) {
        enum change kind = (enum change)(i % CHANGES);
        good = one_change(dir, m, f, kind, &x, &same) && good;
        count[kind]++;
    }
    close(f.fd);
    good = ckpt_verify_folder(dir) == 0 && good;
    for (int k = 0; k < CHANGES; k++) printf("# %lld %s\n", (long long)count[k], name[k]);
    verdict(good && same * 10 < n,
            "%lld changes of a checkpoint of %lld bytes, filter %s (%lld changed nothing)",
            (long long)n, (long long)f.bytes, ckpt_filter_name(filter), (long long)same);
    manifest_free(m);
}

int main(void) {
    case_begin();
    for (int i = 0; i < CKPT_FILTERS; i++) {
        every_byte((enum ckpt_filter)i);
        random_changes((enum ckpt_filter)i);
    }
    return case_end();
}
