/* backend: what does not depend on the device. */
#include <string.h>

#include "backend_impl.h"

void backend_check_table(const struct backend_ops *ops) {
    CHECK(ops && ops->name, "a backend table without a name");
    const char *bytes = (const char *)ops;
    for (size_t at = offsetof(struct backend_ops, destroy); at < sizeof *ops;
         at += sizeof(void *)) {
        void (*entry)(void);
        memcpy(&entry, bytes + at, sizeof entry);
        CHECK(entry, "backend %s: entry %zu of the table of operations is missing", ops->name,
              at / sizeof(void *));
    }
}

void backend_destroy(struct backend *be) {
    if (be) be->ops->destroy(be);
}

int backend_check_device(const char *device) {
    if (!strcmp(device, "cpu")) return EXIT_OK;
    if (!strcmp(device, "cuda"))
        return error_raise(EXIT_UNAVAILABLE,
                           "device 'cuda' was asked for, but this binary was built without it; "
                           "set device = cpu or build with CUDA");
    return error_raise(EXIT_USAGE, "device '%s' is unknown; allowed are cpu and cuda", device);
}
