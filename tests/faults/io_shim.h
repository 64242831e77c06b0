/* The k-th call below a folder goes wrong (io_shim.c). */
#ifndef STRATA_IO_SHIM_H
#define STRATA_IO_SHIM_H

#include <stdbool.h>
#include <stdint.h>

enum io_fault_kind {
    IO_FAULT_ENOSPC,
    IO_FAULT_EIO,
    IO_FAULT_EDQUOT,
    IO_FAULT_EINTR,
    IO_FAULT_SHORT,
    IO_FAULT_KILL,
    IO_FAULT_FULL,
    IO_FAULT_KINDS
};
/* at < 0: nothing goes wrong. */
void io_fault_arm(const char *folder, int64_t at, enum io_fault_kind kind);
bool io_fault_fired(void);
const char *io_fault_name(enum io_fault_kind kind);

#endif
