/* Changed at random, with checksums that agree afterwards, so that the parser of the manifest and HDF5
 * get to see it: a manifest is refused or means something, a shard is refused or loaded. Nothing
 * crashes, hangs, or is without a sentence. STRATA_LONG=1 tries more. */
/* timeout: 3600 */
#include "ckpt_team.h"

static struct ckpt_case layout = {.at = {1, 1, 1}, .split = {1}, .one_layer = true};
static char template[400];

static uint64_t dice = 0x9E3779B97F4A7C15u;
static size_t throw(size_t sides) {
    dice ^= dice << 13;
    dice ^= dice >> 7;
    dice ^= dice << 17;
    return (size_t)(dice >> 11) % sides;
}

/* ---- manifests ---------------------------------------------------------------------------------------- */
static const char *const words[] = {"0",
                                    "-1",
                                    "9223372036854775807",
                                    "9223372036854775808",
                                    "4096",
                                    "1e9",
                                    "null",
                                    "true",
                                    "[]",
                                    "{}",
                                    "\"\"",
                                    "\"../x\"",
                                    "[[",
                                    ",",
                                    "\\u0000",
                                    "1.5",
                                    "\xff",
                                    ":",
                                    "18446744073709551615"};

/* One change of a text: a span repeated, cut out, overwritten by a word or by a span from elsewhere. */
static char *change_text(const char *text, size_t n, size_t *m) {
    size_t at = throw(n), span = 1 + throw(throw(4) ? 12 : 400), from = throw(n);
    if (span > n - at) span = n - at;
    if (from + span > n) from = n - span;
    const char *word = words[throw(sizeof words / sizeof words[0])];
    char *out = xmalloc(2 * n + 64);
    size_t kind = throw(5), k = at;
    memcpy(out, text, at);
    if (kind == 0) memcpy(out + k, text + at, span), k += span;
    if (kind == 1 || kind == 2) { /* a number becomes another word */
        while (at < n && !(text[at] >= '0' && text[at] <= '9')) out[k++] = text[at++];
        span = strspn(text + at, "0123456789");
        if (span > n - at) span = n - at;
        memcpy(out + k, word, strlen(word));
        k += strlen(word);
        at += span;
    } else if (kind == 3) {
        at += span;
    } else if (kind == 4) {
        memcpy(out + k, text + from, span);
        k += span;
        at += span;
    }
    memcpy(out + k, text + at, n - at);
    *m = k + n - at;
    out[*m] = 0;
    return out;
}
static void sign_text(char *text, size_t n) {
    static const char key[] = "\"crc32c\": \"";
    char digits[9], *crc = memmem(text, n, key, sizeof key - 1);
    if (crc == NULL || (size_t)(crc - text) + sizeof key + 8 > n) return;
    memcpy(crc + sizeof key - 1, "00000000", 8);
    snprintf(digits, sizeof digits, "%08x", crc32c(0, text, n));
    memcpy(crc + sizeof key - 1, digits, 8);
}

/* false: it was taken and does not survive being written again, or refused without a word. */
static bool one_text(const char *text, size_t n, int64_t *taken) {
    struct ckpt_manifest *m = NULL, *again = NULL;
    error_clear();
    int rc = manifest_parse("m", text, n, &m);
    if (!rc) rc = manifest_check_coverage(m, "m");
    bool good = (rc != 0) == (error_count() > 0);
    if (!rc) {
        size_t bytes;
        char *back = manifest_text(m, &bytes);
        good = good && manifest_parse("m", back, bytes, &again) == 0;
        free(back);
        (*taken)++;
    }
    if (!good) printf("# code %d: %s\n%.*s\n", rc, error_text(), (int)n, text);
    manifest_free(m);
    manifest_free(again);
    return good;
}

static void manifests(enum ckpt_filter filter) {
    char *path = xasprintf("%s/%s", template, CKPT_MANIFEST), *text;
    size_t bytes;
    CHECK(file_read(path, (size_t)1 << 24, &text, &bytes) == 0, "%s", error_text());
    int64_t n = case_long() ? 200000 : 3000, taken = 0;
    bool good = true;
    for (int64_t i = 0; i < n; i++) {
        size_t m, k;
        char *once = change_text(text, bytes, &m);
        char *twice = throw(3) ? NULL : change_text(once, m, &k);
        sign_text(twice ? twice : once, twice ? k : m);
        good = one_text(twice ? twice : once, twice ? k : m, &taken) && good;
        free(once);
        free(twice);
    }
    error_clear();
    verdict(good && taken * 2 < n, "%lld changed manifests, filter %s, %lld mean something",
            (long long)n, ckpt_filter_name(filter), (long long)taken);
    free(text);
    free(path);
}

