/* Checkpoints behind a filter of HDF5: how blocks are cut into chunks, that all comes back bit for bit
 * and the files are the same each time, that a chunk which the disk lost is found while saving, that
 * manifests which do not fit their files are refused, and what each way of checking finds. */
/* timeout: 300 */
#include <malloc.h>
#include <sys/syscall.h>

#include "../../src/checkpoint/tools_impl.h"
#include "ckpt_team.h"

/* ---- how a block is cut up ---------------------------------------------------------------------------- */
static uint64_t next_random(uint64_t *x) {
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return *x >> 24;
}

static struct box random_box(uint64_t *x) {
    struct box b = {.n = 1 + (int)(next_random(x) % CKPT_DIMS)};
    for (int d = 0; d < b.n; d++) {
        int64_t most = next_random(x) % 3 == 0 ? 100000 : next_random(x) % 2 == 0 ? 300 : 3;
        b.offset[d] = (int64_t)(next_random(x) % 50);
        b.count[d] = 1 + (int64_t)(next_random(x) % (uint64_t)most);
        while (box_volume(&b) > (int64_t)1 << 26) b.count[d] = 1 + b.count[d] / 7;
        for (int k = d + 1; k < CKPT_DIMS; k++) b.count[k] = 1;
    }
    return b;
}

/* Every element is in one chunk, in order; few more bytes are stored than there are. */
static bool cut_well(enum ckpt_filter filter, const struct box *box, int64_t element) {
    int64_t target = filter == CKPT_FILTER_DEFLATE ? 4 << 20 : 1 << 20, next = 0;
    int64_t volume = box_volume(box), first, end, at;
    struct ckpt_block b = {.box = *box, .bytes = volume * element};
    struct part p = {.box = *box, .dtype = element == 2 ? DTYPE_BF16 : DTYPE_F32};
    chunk_choose(filter, box, element, b.chunk_shape);
    int64_t n = chunk_count(box, b.chunk_shape), room = chunk_bytes(&b);
    int64_t slice = box_slice_bytes(filter, box, element), row = b.bytes / box->count[0];
    bool good = chunk_legal(box, element, b.chunk_shape) && room <= target &&
                (n == 1) == (b.bytes <= target) && n * room * 3 <= b.bytes * 4 &&
                part_stored_most(filter, &p) >= n * room && slice % (row * b.chunk_shape[0]) == 0 &&
                (slice <= CKPT_SLICE || slice == row) && slice >= CKPT_SLICE - 2 * target - row;
    for (int64_t i = 0; good && i < n; i++) {
        struct box one = chunk_box(&b, i);
        chunk_elements(&b, i, &first, &end);
        good = first == next && end > first && (end - first) * element <= room &&
               box_volume(&one) == end - first && box_is_flat(box, &one, &at) && at == first;
        next = end;
    }
    return good && next == volume;
}

static void blocks_are_cut_well(void) {
    uint64_t x = 7;
    int64_t n = case_long() ? 100000 : 3000, wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        struct box b = random_box(&x);
        for (int f = CKPT_FILTER_FLETCHER32; f < CKPT_FILTERS; f++)
            wrong += !cut_well((enum ckpt_filter)f, &b, i % 2 ? 2 : 4);
    }
    verdict(wrong == 0, "%lld blocks are cut into chunks, %lld of them wrongly", (long long)n,
            (long long)wrong);
}

/* ---- one rank with tensors that are cut in every way --------------------------------------------------- */
static const struct {
    const char *name, *dims;
    int n;
    int64_t shape[CKPT_DIMS];
} tensors[] = {{"model/rows/weight", "out_features,in_features", 2, {1100, 1000}},
               {"model/long_rows/weight", "out_features,in_features", 2, {2, 270001}},
               {"model/flat/weight", "features", 1, {300007}},
               {"model/cube/weight", "a,b,c,d", 4, {2, 2, 300, 500}},
               {"model/small/weight", "a,b,c,d", 4, {5, 3, 7, 11}},
               {"model/one/weight", "features", 1, {1}}};
