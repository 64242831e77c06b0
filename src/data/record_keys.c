/* Members of a record that strata does not read. One that carries content (pictures, turns, a system
 * text) is refused by name: training without it would be another training than the one that was meant.
 * One that does not (a score, a source) is counted and listed at each start. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "data.h"
#include "json.h"

/* More text than this is content, whatever the key is called: names, sources and dates are shorter. */
#define HARMLESS_TEXT_BYTES 256
/* The tree of a record takes up to 240 bytes per value: 16 MiB. A record of TURNS_MAX turns has 20,000. */
#define RECORD_VALUES_MAX 65536
/* Room for the text that a record may have (RECORD_TEXT_BYTES_MAX) with every character escaped. */
#define RECORD_BYTES_MAX ((size_t)8 << 20)

static const char *const known[][6] = {
    [RECORD_WHOLE] = {"id", "image", "conversations"},
    [RECORD_TURN] = {"from", "value"},
    [RECORD_QUESTION] = {"question_id", "prompt", "text", "image"},
};

/* Keys under which other programs keep what they train on or ask. */
static const char *const content[] = {
    "images",      "img",           "imgs",           "image_path",  "image_paths",  "image_file",
    "image_files", "image_url",     "image_urls",     "image_list",  "image_data",   "image_base64",
    "picture",     "pictures",      "photo",          "photos",      "video",        "videos",
    "audio",       "audios",        "speech",         "sound",       "media",        "file",
    "files",       "frames",        "document",       "documents",   "point_cloud",  "system",
    "system_text", "system_prompt", "system_message", "instruction", "instructions", "prompt",
    "prompts",     "query",         "conversation",   "messages",    "message",      "dialog",
    "dialogue",    "dialogs",       "chat",           "turns",       "history",      "text",
    "texts",       "question",      "questions",      "input",       "inputs",       "content",
    "contents",    "value",         "tools",          "functions",   "chosen",       "rejected",
};
/* The same in a list to train on; beside a question they are the truth that an answer is compared with. */
static const char *const answers[] = {
    "answer",   "answers",    "response",  "responses", "output",  "outputs", "caption",
    "captions", "completion", "rationale", "reasoning", "thought", "target",
};
/* Beside a turn: what says whether it is trained on. */
static const char *const masks[] = {"weight", "loss", "loss_mask", "train", "mask", "labels"};

static const char *const extension[] = {
    ".jpg", ".jpeg", ".png", ".webp", ".gif",  ".bmp", ".tif",  ".tiff",
    ".mp4", ".avi",  ".mov", ".mkv",  ".webm", ".mp3", ".wav",  ".flac",
    ".ogg", ".npy",  ".npz", ".pt",   ".pdf",  ".txt", ".json",
};

static bool listed(const char *const *list, size_t n, const char *key) {
    for (size_t i = 0; i < n; i++)
        if (list[i] != NULL && strcasecmp(list[i], key) == 0) return true;
    return false;
}
#define LISTED(list, key) listed(list, sizeof list / sizeof *list, key)

static bool is_known(enum record_part part, const char *key) {
    for (size_t i = 0; i < sizeof known[part] / sizeof *known[part]; i++)
        if (known[part][i] != NULL && strcmp(known[part][i], key) == 0) return true;
    return false;
}

/* ---- what a value carries ---------------------------------------------------------------------- */

static bool is_path(const char *text, size_t bytes) {
    static const char *const beginning[] = {"/", "./", "../", "~/", "file:", "data:"};
    for (size_t i = 0; i < sizeof beginning / sizeof *beginning; i++)
        if (strncmp(text, beginning[i], strlen(beginning[i])) == 0 && bytes > 1) return true;
    for (size_t i = 0; i < sizeof extension / sizeof *extension; i++) {
        size_t n = strlen(extension[i]);
        if (bytes > n && strcasecmp(text + bytes - n, extension[i]) == 0) return true;
    }
    return false;
}

static bool is_turn(const struct json *v) {
    static const char *const part[] = {"from", "role", "value", "content", "text"};
    if (json_kind(v) != JSON_OBJECT) return false;
    for (size_t i = 0; i < sizeof part / sizeof *part; i++)
        if (json_get(v, part[i]) != NULL) return true;
    return false;
}

/* What content the value holds, or NULL; text counts the bytes of its texts so far. */
static const char *content_of(const struct json *v, size_t *text) {
    const char *what = NULL, *key, *path;
    size_t bytes = 0;
    void *member = NULL;
    switch (json_kind(v)) {
    case JSON_STRING:
        path = json_string(v, &bytes);
        if (is_path(path, bytes)) return "holds a path";
        *text += bytes;
        return *text > HARMLESS_TEXT_BYTES ? "holds a long text" : NULL;
    case JSON_ARRAY:
        for (size_t i = 0; i < json_size(v) && what == NULL; i++)
            what =
                is_turn(json_at(v, i)) ? "holds a list of turns" : content_of(json_at(v, i), text);
        return what;
    case JSON_OBJECT:
        while (what == NULL && (member = json_member(v, member, &key, &v)) != NULL)
            what = content_of(v, text);
        return what;
    default:
        return NULL;
    }
}

