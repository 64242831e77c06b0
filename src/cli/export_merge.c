/* Objects of an exported folder's JSON files: each begins as that of the source, where the model was
 * imported, so that no field is lost; what the job says is put over it, and named where it is
 * another value. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hf_impl.h"

#define SHOWN 60 /* bytes of a value in a message */

struct hf_merge hf_merge_begin(const struct json *source, const char *path, FILE *notes) {
    bool object = source != NULL && json_kind(source) == JSON_OBJECT;
    return (struct hf_merge){
        .o = object ? json_duplicate(source) : json_new_object(), .path = path, .notes = notes};
}

static void note(const struct hf_merge *m, const char *key, const struct json *was,
                 const struct json *now) {
    char *a = json_text(was, 0), *b = json_text(now, 0);
    fprintf(m->notes, "%s%s is %.*s, as trained; the source said %.*s\n", m->path, key, SHOWN, b,
            SHOWN, a);
    free(a);
    free(b);
}

void hf_put(struct hf_merge *m, const char *key, struct json *v) {
    const struct json *was = json_get(m->o, key);
    if (was != NULL && json_same(was, v)) { /* keeps the source's spelling */
        json_free(v);
        return;
    }
    if (was != NULL && m->notes != NULL) note(m, key, was, v);
    json_set(m->o, key, v);
}

void hf_put_quietly(struct hf_merge *m, const char *key, struct json *v) {
    json_set(m->o, key, v);
}

void hf_put_absent(struct hf_merge *m, const char *key, struct json *v) {
    if (json_get(m->o, key) == NULL)
        json_set(m->o, key, v);
    else
        json_free(v);
}

int hf_read_object(const char *folder, const char *name, struct json **out) {
    char *path = xasprintf("%s/%s", folder, name), *text = NULL;
    size_t bytes = 0;
    int rc = 0;
    *out = NULL;
    if (access(path, F_OK) == 0) {
        rc = file_read(path, HF_JSON_MAX, &text, &bytes);
        if (!rc) rc = json_read_text(path, text, bytes, out);
        if (!rc && json_kind(*out) != JSON_OBJECT)
            rc = error_raise(EXIT_BAD_DATA, "%s is no object", path);
    }
    free(text);
    free(path);
    return rc;
}
