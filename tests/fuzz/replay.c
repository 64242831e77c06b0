/* Runs a harness over stored files, where libFuzzer is not linked: each FILE, and each file of each
 * FOLDER. A file that takes more than 2 s of processor time (ten times that with sanitizers), or
 * brings the process above 512 MiB, is a failure like a signal.
 *
 *   fuzz_NAME [--slow] FILE|FOLDER ... */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "target.h"

#define SECONDS_MAX 2.0
#define MEBIBYTES_MAX 512

static bool slow;
static int64_t n_files, n_costly;

static double processor_seconds(int64_t *mebibytes) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    *mebibytes = u.ru_maxrss / 1024;
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void replay_file(const char *path) {
    char *text;
    size_t bytes;
    int64_t before, after;
    if (file_read(path, (size_t)64 << 20, &text, &bytes) != 0) error_exit();
    printf("# %s\n", path); /* the last one printed is the one that ended the process */
    fflush(stdout);
    /* A block of just this size: a sanitizer sees a read behind its end. */
    uint8_t *data = xmalloc(bytes > 0 ? bytes : 1);
    memcpy(data, text, bytes);
    free(text);
    double begin = processor_seconds(&before);
    LLVMFuzzerTestOneInput(data, bytes);
    double seconds = processor_seconds(&after) - begin;
    free(data);
    n_files++;
    bool costly = !(seconds <= (slow ? 10 : 1) * SECONDS_MAX) ||
                  (!slow && after > MEBIBYTES_MAX && before <= MEBIBYTES_MAX);
    if (!costly) return;
    n_costly++;
    printf("not ok - %s: %.2f s and %lld MiB\n", path, seconds, (long long)after);
}

static void replay(const char *path) {
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode)) {
        replay_file(path);
        return;
    }
    struct dirent **entry;
    int n = scandir(path, &entry, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char *name = xasprintf("%s/%s", path, entry[i]->d_name);
        if (entry[i]->d_name[0] != '.') replay(name);
        free(name);
        free(entry[i]);
    }
    if (n >= 0) free(entry);
}

int main(int argc, char **argv) {
    LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--slow") == 0)
            slow = true, fuzz_patience = 10;
        else
            replay(argv[i]);
    if (n_files == 0 || n_costly > 0)
        printf("not ok - %lld files, %lld too costly\n", (long long)n_files, (long long)n_costly);
    else
        printf("replayed %lld files\n", (long long)n_files);
    return n_files == 0 || n_costly > 0;
}
