/* Arenas and checked allocation. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"

/* Measuring hands out addresses from here on: no memory lies there, alignment is as in earnest. */
#define MEASURE_BASE ((uintptr_t)1 << 46)

void arena_init(struct arena *a, const char *name, void *base, size_t size) {
    CHECK((uintptr_t)base % ARENA_ALIGN == 0, "arena %s starts at %p", name, base);
    *a = (struct arena){.name = name, .base = base, .size = size};
}

void arena_init_measuring(struct arena *a, const char *name) {
    *a = (struct arena){.name = name, .base = (char *)MEASURE_BASE, .measuring = true};
}

void *arena_alloc(struct arena *a, size_t bytes) {
    CHECK(bytes <= SIZE_MAX / 2 - a->used, "arena %s: %zu bytes asked for", a->name, bytes);
    size_t rounded = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    CHECK(a->measuring || rounded <= a->size - a->used,
          "arena %s holds %zu bytes, %zu are used, %zu more were not planned", a->name, a->size,
          a->used, rounded);
    char *p = a->base + a->used;
    a->used += rounded;
    if (a->used > a->peak) a->peak = a->used;
    return p;
}

size_t arena_mark(const struct arena *a) {
    return a->used;
}

void arena_release(struct arena *a, size_t mark) {
    CHECK(mark <= a->used, "arena %s: mark %zu lies above %zu", a->name, mark, a->used);
    a->used = mark;
}

static void *allocated(void *p, size_t bytes) {
    if (p == NULL) error_fatal(EXIT_AGAIN, "host memory is exhausted: %zu bytes refused", bytes);
    return p;
}

void *xmalloc(size_t bytes) {
    return allocated(malloc(bytes > 0 ? bytes : 1), bytes);
}

void *xcalloc(size_t n, size_t size) {
    if (n == 0 || size == 0) n = size = 1;
    return allocated(calloc(n, size), n > SIZE_MAX / size ? SIZE_MAX : n * size);
}

void *xrealloc(void *p, size_t bytes) {
    return allocated(realloc(p, bytes > 0 ? bytes : 1), bytes);
}

char *xstrdup(const char *s) {
    size_t bytes = strlen(s) + 1;
    return memcpy(xmalloc(bytes), s, bytes);
}

char *xasprintf(const char *fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    CHECK(n >= 0, "format %s", fmt);
    char *text = xmalloc((size_t)n + 1);
    vsnprintf(text, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(args);
    return text;
}
