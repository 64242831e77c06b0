/* Prints the fault points of the program it is linked with, one a line, sorted: the section holds
 * the names, with zeros between them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const char __start_fault_points[], __stop_fault_points[];

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int main(void) {
    static const char *name[4096];
    size_t n = 0;
    for (const char *at = __start_fault_points; at < __stop_fault_points; at += strlen(at) + 1)
        if (*at != 0 && n < 4096) name[n++] = at;
    qsort(name, n, sizeof *name, by_name);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(name[i], name[i - 1]) != 0) puts(name[i]);
    return n == 0;
}
