/* Git LFS pointers. A repository with Git LFS keeps a small text in place of each large file; a clone
 * made without git-lfs leaves that text where the file should be. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base.h"

/* The specification of Git LFS: a pointer is shorter than 1024 bytes and its first line is the version. */
#define POINTER_BYTES_MAX 1023
static const char first_line[] = "version https://git-lfs.github.com/spec/";

bool lfs_pointer(const void *data, size_t bytes) {
    const size_t n = sizeof first_line - 1;
    return bytes > n && bytes <= POINTER_BYTES_MAX && memcmp(data, first_line, n) == 0;
}

bool lfs_pointer_file(const char *path) {
    char head[POINTER_BYTES_MAX + 1];
    size_t used = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return false;
    for (ssize_t n = 1; n > 0 && used < sizeof head;) {
        n = read(fd, head + used, sizeof head - used);
        if (n > 0) used += (size_t)n;
    }
    close(fd);
    return lfs_pointer(head, used);
}