#define TENSORS (sizeof tensors / sizeof tensors[0])

struct filter_job {
    struct ckpt_settings set;
    char folder[300];
    enum { ANY, SMOOTH } values; /* smooth ones can be compressed */
    int perturb, disk, at;
};

static void declare_all(struct model *m, const struct grid *grid) {
    memset(m, 0, sizeof *m);
    for (size_t i = 0; i < TENSORS; i++)
        param_declare(&m->set, model_param(tensors[i].name, 0, tensors[i].dims, tensors[i].n,
                                           tensors[i].shape, cut_none(), false));
    CHECK(param_set_layout(&m->set, 1, 0) == 0, "%s", error_text());
    model_storage(m, case_backend);
    m->state = (struct ckpt_state){.grid = grid,
                                   .set = &m->set,
                                   .be = case_backend,
                                   .family = "llava",
                                   .split_spec = "1",
                                   .used_ini = "[run]\nfamily = llava\n",
                                   .run_uuid = m->run_uuid,
                                   .parent_uuid = m->parent_uuid};
}

static void make_smooth(struct model *m) {
    for (int i = 0; i < m->set.n; i++) {
        float *v = m->set.param[i].w.data;
        for (int64_t k = 0; k < param_local_count(&m->set.param[i]); k++)
            v[k] = (float)(k / 64 % 1000);
    }
}

static int64_t save_all(const struct grid *grid, void *arg) {
    struct filter_job *job = arg;
    struct model m;
    mallopt(M_PERTURB, job->perturb);
    declare_all(&m, grid);
    m.state.at.step = 1;
    model_fill(&m, 1);
    if (job->values == SMOOTH) make_smooth(&m);
    return ckpt_save(&job->set, &m.state);
}

/* Elements that are not what was saved; -code. */
static int64_t load_all(const struct grid *grid, void *arg) {
    struct filter_job *job = arg;
    struct model m;
    struct ckpt_found found;
    declare_all(&m, grid);
    int rc = ckpt_resume(&job->set, &m.state, &found);
    if (rc || !found.any) return -rc - !rc;
    return model_wrong(&m, 1, false);
}

static int64_t run_job(struct filter_job *job, int64_t (*work)(const struct grid *, void *)) {
    struct team_layout one = {.tp = 1, .pp = 1, .dp = 1};
    int64_t result[TEAM_MAX];
    job->set.save = job->folder;
    int status = team_run(&one, 1.0, work, job, result);
    return status ? -2000 - status : result[0];
}

static struct filter_job job_of(enum ckpt_filter filter, const char *name) {
    struct filter_job job = {.set = model_settings(NULL), .perturb = 0x55};
    job.set.filter = filter;
    snprintf(job.folder, sizeof job.folder, "%s/%s-%s", case_folder, name,
             ckpt_filter_name(filter));
    return job;
}

static const char *step_of(const struct filter_job *job) {
    static char text[4][400];
    static int next;
    next = (next + 1) % 4;
    snprintf(text[next], sizeof text[next], "%s/iter_0000001", job->folder);
    return text[next];
}

static int64_t stored_bytes(const char *dir) {
    struct ckpt_manifest *m;
    CHECK(ckpt_read_manifest(dir, &m) == 0, "%s", error_text());
    int64_t bytes = m->file[0].bytes;
    manifest_free(m);
    return bytes;
}

static bool verifies(const char *dir) {
    FILE *sink = fopen("/dev/null", "w");
    bool good = ckpt_verify(dir, true, false, sink) == 0;
    if (!good) printf("# %s\n", error_text());
    fclose(sink);
    return good;
}

