/* A checkpoint made by somebody who means harm: manifest and checksums agree, but a shard leads out of
 * itself (links, external and virtual storage, filters), claims to be huge, or is no file at all. Each is
 * refused with its reason, none is followed, none hangs, none takes memory. What was swapped between
 * two checkpoints is found too. */
#include <hdf5.h>
#include <sys/resource.h>

#include "../src/checkpoint/tools_impl.h"
#include "ckpt_team.h"

#define MEMORY_MAX_KIB (256L << 10)

static struct ckpt_case layout = {.at = {1, 1, 1}, .split = {1}, .one_layer = true};
/* Steps 1 and 2, step 2 again behind each filter. */
static char template[1 + CKPT_FILTERS][400], block_name[256], outside[400];

/* ---- edits of a shard ---------------------------------------------------------------------------------- */
static void must(bool good, const char *what) {
    if (good) return;
    H5Eprint2(H5E_DEFAULT, stderr);
    CHECK(false, "the attack could not be made: %s", what);
}

/* In place of dataset `name`: of n fp32 (or int64) elements with that creation list. */
static void put_dataset(hid_t file, const char *name, hid_t type, hsize_t n, hid_t list) {
    H5Ldelete(file, name, H5P_DEFAULT);
    hid_t space = H5Screate_simple(1, &n, NULL);
    hid_t d = H5Dcreate2(file, name, type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    must(d >= 0, name);
    H5Dclose(d);
    H5Sclose(space);
    H5Pclose(list);
}
static hid_t new_list(void) {
    return H5Pcreate(H5P_DATASET_CREATE);
}

static void external_storage(hid_t file) {
    hid_t list = new_list();
    must(H5Pset_external(list, outside, 0, 4096) >= 0, "external storage");
    put_dataset(file, block_name, H5T_IEEE_F32LE, 1024, list);
}
static void virtual_storage(hid_t file) {
    hsize_t n = 1024;
    hid_t list = new_list(), space = H5Screate_simple(1, &n, NULL);
    must(H5Pset_virtual(list, space, outside, "/x", space) >= 0, "virtual storage");
    put_dataset(file, block_name, H5T_IEEE_F32LE, n, list);
    H5Sclose(space);
}
static void unknown_filter(hid_t file) {
    hsize_t chunk = 64;
    hid_t list = new_list();
    must(H5Pset_chunk(list, 1, &chunk) >= 0 &&
             H5Pset_filter(list, 32015, H5Z_FLAG_OPTIONAL, 0, NULL) >= 0,
         "filter");
    put_dataset(file, block_name, H5T_IEEE_F32LE, 1024, list);
}
static void huge_chunks(hid_t file) {
    hsize_t chunk = (hsize_t)1 << 29;
    hid_t list = new_list();
    must(H5Pset_chunk(list, 1, &chunk) >= 0, "chunk");
    put_dataset(file, block_name, H5T_IEEE_F32LE, (hsize_t)1 << 40, list);
}
/* Where the manifest speaks of one chunk of 16 elements behind fletcher32. */
#define VECTOR "model/language_model/layers/001/input_layernorm/weight"
static void put_chunked(hid_t file, hsize_t n, hsize_t chunk, bool shuffle, bool fletcher32) {
    hid_t list = new_list();
    must(H5Pset_chunk(list, 1, &chunk) >= 0 && (!shuffle || H5Pset_shuffle(list) >= 0) &&
             (!fletcher32 || H5Pset_fletcher32(list) >= 0),
         "chunks");
    put_dataset(file, VECTOR, H5T_IEEE_F32LE, n, list);
}
static void one_filter_more(hid_t file) {
    put_chunked(file, 16, 16, true, true);
}
static void no_filter(hid_t file) {
    put_chunked(file, 16, 16, false, false);
}
static void other_chunks(hid_t file) {
    put_chunked(file, 16, 8, false, true);
}
static void chunks_of_a_gigabyte(hid_t file) {
    put_chunked(file, (hsize_t)1 << 40, (hsize_t)1 << 28, false, true);
}
static void no_chunk_stored(hid_t file) {
    put_chunked(file, 16, 16, false, true);
}
/* The only chunk becomes one that holds n zeros, with the checksum that belongs to it. */
static void other_stream(hid_t file, hsize_t n) {
    char stored[256];
    float *zero = xcalloc(n, sizeof *zero);
    hsize_t origin = 0, bytes = 0;
    uint32_t skipped = 0;
    hid_t d = H5Dopen2(file, VECTOR, H5P_DEFAULT), list = new_list();
    hid_t space = H5Screate_simple(1, &n, NULL);
    must(H5Pset_chunk(list, 1, &n) >= 0 && H5Pset_shuffle(list) >= 0 &&
             H5Pset_deflate(list, 1) >= 0 && H5Pset_fletcher32(list) >= 0,
         "filters");
    hid_t other = H5Dcreate2(file, "other", H5T_IEEE_F32LE, space, H5P_DEFAULT, list, H5P_DEFAULT);
    must(H5Dwrite(other, H5T_IEEE_F32LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, zero) >= 0 &&
             H5Dflush(other) >= 0 && H5Dget_chunk_storage_size(other, &origin, &bytes) >= 0 &&
             bytes <= sizeof stored &&
             H5Dread_chunk(other, H5P_DEFAULT, &origin, &skipped, stored) >= 0 &&
             H5Dwrite_chunk(d, H5P_DEFAULT, 0, &origin, bytes, stored) >= 0,
         "a chunk");
    H5Dclose(other);
    H5Dclose(d);
    H5Sclose(space);
    H5Pclose(list);
    free(zero);
}
static void short_stream(hid_t file) {
    other_stream(file, 8);
}
static void long_stream(hid_t file) {
    other_stream(file, 4096);
}
/* The manifest says where that chunk lies. */
static void sign_chunk(const char *dir, hid_t file) {
    struct ckpt_manifest *m;
    size_t n;
    CHECK(ckpt_read_manifest(dir, &m) == 0, "%s", error_text());
    struct ckpt_tensor *t = m->tensor;
    while (strcmp(t->name, VECTOR) != 0) t++;
    hid_t d = H5Dopen2(file, VECTOR, H5P_DEFAULT), space = H5Dget_space(d);
    haddr_t at;
    hsize_t bytes, offset;
    unsigned skipped;
    must(H5Dget_chunk_info(d, space, 0, &offset, &skipped, &at, &bytes) >= 0, "place");
    H5Sclose(space);
    H5Dclose(d);
    t->block[0].chunk[0].file_offset = (int64_t)at;
    t->block[0].chunk[0].bytes = (int64_t)bytes;
    m->file[0].bytes += 1 << 20; /* case_sign says how long the file is */
    char *text = manifest_text(m, &n), *path = xasprintf("%s/" CKPT_MANIFEST, dir);
    CHECK(file_write_atomic(path, text, n) == 0, "%s", error_text());
    free(path);
    free(text);
    manifest_free(m);
}
static void huge_extent(hid_t file) {
    put_dataset(file, block_name, H5T_IEEE_F32LE, (hsize_t)1 << 40, new_list());
}
static void other_type(hid_t file) {
    put_dataset(file, block_name, H5T_STD_I32LE, 1024, new_list());
}
static void group_instead(hid_t file) {
    H5Ldelete(file, block_name, H5P_DEFAULT);
    hid_t g = H5Gcreate2(file, block_name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    must(g >= 0, "group");
    H5Gclose(g);
}
static void soft_link(hid_t file) {
    H5Ldelete(file, block_name, H5P_DEFAULT);
    must(H5Lcreate_soft("/header", file, block_name, H5P_DEFAULT, H5P_DEFAULT) >= 0, "link");
}
static void external_link_at(hid_t file, const char *name) {
    H5Ldelete(file, name, H5P_DEFAULT);
    must(H5Lcreate_external(outside, "/x", file, name, H5P_DEFAULT, H5P_DEFAULT) >= 0, "link");
}
static void external_link(hid_t file) {
    external_link_at(file, block_name);
}
static void external_model(hid_t file) {
    external_link_at(file, "model");
}
static void external_training(hid_t file) {
    external_link_at(file, "training");
}
static void soft_header(hid_t file) {
    H5Ldelete(file, "header", H5P_DEFAULT);
    must(H5Lcreate_soft("/training", file, "header", H5P_DEFAULT, H5P_DEFAULT) >= 0, "link");
}
static void looping_header(hid_t file) {
    H5Ldelete(file, "header", H5P_DEFAULT);
    must(H5Lcreate_soft("/header", file, "header", H5P_DEFAULT, H5P_DEFAULT) >= 0, "link");
}
static void external_history(hid_t file) {
    hid_t list = new_list();
    must(H5Pset_external(list, outside, 0, 16) >= 0, "external storage");
    put_dataset(file, "training/history/loss", H5T_IEEE_F64LE, 2, list);
}
static void huge_history(hid_t file) {
    put_dataset(file, "training/history/step", H5T_STD_I64LE, (hsize_t)1 << 40, new_list());
}
static void flowing_text(hid_t file) {
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    const char *text = "strata-checkpoint";
    H5Tset_size(type, H5T_VARIABLE);
    H5Adelete(file, "format");
    hid_t a = H5Acreate2(file, "format", type, space, H5P_DEFAULT, H5P_DEFAULT);
    must(a >= 0 && H5Awrite(a, type, &text) >= 0, "attribute");
    H5Aclose(a);
    H5Sclose(space);
    H5Tclose(type);
}
static void other_uuid(hid_t file) {
    hid_t a = H5Aopen(file, "checkpoint_uuid", H5P_DEFAULT), type = H5Aget_type(a);
    char text[64] = "00000000-0000-4000-8000-000000000000";
    must(H5Awrite(a, type, text) >= 0, "attribute");
    H5Tclose(type);
    H5Aclose(a);
}
static void external_used_ini(hid_t file) {
    hid_t list = new_list(), type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, 16);
    H5Ldelete(file, "config/used.ini", H5P_DEFAULT);
    must(H5Pset_external(list, outside, 0, 16) >= 0, "external storage");
    hid_t d = H5Dcreate2(file, "config/used.ini", type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    must(d >= 0, "used.ini");
    H5Dclose(d);
    H5Sclose(space);
    H5Tclose(type);
    H5Pclose(list);
}

/* ---- edits of the folder ------------------------------------------------------------------------------- */
static char *in_folder(const char *dir, const char *name) {
    static char text[2][800];
    static int next;
    next = !next;
    snprintf(text[next], sizeof text[next], "%s/%s", dir, name);
    return text[next];
}
#define SHARD "iter_0000002-shard-00000-of-00001.h5"
static void shard_is_link(const char *dir) {
    must(rename(in_folder(dir, SHARD), outside) == 0, "rename");
    must(symlink(outside, in_folder(dir, SHARD)) == 0, "symlink");
}
static void shard_is_pipe(const char *dir) {
    must(unlink(in_folder(dir, SHARD)) == 0 && mkfifo(in_folder(dir, SHARD), 0600) == 0, "pipe");
}
static void shard_is_folder(const char *dir) {
    must(unlink(in_folder(dir, SHARD)) == 0 && mkdir(in_folder(dir, SHARD), 0700) == 0, "folder");
}
static void manifest_is_pipe(const char *dir) {
    must(unlink(in_folder(dir, CKPT_MANIFEST)) == 0, "unlink");
    must(mkfifo(in_folder(dir, CKPT_MANIFEST), 0600) == 0, "pipe");
}
static void manifest_is_link(const char *dir) {
    must(rename(in_folder(dir, CKPT_MANIFEST), outside) == 0, "rename");
    must(symlink(outside, in_folder(dir, CKPT_MANIFEST)) == 0, "symlink");
}
static void manifest_is_huge(const char *dir) {
    must(truncate(in_folder(dir, CKPT_MANIFEST), (off_t)1 << 40) == 0, "truncate");
}
static void one_file_more(const char *dir) {
    FILE *f = fopen(in_folder(dir, "more.h5"), "w");
    must(f != NULL && fclose(f) == 0, "file");
}
static void shard_of_another(const char *dir) {
    must(rename(in_folder(template[0], "iter_0000001-shard-00000-of-00001.h5"),
                in_folder(dir, SHARD)) == 0,
         "rename");
}

/* ---- one attack ---------------------------------------------------------------------------------------- */
static const struct attack {
    const char *name, *says;
    void (*shard)(hid_t file);
    void (*folder)(const char *dir);
    bool show; /* seen by `strata checkpoint show` and reshard, not by train */
    enum ckpt_filter filter;
} attacks[] = {
    {"external storage", "not stored as plain bytes", external_storage, NULL, false,
     CKPT_FILTER_NONE},
    {"virtual storage", "not stored as plain bytes", virtual_storage, NULL, false,
     CKPT_FILTER_NONE},
    {"a filter nobody knows", "not stored as plain bytes", unknown_filter, NULL, false,
     CKPT_FILTER_NONE},
    {"chunks of 2 GiB", "not stored as plain bytes", huge_chunks, NULL, false, CKPT_FILTER_NONE},
    {"one filter more", "behind the filter fletcher32 alone", one_filter_more, NULL, false,
     CKPT_FILTER_FLETCHER32},
    {"no filter", "behind the filter fletcher32 alone", no_filter, NULL, false,
     CKPT_FILTER_FLETCHER32},
    {"other chunks", "behind the filter fletcher32 alone", other_chunks, NULL, false,
     CKPT_FILTER_FLETCHER32},
    {"chunks of 1 GiB", "behind the filter", chunks_of_a_gigabyte, NULL, false,
     CKPT_FILTER_FLETCHER32},
    {"no chunks at all", "0 of its 1 chunks are stored", no_chunk_stored, NULL, false,
     CKPT_FILTER_FLETCHER32},
    {"external storage for chunks", "behind the filter", external_storage, NULL, false,
     CKPT_FILTER_FLETCHER32},
    {"a chunk that decodes to half", "does not decode to the 64 bytes", short_stream, NULL, false,
     CKPT_FILTER_DEFLATE},
    {"a chunk that decodes to more", "does not decode to the 64 bytes", long_stream, NULL, false,
     CKPT_FILTER_DEFLATE},
    {"an extent of 4 TiB", "does not lie where the manifest says", huge_extent, NULL, false,
     CKPT_FILTER_NONE},
    {"another type", "does not lie where the manifest says", other_type, NULL, false,
     CKPT_FILTER_NONE},
    {"a group instead of a tensor", "is no dataset", group_instead, NULL, false, CKPT_FILTER_NONE},
    {"a soft link", "is a link to somewhere else", soft_link, NULL, false, CKPT_FILTER_NONE},
    {"an external link", "is a link to somewhere else", external_link, NULL, false,
     CKPT_FILTER_NONE},
    {"an external link above", "model is a link to somewhere else", external_model, NULL, false,
     CKPT_FILTER_NONE},
    {"training elsewhere", "training is a link to somewhere else", external_training, NULL, false,
     CKPT_FILTER_NONE},
    {"a linked header", "header is a link to somewhere else", soft_header, NULL, false,
     CKPT_FILTER_NONE},
    {"a header linked to itself", "header is a link to somewhere else", looping_header, NULL, false,
     CKPT_FILTER_NONE},
    {"history from another file", "not stored as plain bytes", external_history, NULL, false,
     CKPT_FILTER_NONE},
    {"a history of 8 TiB", "is no column of", huge_history, NULL, false, CKPT_FILTER_NONE},
    {"text of variable length", "no text of fixed length", flowing_text, NULL, false,
     CKPT_FILTER_NONE},
    {"the uuid of another save", "belongs to another checkpoint", other_uuid, NULL, false,
     CKPT_FILTER_NONE},
    {"a job file from elsewhere", "not stored as plain bytes", external_used_ini, NULL, true,
     CKPT_FILTER_NONE},
    {"a shard that is a link", "is no regular file", NULL, shard_is_link, false, CKPT_FILTER_NONE},
    {"a shard that is a pipe", "is no regular file", NULL, shard_is_pipe, false, CKPT_FILTER_NONE},
    {"a shard that is a folder", "is no regular file", NULL, shard_is_folder, false,
     CKPT_FILTER_NONE},
    {"a manifest that is a pipe", "is no regular file", NULL, manifest_is_pipe, false,
     CKPT_FILTER_NONE},
    {"a manifest that is a link", "is no regular file", NULL, manifest_is_link, false,
     CKPT_FILTER_NONE},
    {"a manifest of 1 TiB", "larger than", NULL, manifest_is_huge, false, CKPT_FILTER_NONE},
    {"one file more", "is not in the manifest", NULL, one_file_more, false, CKPT_FILTER_NONE},
    {"the shard of another step", "is damaged", NULL, shard_of_another, false, CKPT_FILTER_NONE},
};

struct attempt {
    struct ckpt_job job;
    const struct attack *attack;
};
static int resume_or_show(const struct grid *grid, struct attempt *a) {
    if (!a->attack->show) return (int)-case_load(grid, &a->job);
    struct source source;
    struct about about;
    char dir[400];
    snprintf(dir, sizeof dir, "%.300s/iter_0000002", a->job.folder);
    TRY(source_open(&source, dir));
    return about_read(&source, &about);
}
static int64_t attempt(const struct grid *grid, void *arg) {
    struct attempt *a = arg;
    struct rusage use;
    alarm(60); /* a hang ends by SIGALRM */
    int rc = resume_or_show(grid, a);
    getrusage(RUSAGE_SELF, &use);
    if (rc != EXIT_BAD_DATA || strstr(error_text(), a->attack->says) == NULL ||
        use.ru_maxrss > MEMORY_MAX_KIB) {
        printf("# code %d, %ld KiB, \"%s\"\n", rc, use.ru_maxrss, error_text());
        return 1;
    }
    return 0;
}

static void one_attack(const struct attack *attack) {
    struct attempt a = {.job = {.c = layout}, .attack = attack};
    char dir[400];
    int64_t result[TEAM_MAX];
    snprintf(a.job.folder, sizeof a.job.folder, "%s/run", case_folder);
    snprintf(dir, sizeof dir, "%.300s/iter_0000002", a.job.folder);
    case_remove(a.job.folder);
    case_copy(template[1 + attack->filter], dir);
    case_remove(outside);
    case_copy_file(in_folder(template[1], SHARD), outside);
    if (attack->shard) {
        hid_t file = H5Fopen(in_folder(dir, SHARD), H5F_ACC_RDWR, H5P_DEFAULT);
        must(file >= 0, "open");
        attack->shard(file);
        if (attack->filter == CKPT_FILTER_DEFLATE) sign_chunk(dir, file);
        must(H5Fclose(file) >= 0, "close");
        case_sign(dir);
    } else {
        attack->folder(dir);
    }
    bool good = team_run(&layout.at, 0.2, attempt, &a, result) == 0 && result[0] == 0;
    verdict(good, "%s: refused, \"%s\"", attack->name, attack->says);
}

static void make_templates(void) {
    struct ckpt_job job = {.c = layout, .no_index = true};
    struct ckpt_manifest *m;
    snprintf(job.folder, sizeof job.folder, "%s/template", case_folder);
    for (job.step = 1; job.step <= 2; job.step++) {
        CHECK(case_run(&job, case_save) == 0, "a save");
        snprintf(template[job.step - 1], sizeof template[0], "%s/iter_%07d", job.folder,
                 (int)job.step);
    }
    job.step = 2;
    for (int f = CKPT_FILTER_FLETCHER32; f < CKPT_FILTERS; f++) {
        job.filter = (enum ckpt_filter)f;
        snprintf(job.folder, sizeof job.folder, "%s/filter-%d", case_folder, f);
        CHECK(case_run(&job, case_save) == 0, "a save behind a filter");
        snprintf(template[1 + f], sizeof template[0], "%s/iter_0000002", job.folder);
    }
    CHECK(ckpt_read_manifest(template[1], &m) == 0, "%s", error_text());
    snprintf(block_name, sizeof block_name, "%s", m->tensor[m->n_tensors - 1].block[0].dataset);
    snprintf(outside, sizeof outside, "%s/outside", case_folder);
    manifest_free(m);
}

int main(void) {
    case_begin();
    make_templates();
    for (size_t i = 0; i < sizeof attacks / sizeof attacks[0]; i++) one_attack(&attacks[i]);
    return case_end();
}
