/* Intervals from the monotonic clock, stamps in UTC. */
#include <time.h>

#include "base.h"

double clock_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void clock_utc(char text[32], bool microseconds) {
    struct timespec t;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &tm);
    size_t n = strftime(text, 32, "%Y-%m-%dT%H:%M:%S", &tm);
    if (microseconds)
        snprintf(text + n, 32 - n, ".%06ldZ", t.tv_nsec / 1000 % 1000000);
    else
        snprintf(text + n, 32 - n, "Z");
}