static void comes_back(enum ckpt_filter filter) {
    struct filter_job plain = job_of(CKPT_FILTER_NONE, "plain"), job = job_of(filter, "back");
    struct filter_job again = job_of(filter, "again"), load = job;
    FILE *sink = fopen("/dev/null", "w");
    bool equal = false;
    bool good = filter != CKPT_FILTER_FLETCHER32 || run_job(&plain, save_all) == 0;
    good = run_job(&job, save_all) == 0 && good && verifies(step_of(&job));
    verdict(good, "%s: saved, and it verifies strictly", ckpt_filter_name(filter));
    again.perturb = 0xa3;
    good = run_job(&again, save_all) == 0 &&
           case_digest(step_of(&again)) == case_digest(step_of(&job));
    verdict(good, "%s: the same bytes once more, whatever lay in memory", ckpt_filter_name(filter));
    good = ckpt_diff(step_of(&plain), step_of(&job), sink, &equal) == 0 && equal;
    verdict(good, "%s: what a checkpoint without it has", ckpt_filter_name(filter));
    for (int v = CKPT_VERIFY_ALL; v <= CKPT_VERIFY_SIZE; v++) {
        if (v == CKPT_VERIFY_SAMPLE) continue;
        load.set.verify_load = (enum ckpt_verify)v;
        load.set.filter = CKPT_FILTER_NONE; /* the files say how they are to be read */
        good = run_job(&load, load_all) == 0 && good;
    }
    verdict(good, "%s: loaded bit for bit", ckpt_filter_name(filter));
    again.set.verify_save = CKPT_VERIFY_SAMPLE;
    good = run_job(&again, save_all) == 0 &&
           case_digest(step_of(&again)) == case_digest(step_of(&job));
    verdict(good, "%s: the same with verify_save = sample", ckpt_filter_name(filter));
    fclose(sink);
}

static void takes_no_more_room(void) {
    int64_t bytes[CKPT_FILTERS], planned[CKPT_FILTERS] = {0};
    bool good = true;
    for (int f = 0; f < CKPT_FILTERS; f++) {
        struct filter_job job = job_of((enum ckpt_filter)f, "smooth");
        job.values = SMOOTH;
        good = run_job(&job, save_all) == 0 && good;
        bytes[f] = stored_bytes(step_of(&job));
        for (size_t i = 0; i < TENSORS; i++) {
            struct part p = {.dtype = DTYPE_F32, .box = {.n = tensors[i].n}};
            memcpy(p.box.count, tensors[i].shape, sizeof p.box.count);
            planned[f] += part_stored_most((enum ckpt_filter)f, &p);
            planned[f] +=
                f == CKPT_FILTER_NONE && part_bytes(&p) >= H5_ALIGNMENT ? H5_ALIGNMENT : 0;
        }
        struct filter_job any = job_of((enum ckpt_filter)f, f ? "back" : "plain");
        good = stored_bytes(step_of(&any)) < planned[f] + (1 << 20) + 65536 + 4096 * 6 && good;
    }
    good = good && bytes[CKPT_FILTER_DEFLATE] * 5 < bytes[CKPT_FILTER_NONE] &&
           planned[CKPT_FILTER_FLETCHER32] * 100 < planned[CKPT_FILTER_NONE] * 101;
    verdict(good, "no file is larger than planned; smooth values: %lld, %lld, %lld bytes",
            (long long)bytes[0], (long long)bytes[1], (long long)bytes[2]);
}

/* ---- a disk that loses a write and says nothing, and one that is full ------------------------------------ */
/* Zeros go down in place of long write number `at`; or it and all after it fail. */
static struct {
    enum { SOUND, LOSES, FULL } disk;
    int at, n;
} fault;

