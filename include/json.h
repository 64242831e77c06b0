/* json: the one door to jansson. Reading is strict (UTF-8, no duplicate keys, depth <= 64);
 * values are borrowed from their document. */
#ifndef STRATA_JSON_H
#define STRATA_JSON_H

#include "base.h"

/* jansson exports constructors of these three names; without another name for the linker ours would
 * be called from inside jansson. */
#define json_string strata_json_string
#define json_integer strata_json_integer
#define json_real strata_json_real

struct json; /* opaque value */

/* A document may take so many bytes of memory for each of its own, or so many in all; a denser one is
 * refused (EXIT_BAD_DATA) before it is parsed. Lists of records are read record by record instead. */
#define JSON_MEMORY_FACTOR 24
#define JSON_MEMORY_LEAST (16 << 20)

/* Root of a document read from a file; a syntax error names file, byte offset and 40 characters of
 * context (EXIT_BAD_DATA). An integer beyond 64 bits is read as a real. Free the root with json_free. */
int json_read_file(const char *path, size_t max_bytes, struct json **root);
int json_read_text(const char *name, const char *text, size_t bytes, struct json **root);
void json_free(struct json *root);

enum json_kind {
    JSON_NULL,
    JSON_BOOL,
    JSON_INTEGER,
    JSON_REAL,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
};
enum json_kind json_kind(const struct json *v);
size_t json_size(const struct json *v); /* elements of an array, members of an object */
const struct json *json_at(const struct json *array, size_t i);
const struct json *json_get(const struct json *object, const char *key); /* NULL if absent */
const char *json_string(const struct json *v, size_t *bytes);            /* NULL if no string */
int64_t json_integer(const struct json *v);
double json_real(const struct json *v); /* integers too */
bool json_bool(const struct json *v);
/* Equal values; 1 and 1.0 are one number, the order of members does not matter. */
bool json_same(const struct json *a, const struct json *b);
/* Iterate over the members of an object: start with iter = NULL; NULL at the end. */
void *json_member(const struct json *object, void *iter, const char **key, const struct json **v);

/* Building. Setters take ownership of the value given. Reals are written with 17 digits. */
struct json *json_new_object(void);
struct json *json_new_array(void);
struct json *json_new_integer(int64_t v);
struct json *json_new_real(double v);
struct json *json_new_string(const char *s);
struct json *json_new_text(const char *s, size_t bytes); /* may hold NUL bytes */
struct json *json_new_bool(bool v);
struct json *json_new_null(void);
struct json *json_duplicate(const struct json *v); /* of all that is below it; json_free it */
void json_set(struct json *object, const char *key, struct json *value);
void json_remove(struct json *object, const char *key); /* absent: nothing */
void json_append(struct json *array, struct json *value);
char *json_text(const struct json *root, int indent); /* key order kept; free() it */

#endif
