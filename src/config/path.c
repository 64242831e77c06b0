/* Paths as a shell reads them. No shell stands between a job file and the program, and one that was
 * given a quoted argument has left it alone: a "~" or "$SCRATCH" that were taken literally would become
 * folders of that name beside the job file. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "config_impl.h"

struct path {
    char *text;
    size_t bytes;
};

static void add(struct path *p, const char *text, size_t n) {
    p->text = xrealloc(p->text, p->bytes + n + 1);
    memcpy(p->text + p->bytes, text, n);
    p->bytes += n;
    p->text[p->bytes] = '\0';
}

/* Appends the value of the variable whose name has n bytes. */
static const char *add_variable(struct path *p, const char *name, size_t n, char why[512]) {
    char *copy = xasprintf("%.*s", (int)n, name);
    const char *value = getenv(copy);
    if (value != NULL && *value != '\0')
        add(p, value, strlen(value));
    else
        snprintf(why, 512, "the environment variable %.100s is %s; set it, or write the path out",
                 copy, value == NULL ? "not set" : "empty");
    free(copy);
    return value != NULL && *value != '\0' ? NULL : why;
}

static size_t name_length(const char *text) {
    size_t n = 0;
    if (isdigit((unsigned char)*text)) return 0;
    while (isalnum((unsigned char)text[n]) || text[n] == '_') n++;
    return n;
}

/* *at is behind a dollar sign, and is moved behind what belongs to it. */
static const char *add_dollar(struct path *p, const char **at, char why[512]) {
    bool braces = **at == '{';
    const char *name = *at + braces;
    size_t n = name_length(name);
    if (**at == '$') {
        add(p, "$", 1);
        ++*at;
        return NULL;
    }
    if (n == 0 || (braces && name[n] != '}'))
        return "a $ begins $NAME or ${NAME}, an environment variable; a $ of the path itself is "
               "written $$";
    *at = name + n + braces;
    return add_variable(p, name, n, why);
}

const char *config_expand_path(const char *text, char **out, char why[512]) {
    struct path p = {0};
    const char *fault = NULL;
    add(&p, "", 0);
    if (text[0] == '~' && text[1] != '/' && text[1] != '\0')
        fault =
            "~NAME is not known here, only ~/; write the path out (a file of that name: ./~NAME)";
    else if (text[0] == '~')
        fault = add_variable(&p, "HOME", 4, why), text++;
    while (fault == NULL && *text != '\0') {
        size_t n = strcspn(text, "$");
        add(&p, text, n);
        text += n;
        if (*text == '$') text++, fault = add_dollar(&p, &text, why);
    }
    if (fault != NULL) free(p.text);
    *out = fault != NULL ? NULL : p.text;
    return fault;
}

char *config_escape_path(const char *path) {
    struct path p = {0};
    add(&p, "", 0);
    for (; *path != '\0'; path++) add(&p, "$$", *path == '$' ? 2 : 0), add(&p, path, *path != '$');
    return p.text;
}