static ssize_t put_bytes(int fd, const void *data, size_t n, off_t at) {
    int number = n > 100000 ? fault.n++ : -1;
    if (fault.disk == FULL && fault.n > fault.at) {
        errno = ENOSPC;
        return -1;
    }
    char *zero = fault.disk == LOSES && number == fault.at ? xcalloc(n, 1) : NULL;
    ssize_t put = syscall(SYS_pwrite64, fd, zero ? zero : data, n, at);
    free(zero);
    return put;
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    return put_bytes(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    return put_bytes(fd, data, n, at);
}

/* The code; 1000: the sentence is another one. In a process of its own, so the fault ends with it. */
static int64_t save_with_fault(const struct grid *grid, void *arg) {
    struct filter_job *job = arg;
    fault.disk = job->disk;
    fault.at = job->at;
    int64_t rc = save_all(grid, arg);
    const char *says = job->disk == FULL ? "No space left on device" : "/weight";
    return rc && !strstr(error_text(), says) ? 1000 : rc;
}

static void losses_are_found(enum ckpt_filter filter, int disk) {
    int found = 0;
    bool good = true;
    for (int k = 0; k < (filter == CKPT_FILTER_FLETCHER32 ? 13 : 6); k += 4, found++) {
        struct filter_job job = job_of(filter, "lost");
        job.disk = disk;
        job.at = k;
        int64_t rc = run_job(&job, save_with_fault);
        good = good && rc == EXIT_IO && case_digest(step_of(&job)) == -1;
        if (rc != EXIT_IO) printf("# write %d: %lld\n", k, (long long)rc);
    }
    verdict(good, "%s: %d writes %s condemn the save, and the sentence says why",
            ckpt_filter_name(filter), found, disk == FULL ? "on a full disk" : "that were lost");
}

/* ---- manifests that do not fit ---------------------------------------------------------------------------- */
static struct ckpt_block *block_of(struct ckpt_manifest *m, const char *name) {
    for (int64_t i = 0; i < m->n_tensors; i++)
        if (strcmp(m->tensor[i].name, name) == 0) return &m->tensor[i].block[0];
    CHECK(false, "%s", name);
}

static void other_filter(struct ckpt_manifest *m) {
    m->filter = m->filter == CKPT_FILTER_DEFLATE ? CKPT_FILTER_FLETCHER32 : CKPT_FILTER_DEFLATE;
}
static void swap_chunks(struct ckpt_manifest *m) {
    struct ckpt_block *b = block_of(m, "model/rows/weight");
    struct ckpt_chunk c = b->chunk[0];
    b->chunk[0] = b->chunk[1];
    b->chunk[1] = c;
}
static void other_extent(struct ckpt_manifest *m) {
    block_of(m, "model/rows/weight")->chunk_shape[0]++;
}
static void swap_names(struct ckpt_manifest *m) {
    struct ckpt_block *a = block_of(m, "model/rows/weight"), *b = block_of(m, "model/one/weight");
    char *name = a->dataset;
    a->dataset = b->dataset;
    b->dataset = name;
}
static void other_checksum(struct ckpt_manifest *m) {
    block_of(m, "model/rows/weight")->crc[1] ^= 4;
}
static const struct {
    void (*edit)(struct ckpt_manifest *m);
    const char
        *says[2]; /* fletcher32, deflate; the former leaves no doubt of the size of a chunk */
} edits[] = {{other_filter, {"behind the filter", "size of a chunk does not fit"}},
             {swap_chunks, {"does not lie where the manifest", "does not lie where the manifest"}},
             {other_extent, {"size of a chunk does not fit", "chunks of the manifest's extent"}},
             {swap_names, {"chunks of the manifest's extent", "chunks of the manifest's extent"}},
             {other_checksum,
              {"model/rows/weight is damaged: elements 1048576 to 1099999",
               "model/rows/weight is damaged: elements 1048576 to 1099999"}}};

static void write_manifest(const char *dir, const struct ckpt_manifest *m) {
    size_t bytes;
    char *text = manifest_text(m, &bytes), *path = xasprintf("%s/" CKPT_MANIFEST, dir);
    CHECK(file_write_atomic(path, text, bytes) == 0, "%s", error_text());
    free(text);
    free(path);
}

/* Everything is as it was written, only the manifest says something else. */
static void wrong_manifests_are_refused(enum ckpt_filter filter) {
    struct filter_job job = job_of(filter, "edited");
    FILE *sink = fopen("/dev/null", "w");
    bool good = run_job(&job, save_all) == 0;
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        struct ckpt_manifest *m, *right;
        CHECK(ckpt_read_manifest(step_of(&job), &m) == 0, "%s", error_text());
        CHECK(ckpt_read_manifest(step_of(&job), &right) == 0, "%s", error_text());
        edits[i].edit(m);
        write_manifest(step_of(&job), m);
        int rc = ckpt_verify(step_of(&job), false, false, sink);
        if (rc != EXIT_BAD_DATA || !strstr(error_text(), edits[i].says[filter - 1])) {
            printf("# edit %zu: %d %s\n", i, rc, error_text());
            good = false;
        }
        error_clear();
        int64_t loaded = run_job(&job, load_all);
        if (loaded != -EXIT_BAD_DATA)
            printf("# edit %zu: loading gives %lld\n", i, (long long)loaded);
        good = good && loaded == -EXIT_BAD_DATA;
        char *mark = xasprintf("%s.refused", step_of(&job));
        good = unlink(mark) == 0 && good;
        free(mark);
        write_manifest(step_of(&job), right);
        manifest_free(m);
        manifest_free(right);
    }
    good = verifies(step_of(&job)) && good;
    verdict(good, "%s: manifests that do not fit the files are refused", ckpt_filter_name(filter));
    fclose(sink);
}

