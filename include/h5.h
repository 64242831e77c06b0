/* h5: how HDF5 reaches the bytes of a file. Two drivers of our own stand in place of the library's
 * POSIX driver, one for writing and one for reading. Neither takes a lock: a file system may have none
 * (NFS without lockd, some Lustre mounts), strata's files are written once under another name and then
 * only read, and who may write into a folder is settled by run.lock. Both keep the errno of a failing
 * call, which the library does not hand on: what could not be read is not known to be damaged. */
#ifndef STRATA_H5_H
#define STRATA_H5_H

#include <hdf5.h>

#include "base.h"

/* Where the bytes of a new file go. The descriptor is opened by H5Fcreate (O_EXCL) and left open when
 * the library closes the file: the owner calls fsync and close. `error` is the first errno, which the
 * library never learns of. Both live as long as the file is open. */
struct h5_outlet {
    int fd, error;
};
/* The first errno of opening or reading a file, 0 if all went well. What the file was found to be is
 * worth nothing if it is not 0. */
struct h5_inlet {
    int error;
};
/* Sets the driver of a file access list; false: the library refused. */
bool h5_use_outlet(hid_t access, struct h5_outlet *out);
bool h5_use_inlet(hid_t access, struct h5_inlet *in);

/* Takes the library's error stack: its innermost reason, and the code for a call that failed because of
 * what a file holds. That is `code`, unless the storage failed or memory was short; then it is EXIT_IO
 * or EXIT_NO_PERMISSION. */
int h5_take_reason(int code, char *text, size_t size);

#endif
