/* The k-th call below a folder goes wrong, or all of them are watched (io_shim.c). */
#ifndef STRATA_IO_SHIM_H
#define STRATA_IO_SHIM_H

#include <stdbool.h>
#include <stddef.h>
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

/* What went well below a folder, told in the order it came. Paths are those of the time of open. */
enum io_call {
    IO_CALL_CREATE, /* a file that was not there */
    IO_CALL_WRITE,  /* n bytes of data at `at` */
    IO_CALL_TRUNCATE,
    IO_CALL_FSYNC,
    IO_CALL_RENAME, /* path to `to` */
    IO_CALL_MKDIR,
    IO_CALL_REMOVE, /* a file or an empty folder */
    IO_CALL_MARK    /* said by the test itself */
};
struct io_event {
    enum io_call call;
    const char *path, *to;
    const void *data;
    int64_t at, n;
};
/* NULL: no more. */
void io_watch(const char *folder, void (*watch)(const struct io_event *event));

#endif