/* Text instead of `from` (its first place), with a right checksum. */
static int parse_edited(const struct ckpt_manifest *m, const char *from, const char *to) {
    struct ckpt_manifest *back;
    size_t bytes;
    char *text = manifest_text(m, &bytes), *at = strstr(text, from), digits[9];
    CHECK(at, "%s", from);
    char *edited = xasprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    char *crc = strstr(edited, "\"crc32c\": \"") + strlen("\"crc32c\": \"");
    memcpy(crc, "00000000", 8);
    snprintf(digits, sizeof digits, "%08x", crc32c(0, edited, strlen(edited)));
    memcpy(crc, digits, 8);
    error_clear();
    int rc = manifest_parse("m", edited, strlen(edited), &back);
    manifest_free(back);
    free(edited);
    free(text);
    return rc;
}

#define ROWS "\"chunk\": [\n      220,\n      1000\n     ]"
static void hostile_numbers_are_refused(void) {
    static const struct {
        const char *from, *to, *says;
    } edit[] = {{"\"fletcher32\"", "\"szip\"", "integrity_filter"},
                {"\"fletcher32\"", "\"none\"", "integrity_filter"},
                {"\"2.0.0\"", "\"1.0.0\"", "integrity_filter"},
                {"\"integrity_filter\"", "\"integrity\"", "without a member"},
                {ROWS, "\"chunk\": [0,1000]", "no whole number"},
                {ROWS, "\"chunk\": [1101,1]", "no legal extent"},
                {ROWS, "\"chunk\": [1100,1000]", "no legal extent"}, /* 4.4 MB */
                {ROWS, "\"chunk\": [220,999]", "no legal extent"},
                {ROWS, "\"chunk\": [220]", "no legal extent"},
                {ROWS, "\"chunk\": [1,1]", "values for its"},
                {ROWS, "\"chunk\": [221,1000]", "fit"},
                {ROWS, "\"chunk\": [219,1000]", "values for its"},
                {"\"chunk_offset\": [", "\"chunk_offset\": [1,", "values for its"},
                {"\"chunk_offset\": [", "\"chunk_offset\": [-1],\"x\": [", "fit"},
                {"\"chunk_offset\": [", "\"chunk_offset\": [9223372036854775807],\"x\": [", "fit"},
                {"\"chunk_bytes\": [", "\"chunk_bytes\": [0],\"x\": [", "fit"},
                {"\"chunk_bytes\": [", "\"chunk_bytes\": [100000000],\"x\": [", "fit"},
                {"\"chunk_bytes\": [", "\"chunk_bytes\": [7],\"x\": [", "fit"}, /* 4 + 4 */
                {"\"chunk_bytes\": [", "\"chunk_bytes\": [9],\"x\": [", "fit"},
                {"\"chunk_crc32c\": [", "\"chunk_crc32c\": [7],\"x\": [", "hexadecimal"}};
    struct filter_job job = job_of(CKPT_FILTER_FLETCHER32, "back");
    struct ckpt_manifest *m;
    CHECK(ckpt_read_manifest(step_of(&job), &m) == 0, "%s", error_text());
    bool good = true;
    for (size_t i = 0; i < sizeof edit / sizeof edit[0]; i++) {
        const char *name =
            strstr(edit[i].from, "chunk_") ? "model/one/weight" : "model/rows/weight";
        struct ckpt_manifest part = *m; /* the tensor that the edit is about, alone */
        part.n_tensors = 1;
        while (strcmp(part.tensor->name, name) != 0) part.tensor++;
        int rc = parse_edited(&part, edit[i].from, edit[i].to);
        if (rc != EXIT_BAD_DATA || !strstr(error_text(), edit[i].says)) {
            printf("# %s: %d %s\n", edit[i].to, rc, error_text());
            good = false;
        }
    }
    error_clear();
    manifest_free(m);
    verdict(good, "hostile numbers in a manifest are refused");
}