/* ---- shards --------------------------------------------------------------------------------------------- */
struct span {
    int64_t first, end;
};
/* Where the file holds anything but tensors. */
static int64_t described(const char *dir, struct span *span, int64_t most) {
    struct ckpt_manifest *m;
    CHECK(ckpt_read_manifest(dir, &m) == 0, "%s", error_text());
    bool *data = xcalloc((size_t)m->file[0].bytes, 1);
    for (int64_t i = 0; i < m->n_tensors; i++)
        for (int64_t j = 0; j < m->tensor[i].n_blocks; j++) {
            const struct ckpt_block *b = &m->tensor[i].block[j];
            if (!b->chunk) memset(data + b->file_offset, 1, (size_t)b->bytes);
            for (int64_t k = 0; k < b->n_chunks; k++)
                memset(data + b->chunk[k].file_offset, 1, (size_t)b->chunk[k].bytes);
        }
    int64_t n = 0;
    for (int64_t at = 0; at < m->file[0].bytes && n < most; at++)
        if (!data[at] && (at == 0 || data[at - 1]))
            span[n++] = (struct span){at, at + 1};
        else if (!data[at])
            span[n - 1].end = at + 1;
    free(data);
    manifest_free(m);
    return n;
}

static void change_shard(const char *path, const struct span *span, int64_t n_spans) {
    static const unsigned char extreme[][8] = {
        {0}, {255, 255, 255, 255, 255, 255, 255, 255}, {255, 255, 255, 127}, {0, 0, 0, 0, 1}, {1}};
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0, "%s", path);
    for (size_t k = 1 + throw(3); k > 0; k--) {
        const struct span *s = &span[throw((size_t)n_spans)];
        int64_t at = s->first + (int64_t) throw((size_t)(s->end - s->first));
        unsigned char c;
        const unsigned char *value = extreme[throw(5)];
        size_t n = throw(2) ? 4 : 8;
        if (throw(2) || at + (int64_t)n > s->end) {
            CHECK(pread(fd, &c, 1, at) == 1, "%s", path);
            c = (unsigned char)(c ^ (1u << throw(8)));
            value = &c;
            n = 1;
        }
        CHECK(pwrite(fd, value, n, at) == (ssize_t)n, "%s", path);
    }
    close(fd);
}

static int64_t load(const struct grid *grid, void *arg) {
    alarm(60); /* a hang ends by SIGALRM */
    int64_t step = case_load(grid, arg);
    return step < 0 && step > -1000 && error_count() == 0 ? -1000 : step;
}

static void shards(enum ckpt_filter filter) {
    struct ckpt_job job = {.c = layout};
    struct span span[1000];
    char dir[400], path[500];
    int64_t n = case_long() ? 20000
                : filter    ? 60
                            : 250,
            loaded = 0, other = 0, n_spans = described(template, span, 1000);
    snprintf(job.folder, sizeof job.folder, "%s/run", case_folder);
    snprintf(dir, sizeof dir, "%.300s/iter_0000001", job.folder);
    snprintf(path, sizeof path, "%s/iter_0000001-shard-00000-of-00001.h5", dir);
    bool good = true;
    for (int64_t i = 0; i < n; i++) {
        case_remove(job.folder);
        case_copy(template, dir);
        change_shard(path, span, n_spans);
        case_sign(dir);
        int64_t step = case_run(&job, load);
        loaded += step == 1;
        other += step < -1000 && step > -2000; /* signed, so what it says is taken */
        bool fine = step == 1 || (step < 0 && step > -2000 && step != -1000);
        if (!fine) printf("# change %lld: %lld\n", (long long)i, (long long)step);
        good = good && fine;
    }
    verdict(
        good && loaded < n,
        "%lld changed shards, filter %s: %lld loaded as before, %lld with other counters, the rest "
        "refused",
        (long long)n, ckpt_filter_name(filter), (long long)loaded, (long long)other);
}

int main(void) {
    struct ckpt_job job = {.c = layout, .step = 1, .no_index = true};
    case_begin();
    for (int i = 0; i < CKPT_FILTERS; i++) {
        job.filter = (enum ckpt_filter)i;
        snprintf(job.folder, sizeof job.folder, "%s/template-%d", case_folder, i);
        snprintf(template, sizeof template, "%.300s/iter_0000001", job.folder);
        CHECK(case_run(&job, case_save) == 0, "a save");
        manifests(job.filter);
        shards(job.filter);
    }
    return case_end();
}
