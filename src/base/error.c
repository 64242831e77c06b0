/* The error trace: sentences recorded where something failed, printed once where it ends. */
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base.h"

/* The trace and the way out are the process's, not a run's: an error must be recordable from
 * anywhere, decoding threads included (hence the lock), and without memory that could be missing. */
#define TRACE_BYTES 65536
#define LEAST_BYTES 64 /* room without which a sentence is only counted */
static struct {
    pthread_mutex_t lock;
    char text[TRACE_BYTES];
    size_t used;
    int n, n_dropped, code;
    void (*abort_job)(int);
} trace = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* One sentence is one line: control characters from hostile input must not forge another. */
static void flatten(char *text) {
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = ' ';
}

/* Appends separator and text if both fit whole or cut; false if there is no room left at all. */
static bool append(const char *separator, const char *text) {
    size_t room = TRACE_BYTES - 1 - trace.used, n_sep = strlen(separator), n = strlen(text);
    if (room < n_sep + LEAST_BYTES) return false;
    if (n > room - n_sep) n = room - n_sep;
    memcpy(trace.text + trace.used, separator, n_sep);
    memcpy(trace.text + trace.used + n_sep, text, n);
    trace.used += n_sep + n;
    trace.text[trace.used] = '\0';
    return true;
}

static void record(int exit_code, const char *fmt, va_list args, bool note) {
    char sentence[4096];
    vsnprintf(sentence, sizeof sentence, fmt, args);
    flatten(sentence);
    pthread_mutex_lock(&trace.lock);
    bool first = trace.n == 0;
    if (first) trace.code = exit_code;
    if (!append(first ? "" : note ? ", " : "\n", sentence)) trace.n_dropped++;
    if (!note || first) trace.n++;
    pthread_mutex_unlock(&trace.lock);
}

int error_raise(int exit_code, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    record(exit_code, fmt, args, false);
    va_end(args);
    return exit_code;
}

int error_note(int exit_code, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    record(exit_code, fmt, args, true);
    va_end(args);
    return exit_code;
}

int error_count(void) {
    return trace.n;
}

bool error_full(void) {
    return TRACE_BYTES - 1 - trace.used <= LEAST_BYTES;
}

int error_code(void) {
    return trace.code;
}

const char *error_text(void) {
    return trace.text;
}

void error_clear(void) {
    pthread_mutex_lock(&trace.lock);
    trace.text[0] = '\0';
    trace.used = 0;
    trace.n = trace.n_dropped = trace.code = 0;
    pthread_mutex_unlock(&trace.lock);
}

void error_print(FILE *to) {
    pthread_mutex_lock(&trace.lock);
    for (const char *line = trace.text; *line != '\0';) {
        size_t n = strcspn(line, "\n");
        fprintf(to, "error: %.*s\n", (int)n, line);
        line += n + (line[n] == '\n');
    }
    if (trace.n_dropped > 0) fprintf(to, "error: and %d more\n", trace.n_dropped);
    fflush(to);
    pthread_mutex_unlock(&trace.lock);
}

void error_set_abort(void (*abort_job)(int exit_code)) {
    trace.abort_job = abort_job;
}

void error_exit(void) {
    int code = trace.code != 0 ? trace.code : EXIT_INTERNAL;
    fflush(stdout);
    error_print(stderr);
    if (trace.abort_job != NULL) trace.abort_job(code);
    exit(code);
}

void error_fatal(int exit_code, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    record(exit_code, fmt, args, false);
    va_end(args);
    error_exit();
}

void check_failed(const char *file, int line, const char *condition, const char *fmt, ...) {
    char why[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, sizeof why, fmt, args);
    va_end(args);
    error_fatal(EXIT_INTERNAL, "internal: %s:%d: (%s) does not hold: %s", file, line, condition,
                why);
}