static bool is_empty(const struct json *v) {
    enum json_kind kind = json_kind(v);
    if (kind == JSON_STRING) return json_string(v, NULL)[0] == '\0';
    if (kind == JSON_ARRAY || kind == JSON_OBJECT) return json_size(v) == 0;
    return kind == JSON_NULL || (kind == JSON_BOOL && !json_bool(v));
}

/* Why the member is refused, or NULL. */
static const char *refusal(enum record_part part, const char *key, const struct json *v) {
    size_t text = 0;
    if (is_empty(v)) return NULL;
    if (LISTED(known[part], key)) return "differs in case from one that is read";
    if (LISTED(content, key)) return "carries content";
    if (part == RECORD_TURN && (strcasecmp(key, "image") == 0 || strcasecmp(key, "role") == 0))
        return "carries content";
    if (part != RECORD_QUESTION && LISTED(answers, key)) return "carries content";
    if (part == RECORD_TURN && LISTED(masks, key)) return "says whether the turn is trained on";
    return content_of(v, &text);
}

/* ---- all members ------------------------------------------------------------------------------- */

static void count_key(struct record_keys *met, const char *key) {
    for (int i = 0; i < met->n; i++)
        if (strcmp(met->key[i].name, key) == 0) {
            met->key[i].objects++;
            return;
        }
    if (met->n == RECORD_KEYS_KEPT || strlen(key) >= sizeof met->key[0].name) {
        met->others++;
        return;
    }
    snprintf(met->key[met->n].name, sizeof met->key[0].name, "%s", key);
    met->key[met->n++].objects = 1;
}

static bool refuse(enum record_part part, const char *key, const char *reason,
                   char why[RECORD_WHY_BYTES]) {
    static const char *const of[] = {[RECORD_WHOLE] = "id, image and conversations of a record",
                                     [RECORD_TURN] = "from and value of a turn",
                                     [RECORD_QUESTION] =
                                         "question_id, prompt or text, and image of a question"};
    char name[64];
    size_t n = 0;
    for (; key[n] != '\0' && n + 1 < sizeof name; n++)
        name[n] = (unsigned char)key[n] < 0x20 ? '?' : key[n];
    name[n] = '\0';
    snprintf(why, RECORD_WHY_BYTES,
             "the key \"%s\" %s; strata reads %s: move what it holds there, or remove the key",
             name, reason, of[part]);
    return false;
}

bool record_keys_check(struct record_keys *met, const struct json *object, enum record_part part,
                       char why[RECORD_WHY_BYTES]) {
    const char *key;
    const struct json *v;
    void *member = NULL;
    while ((member = json_member(object, member, &key, &v)) != NULL) {
        if (is_known(part, key)) continue;
        const char *reason = refusal(part, key, v);
        if (reason != NULL) return refuse(part, key, reason, why);
        count_key(met, key);
    }
    return true;
}

char *record_keys_text(const struct record_keys *met) {
    if (met->n == 0 && met->others == 0) return NULL;
    char *text = xstrdup("");
    for (int i = 0; i < met->n; i++) {
        char *longer = xasprintf("%s%s%s (%lld)", text, i > 0 ? ", " : "", met->key[i].name,
                                 (long long)met->key[i].objects);
        free(text);
        text = longer;
    }
    if (met->others > 0) {
        char *longer = xasprintf("%s%sand others (%lld)", text, met->n > 0 ? ", " : "",
                                 (long long)met->others);
        free(text);
        text = longer;
    }
    return text;
}

/* ---- one element of a list ----------------------------------------------------------------------- */

/* Values of a JSON text, as far as they are separated by structure: no fewer than a reader makes. */
static int64_t count_values(const char *text, size_t bytes) {
    int64_t n = 1;
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string)
            n += c == ',' || c == '[' || c == '{';
    }
    return n;
}

int record_parse(const char *name, const char *text, size_t bytes, struct json **root) {
    if (bytes > RECORD_BYTES_MAX)
        return error_raise(EXIT_BAD_DATA, "%s: it has %zu bytes, allowed are %zu", name, bytes,
                           RECORD_BYTES_MAX);
    int64_t n = count_values(text, bytes);
    if (n > RECORD_VALUES_MAX)
        return error_raise(EXIT_BAD_DATA, "%s: it has %lld JSON values, allowed are %d", name,
                           (long long)n, RECORD_VALUES_MAX);
    return json_read_text(name, text, bytes, root);
}
