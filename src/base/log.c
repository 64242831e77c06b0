/* The log: rank 0 speaks, the others warn. */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>

#include "base.h"

static struct {
    pthread_mutex_t lock;
    int rank;
    FILE *stream, *file; /* stream NULL: stdout */
} out = {.lock = PTHREAD_MUTEX_INITIALIZER};

void log_set_rank(int rank) {
    out.rank = rank;
}

void log_to(FILE *stream) {
    out.stream = stream;
}

int log_open(const char *path) {
    if (out.rank != 0) return 0;
    FILE *f = fopen(path, "a");
    if (f == NULL)
        return error_raise(errno == EACCES ? EXIT_NO_PERMISSION : EXIT_CANT_CREATE,
                           "log file %s cannot be opened: %s", path, strerror(errno));
    log_close();
    out.file = f;
    return 0;
}

void log_close(void) {
    if (out.file != NULL) fclose(out.file);
    out.file = NULL;
}

/* In one piece: stderr is not buffered, and a launcher that joins the streams of its ranks would put
 * lines of others between the pieces. Longer ones take that chance. */
static void write_line(FILE *to, const char *prefix, const char *fmt, va_list args) {
    char line[4096];
    va_list again;
    va_copy(again, args);
    int n = snprintf(line, sizeof line, "%s", prefix);
    int text = vsnprintf(line + n, sizeof line - (size_t)n, fmt, again);
    va_end(again);
    if (text >= 0 && (size_t)(n + text) + 1 < sizeof line) {
        line[n + text] = '\n';
        fwrite(line, 1, (size_t)(n + text) + 1, to);
    } else {
        fputs(prefix, to);
        vfprintf(to, fmt, args);
        fputc('\n', to);
    }
    fflush(to);
}

static void write_both(FILE *to, const char *prefix, const char *fmt, va_list args) {
    va_list again;
    va_copy(again, args);
    pthread_mutex_lock(&out.lock);
    write_line(to, prefix, fmt, args);
    if (out.file != NULL) write_line(out.file, prefix, fmt, again);
    pthread_mutex_unlock(&out.lock);
    va_end(again);
}

void log_info(const char *fmt, ...) {
    if (out.rank != 0) return;
    va_list args;
    va_start(args, fmt);
    write_both(out.stream != NULL ? out.stream : stdout, "", fmt, args);
    va_end(args);
}

void log_warn(const char *fmt, ...) {
    char prefix[48];
    snprintf(prefix, sizeof prefix, "warning (rank %d): ", out.rank);
    va_list args;
    va_start(args, fmt);
    write_both(stderr, prefix, fmt, args);
    va_end(args);
}
