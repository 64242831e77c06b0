/* What the harnesses share: a folder in memory, judgement of exit codes, inputs of several parts. */
#include "target.h"

#include <endian.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "data.h"

#define FILES_MAX 16
#define SECONDS_MAX (fuzz_patience * 2.0)
#define FILE_SIZE_MAX ((size_t)1 << 20)

double fuzz_patience = 1;

static char folder[300];
static char made[FILES_MAX][420];
static int n_made;
static pid_t owner;
static clock_t judged; /* processor time at the end of the last input */
static FILE *report;   /* libFuzzer closes stderr, where the parsers' warnings go */

/* A finding, as a signal is one. */
static void on_error_exit(int code) {
    fprintf(report, "finding: the parser ended the process with exit code %d\n", code);
    error_print(report);
    abort();
}

void fuzz_expect(bool good, const char *what) {
    if (good) return;
    fprintf(report, "finding: %s\n", what);
    error_print(report);
    abort();
}

static void remove_files(void) {
    while (n_made > 0) unlink(made[--n_made]);
}

static void remove_folder(void) {
    if (getpid() != owner) return;
    remove_files();
    rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    const char *memory = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/strata-fuzz.XXXXXX", memory != NULL ? memory : ".");
    FILE *nowhere = fopen("/dev/null", "w");
    report = fdopen(dup(STDERR_FILENO), "w");
    if (mkdtemp(folder) == NULL || nowhere == NULL || report == NULL)
        error_fatal(EXIT_CANT_CREATE, "no folder %s can be made", folder);
    owner = getpid();
    atexit(remove_folder);
    error_set_abort(on_error_exit);
    log_to(nowhere);
    judged = clock();
    return 0;
}

const char *fuzz_folder(void) {
    return folder;
}

const char *fuzz_file(const char *name, const void *data, size_t bytes, size_t size) {
    CHECK(n_made < FILES_MAX, "more than %d files", FILES_MAX);
    char *path = made[n_made++];
    snprintf(path, sizeof made[0], "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes, "%s", path);
    if (size > bytes) CHECK(ftruncate(fd, (off_t)size) == 0, "%s", path);
    close(fd);
    return path;
}

void fuzz_judge(int rc) {
    fuzz_expect((rc != 0) == (error_count() > 0), "exit code and sentences do not agree");
    fuzz_expect(rc != EXIT_INTERNAL && error_code() != EXIT_INTERNAL, "exit code 70");
    fuzz_expect(rc >= 0 && rc <= 255, "no exit code");
    /* Of the processor, not of the clock: a busy machine is no finding. */
    fuzz_expect((double)(clock() - judged) <= SECONDS_MAX * CLOCKS_PER_SEC, "more than 2 s");
    error_clear();
    remove_files();
    judged = clock();
}

/* ---- inputs of several parts ------------------------------------------------------------------- */
static bool name_legal(const char *name) {
    return name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL;
}

bool fuzz_next_part(const uint8_t **data, size_t *bytes, struct fuzz_part *out) {
    while (*bytes > 0) {
        const char *at = (const char *)*data, *end = at + *bytes;
        const char *line = memchr(at, '\n', *bytes);
        size_t head = line != NULL ? (size_t)(line - at) : 0;
        const char *body = line != NULL ? line + 1 : end;
        const char *next = memmem(body, (size_t)(end - body), "\n@", 2);
        next = next != NULL ? next + 1 : end;
        *bytes = (size_t)(end - next);
        *data = (const uint8_t *)next;
        char word[160] = "";
        if (at[0] != '@' || head < 2 || head > sizeof word - 1) continue;
        memcpy(word, at + 1, head - 1);
        char *blank = strchr(word, ' ');
        int64_t size = 0;
        if (blank != NULL) *blank = '\0';
        if (blank != NULL && (!parse_int64(blank + 1, &size) || size < 0)) size = 0;
        if (!name_legal(word)) continue;
        snprintf(out->name, sizeof out->name, "%.99s", word);
        out->data = body;
        out->bytes = (size_t)(next - body);
        if (next != end && out->bytes > 0) out->bytes--; /* the newline belongs to the next head */
        out->size = (uint64_t)size < FILE_SIZE_MAX ? (size_t)size : FILE_SIZE_MAX;
        return true;
    }
    return false;
}

void fuzz_weights(const struct fuzz_part *p) {
    char *file = xmalloc(8 + p->bytes);
    uint64_t length = htole64((uint64_t)p->bytes);
    memcpy(file, &length, 8);
    memcpy(file + 8, p->data, p->bytes);
    fuzz_file(p->name, file, 8 + p->bytes, 8 + p->bytes + p->size);
    free(file);
}

/* ---- a stored file with changes ------------------------------------------------------------------ */
struct stored {
    char *data;
    size_t bytes;
};

static void change(char *file, size_t file_bytes, const uint8_t how[4]) {
    static const uint64_t number[8] = {0,          1,         UINT64_MAX, INT64_MAX,
                                       UINT32_MAX, INT32_MAX, 1u << 20,   255};
    size_t width = how[0] < 128 ? 1 : how[0] < 192 ? 4 : 8;
    size_t at = (size_t)how[1] | (size_t)how[2] << 8;
    uint64_t value = how[3] < 8 || width == 1 ? (uint64_t)how[3] : how[3];
    if (width > 1 && how[3] < 8) value = number[how[3]];
    if (file_bytes < 8) return;
    at %= file_bytes - 7;
    memcpy(file + at, &value, width);
}

const char *fuzz_changed(const uint8_t *data, size_t bytes, const char *const *path, int n,
                         const char *magic, size_t *size, int *which) {
    static struct stored *stored;
    static char *copy;
    size_t length = strlen(magic);
    *which = -1;
    *size = bytes;
    if (bytes >= length && memcmp(data, magic, length) == 0) return (const char *)data;
    if (stored == NULL) {
        size_t largest = 0;
        stored = xcalloc((size_t)n, sizeof *stored);
        for (int i = 0; i < n; i++) {
            struct stored *s = &stored[i];
            if (file_read(path[i], (size_t)1 << 20, &s->data, &s->bytes) != 0) error_exit();
            if (s->bytes > largest) largest = s->bytes;
        }
        copy = xmalloc(largest);
    }
    *which = bytes > 0 ? data[0] % n : 0;
    const struct stored *s = &stored[*which];
    memcpy(copy, s->data, s->bytes);
    for (size_t at = 1; at + 4 <= bytes; at += 4) change(copy, s->bytes, data + at);
    *size = s->bytes;
    return copy;
}

const struct tokenizer *fuzz_tokenizer(void) {
    static struct tokenizer *t;
    if (t == NULL && tokenizer_open("Llama2Tokenizer", "input/tiny/tokenizer.model", &t) != 0)
        error_exit();
    return t;
}
