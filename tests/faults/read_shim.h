/* The k-th call that reads below a folder fails (read_shim.c). */
#ifndef STRATA_READ_SHIM_H
#define STRATA_READ_SHIM_H

#include <stdbool.h>
#include <stdint.h>

/* The calls from number `at` on fail with `error`, so many of them; at < 0: none. */
void read_fault_arm(const char *folder, int64_t at, int64_t times, int error);
bool read_fault_fired(void);
const char *read_fault_call(void); /* the first call that failed: "pread", ... */

#endif