/* ---- what each way of checking finds ------------------------------------------------------------------------ */
static void damage_is_named(enum ckpt_filter filter) {
    struct filter_job job = job_of(filter, "damaged");
    struct ckpt_manifest *m;
    bool good = run_job(&job, save_all) == 0;
    CHECK(ckpt_read_manifest(step_of(&job), &m) == 0, "%s", error_text());
    struct ckpt_block *b = block_of(m, "model/rows/weight");
    int64_t first, end, last = b->n_chunks - 1;
    char *path = xasprintf("%s/%s", step_of(&job), m->file[0].name), says[100], c;
    chunk_elements(b, last, &first, &end);
    snprintf(says, sizeof says, "model/rows/weight is damaged: elements %lld to %lld ",
             (long long)first, (long long)end - 1);
    int fd = open(path, O_RDWR);
    int64_t at = b->chunk[last].file_offset + b->chunk[last].bytes / 2;
    CHECK(fd >= 0 && pread(fd, &c, 1, at) == 1, "%s", path);
    c = (char)(c ^ 8);
    CHECK(pwrite(fd, &c, 1, at) == 1 && close(fd) == 0, "%s", path);
    good = ckpt_verify_folder(step_of(&job)) == EXIT_BAD_DATA && strstr(error_text(), says) && good;
    error_clear();
    for (int v = CKPT_VERIFY_ALL; v <= CKPT_VERIFY_SIZE; v++) {
        if (v == CKPT_VERIFY_SAMPLE) continue;
        char *mark = xasprintf("%s.refused", step_of(&job)), *text = NULL;
        size_t bytes;
        job.set.verify_load = (enum ckpt_verify)v;
        int64_t rc = run_job(&job, load_all);
        bool fine = rc == -EXIT_BAD_DATA && file_read(mark, 100000, &text, &bytes) == 0;
        /* without checksums it is HDF5 that notices, and names the dataset */
        fine = fine && strstr(text, v == CKPT_VERIFY_SIZE ? "model/rows/weight" : says);
        if (!fine) printf("# verify_load %d: %lld %s\n", v, (long long)rc, text ? text : "");
        good = fine && unlink(mark) == 0 && good;
        free(mark);
        free(text);
    }
    verdict(good, "%s: damage is named by its elements before HDF5 sees it",
            ckpt_filter_name(filter));
    free(path);
    manifest_free(m);
}

int main(void) {
    case_begin();
    blocks_are_cut_well();
    for (int f = CKPT_FILTER_FLETCHER32; f < CKPT_FILTERS; f++) {
        comes_back((enum ckpt_filter)f);
        losses_are_found((enum ckpt_filter)f, LOSES);
        losses_are_found((enum ckpt_filter)f, FULL);
        wrong_manifests_are_refused((enum ckpt_filter)f);
        damage_is_named((enum ckpt_filter)f);
    }
    takes_no_more_room();
    hostile_numbers_are_refused();
    return case_end();
}
