/* Opening an image whose name came from a file. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image_impl.h"

void *buffer_reserve(struct buffer *b, size_t bytes) {
    if (bytes > b->bytes) {
        free(b->data);
        b->data = xmalloc(bytes);
        b->bytes = bytes;
    }
    return b->data;
}

void image_scratch_free(struct image_scratch *s) {
    free(s->file.data);
    free(s->raw.data);
    free(s->rgb.data);
    free(s->line.data);
    free(s->rows.data);
    free(s->resized.data);
    free(s->weights.data);
    free(s->row_weights.data);
    *s = (struct image_scratch){0};
}

int image_fail(struct image_scratch *s, int exit_code, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(s->why, sizeof s->why, fmt, args);
    va_end(args);
    return exit_code;
}

static int fail_open(struct image_scratch *s, const char *part) {
    int err = errno;
    if (err == ELOOP || (err == ENOTDIR && strchr(part, '/') == NULL))
        return image_fail(s, EXIT_BAD_DATA,
                          "cannot be opened: '%.100s' on its way is a symbolic link or no folder; "
                          "links below the image folder are not followed",
                          part);
    int code = err == ENOENT                   ? EXIT_NO_INPUT
               : err == EACCES || err == EPERM ? EXIT_NO_PERMISSION
                                               : EXIT_IO;
    return image_fail(s, code, "cannot be opened: %s", strerror(err));
}

/* File descriptor of name below the folder, or -1 with *code set. */
static int open_below(const char *folder, const char *name, struct image_scratch *s, int *code) {
    int at = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (at < 0) {
        *code = image_fail(s, errno == ENOENT ? EXIT_NO_INPUT : EXIT_IO,
                           "cannot be opened: folder %.120s: %s", folder, strerror(errno));
        return -1;
    }
    for (const char *part = name;;) {
        char component[256];
        size_t n = strcspn(part, "/");
        bool last = part[n] == '\0';
        if (n == 0 || n >= sizeof component || (n <= 2 && strncmp(part, "..", n) == 0)) {
            *code = image_fail(s, EXIT_BAD_DATA,
                               "has an illegal name: it must be a relative path without '.', '..', "
                               "empty or overlong parts");
            close(at);
            return -1;
        }
        memcpy(component, part, n);
        component[n] = '\0';
        int flags = O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | (last ? 0 : O_DIRECTORY);
        int fd = openat(at, component, flags);
        if (fd < 0) *code = fail_open(s, component);
        close(at);
        if (fd < 0 || last) return fd;
        at = fd;
        part += n + 1;
    }
}

static int read_whole(int fd, struct image_scratch *s, size_t *bytes) {
    struct stat st;
    if (fstat(fd, &st) != 0) return image_fail(s, EXIT_IO, "cannot be read: %s", strerror(errno));
    if (!S_ISREG(st.st_mode)) return image_fail(s, EXIT_BAD_DATA, "is no regular file");
    if (st.st_size > (off_t)IMAGE_FILE_BYTES_MAX)
        return image_fail(s, EXIT_BAD_DATA, "has %lld bytes, allowed are %zu",
                          (long long)st.st_size, IMAGE_FILE_BYTES_MAX);
    size_t size = (size_t)st.st_size, used = 0;
    char *data = buffer_reserve(&s->file, size + 1);
    while (used < size) {
        ssize_t n = read(fd, data + used, size - used);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return image_fail(s, EXIT_IO, "cannot be read: %s", strerror(errno));
        if (n == 0) return image_fail(s, EXIT_IO, "became shorter while it was read");
        used += (size_t)n;
    }
    *bytes = size;
    return 0;
}

int image_read_file(const char *folder, const char *name, struct image_scratch *s, size_t *bytes) {
    int code = 0;
    int fd = folder != NULL ? open_below(folder, name, s, &code)
                            : open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return folder != NULL ? code : fail_open(s, name);
    code = read_whole(fd, s, bytes);
    close(fd);
    return code;
}
