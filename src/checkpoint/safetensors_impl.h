/* safetensors, private: one file's header, the folder that holds it. */
#ifndef STRATA_SAFETENSORS_IMPL_H
#define STRATA_SAFETENSORS_IMPL_H

#include "json.h"
#include "safetensors.h"

#define ST_HEADER_MAX ((int64_t)100000000)
#define ST_INDEX_MAX ((size_t)100000000)
#define ST_INDEX_NAME "model.safetensors.index.json"
#define ST_SUFFIX ".safetensors"

struct safetensors_file {
    char *name; /* in the folder, or the whole path */
    int fd;
    int64_t bytes;
};
struct safetensors {
    char *path;
    struct safetensors_file *file;
    int n_files;
    struct safetensor *tensor; /* sorted by name */
    int64_t n, capacity;
};

/* One path component that ends in .safetensors and does not begin with a dot. */
bool safetensors_name_legal(const char *name);
/* Opens folder_fd/name, checks it, appends its tensors (unsorted). */
int safetensors_add_file(struct safetensors *s, int folder_fd, const char *name, bool follow_links);
struct safetensor *safetensors_add_tensor(struct safetensors *s, const char *name);
#define TF_WEIGHTS "tf_model.h5"
/* Appends the tensors of the file opened last, a tf_model.h5. */
int safetensors_list_tf(struct safetensors *s);

#endif
