/* Tokenizer: the rules around SentencePiece under which LLaVA's models were trained. Special pieces
 * are cut out of the text first; each chunk between them is encoded by itself, dummy prefix and
 * all. libsentencepiece alone would spell `</s>` out as text. */
#include <stdlib.h>
#include <string.h>

#include "sentencepiece_impl.h"
#include "tokenizer_impl.h"

#define MODEL_BYTES_MAX ((size_t)64 << 20)
#define PIECES_MAX 1000000
/* Looking for a special piece costs at most so many comparisons per byte of text. Those of published
 * models have less than 40 bytes. */
#define SPECIAL_BYTES_MAX 128

struct special {
    const char *text;
    size_t bytes;
    int32_t id;
};

struct tokenizer {
    struct sp_model *model;
    int64_t n_pieces;
    struct special
        *special; /* in the order of their bytes: those that begin alike are neighbours */
    int n_special, special_capacity;
    int first_special[257]; /* [b], [b+1]: the range of those whose first byte is b */
    char sha256[65];
};

static int check_type(const char *type) {
    static const char *const legal[] = {"Llama2Tokenizer", "GPTSentencePieceTokenizer",
                                        "SentencePieceTokenizer"};
    for (size_t i = 0; i < sizeof legal / sizeof legal[0]; i++)
        if (strcmp(type, legal[i]) == 0) return 0;
    return error_raise(EXIT_USAGE,
                       "tokenizer_type = %s is not among those of this version: Llama2Tokenizer, "
                       "GPTSentencePieceTokenizer, SentencePieceTokenizer",
                       type);
}

static int by_bytes(const void *a, const void *b) {
    const struct special *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->bytes < y->bytes ? x->bytes : y->bytes);
    if (order != 0) return order;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static int collect_special(const char *path, struct tokenizer *t) {
    for (int64_t id = 0; id < t->n_pieces; id++) {
        bool cut_out;
        size_t bytes;
        const char *text = sp_piece(t->model, (int)id, &bytes, &cut_out);
        if (!cut_out || bytes == 0) continue;
        if (bytes > SPECIAL_BYTES_MAX)
            return error_raise(EXIT_BAD_DATA,
                               "%s: the special piece %lld has %zu bytes, allowed are %d", path,
                               (long long)id, bytes, SPECIAL_BYTES_MAX);
        if (t->n_special == t->special_capacity) {
            t->special_capacity = 2 * t->special_capacity + 16;
            t->special = xrealloc(t->special, (size_t)t->special_capacity * sizeof *t->special);
        }
        t->special[t->n_special++] = (struct special){text, bytes, (int32_t)id};
    }
    if (t->n_special > 0) qsort(t->special, (size_t)t->n_special, sizeof *t->special, by_bytes);
    for (int b = 0, i = 0; b <= 256; b++) {
        while (i < t->n_special && (unsigned char)t->special[i].text[0] < b) i++;
        t->first_special[b] = i;
    }
    return 0;
}

static size_t read_varint(const char *data, size_t bytes, size_t *at) {
    size_t v = 0;
    for (int shift = 0; *at < bytes && shift < 64; shift += 7) {
        unsigned char c = (unsigned char)data[(*at)++];
        v |= (size_t)(c & 0x7f) << shift;
        if (c < 0x80) return v;
    }
    *at = bytes; /* no number: the library will say so */
    return 0;
}

/* Pieces of a serialised model (protobuf: field 1), counted before the library makes an object of each.
 * Whatever is malformed ends the count; the library judges the file. */
static int64_t count_pieces(const char *data, size_t bytes) {
    int64_t n = 0;
    for (size_t at = 0; at < bytes;) {
        size_t tag = read_varint(data, bytes, &at), length = 0;
        if (tag % 8 == 0)
            read_varint(data, bytes, &at);
        else if (tag % 8 == 1 || tag % 8 == 5)
            length = tag % 8 == 1 ? 8 : 4;
        else if (tag % 8 == 2)
            length = read_varint(data, bytes, &at);
        else
            return n;
        if (length > bytes - at) return n;
        at += length;
        n += tag == (1 << 3 | 2);
    }
    return n;
}

static int load_model(const char *path, const char *data, size_t bytes, struct tokenizer *t) {
    char message[256];
    int64_t n_pieces = count_pieces(data, bytes);
    if (n_pieces > PIECES_MAX)
        return error_raise(EXIT_BAD_DATA, "%s has %lld pieces, allowed are 1..%d", path,
                           (long long)n_pieces, PIECES_MAX);
    if (sp_create(data, bytes, &t->model, message, sizeof message) != 0)
        return error_raise(EXIT_BAD_DATA,
                           "%s is no SentencePiece model (%s); set tokenizer_model to one", path,
                           message);
    t->n_pieces = sp_pieces(t->model);
    if (t->n_pieces < 1 || t->n_pieces > PIECES_MAX)
        return error_raise(EXIT_BAD_DATA, "%s has %lld pieces, allowed are 1..%d", path,
                           (long long)t->n_pieces, PIECES_MAX);
    if (sp_bos(t->model) < 0 || sp_eos(t->model) < 0)
        return error_raise(EXIT_BAD_DATA,
                           "%s has no begin or no end piece (<s>, </s>); train it with both", path);
    return collect_special(path, t);
}

static int read_model(const char *path, char **data, size_t *bytes, char hex[65]) {
    if (path == NULL)
        return error_raise(EXIT_USAGE, "tokenizer_model is missing in section [data]");
    int rc = file_read(path, MODEL_BYTES_MAX, data, bytes);
    if (rc != 0) return error_note(rc, "while opening tokenizer_model");
    if (lfs_pointer(*data, *bytes)) {
        free(*data);
        *data = NULL;
        return error_raise(EXIT_BAD_DATA, "tokenizer_model %s " LFS_POINTER, path);
    }
    struct sha256 hash;
    sha256_begin(&hash);
    sha256_add(&hash, *data, *bytes);
    sha256_end(&hash, hex);
    return 0;
}

int tokenizer_file_sha256(const char *path, char hex[65]) {
    char *data = NULL;
    size_t bytes = 0;
    TRY(read_model(path, &data, &bytes, hex));
    free(data);
    return 0;
}

int tokenizer_open(const char *type, const char *path, struct tokenizer **out) {
    if (type == NULL) return error_raise(EXIT_USAGE, "tokenizer_type is missing in section [data]");
    TRY(check_type(type));
    struct tokenizer *t = xcalloc(1, sizeof *t);
    char *data = NULL;
    size_t bytes = 0;
    int rc = read_model(path, &data, &bytes, t->sha256);
    if (rc == 0) rc = load_model(path, data, bytes, t);
    free(data);
    if (rc != 0) {
        tokenizer_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

void tokenizer_close(struct tokenizer *t) {
    if (t == NULL) return;
    if (t->model != NULL) sp_destroy(t->model);
    free(t->special);
    free(t);
}

int64_t tokenizer_vocab_size(const struct tokenizer *t) {
    return t->n_pieces;
}

int32_t tokenizer_bos(const struct tokenizer *t) {
    return sp_bos(t->model);
}

int32_t tokenizer_eos(const struct tokenizer *t) {
    return sp_eos(t->model);
}

int32_t tokenizer_unk(const struct tokenizer *t) {
    return sp_unk(t->model);
}

const char *tokenizer_piece(const struct tokenizer *t, int32_t id) {
    size_t bytes;
    bool cut_out;
    return sp_piece(t->model, id, &bytes, &cut_out);
}

int32_t tokenizer_piece_id(const struct tokenizer *t, const char *piece) {
    size_t n = strlen(piece), bytes;
    for (int64_t id = 0; id < t->n_pieces; id++) {
        bool cut_out;
        const char *text = sp_piece(t->model, (int)id, &bytes, &cut_out);
        if (bytes == n && memcmp(text, piece, n) == 0) return (int32_t)id;
    }
    return -1;
}

const char *tokenizer_sha256(const struct tokenizer *t) {
    return t->sha256;
}

void tokenizer_template_sha256(const struct tokenizer *t, enum data_template tpl, char hex[65]) {
    char text[160];
    int n = snprintf(text, sizeof text, "%s template %d bos %d eos %d", t->sha256, (int)tpl,
                     (int)tokenizer_bos(t), (int)tokenizer_eos(t));
    struct sha256 hash;
    sha256_begin(&hash);
    sha256_add(&hash, text, (size_t)n);
    sha256_end(&hash, hex);
}

/* ---- encoding ------------------------------------------------------------------------------ */

/* First of special[lo, hi), which all begin with the same k bytes, whose byte k is at least c. */
static int lower_bound(const struct tokenizer *t, int lo, int hi, size_t k, int c) {
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if ((unsigned char)t->special[mid].text[k] < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The longest special piece that stands at text[0]; NULL if none does. */
static const struct special *special_at(const struct tokenizer *t, const char *text, size_t bytes) {
    const struct special *best = NULL;
    int c = (unsigned char)text[0], lo = t->first_special[c], hi = t->first_special[c + 1];
    for (size_t k = 1; lo < hi; k++) {
        /* special[lo, hi) are those that begin with text[0, k); the shortest come first */
        if (t->special[lo].bytes == k) best = &t->special[lo];
        while (lo < hi && t->special[lo].bytes == k) lo++;
        if (k == bytes) break;
        c = (unsigned char)text[k];
        lo = lower_bound(t, lo, hi, k, c);
        hi = lower_bound(t, lo, hi, k, c + 1);
    }
    return best;
}

struct chunk {
    token_emit emit;
    void *arg;
    size_t begin;
};

static void emit_piece(void *arg, int id, size_t begin) {
    struct chunk *c = arg;
    c->emit(c->arg, id, c->begin + begin);
}

static int encode_chunk(const struct tokenizer *t, const char *text, size_t begin, size_t end,
                        token_emit emit, void *arg) {
    if (begin == end) return 0;
    struct chunk c = {emit, arg, begin};
    if (sp_encode(t->model, text + begin, end - begin, emit_piece, &c) != 0)
        return error_raise(EXIT_INTERNAL, "libsentencepiece failed on a text of %zu bytes",
                           end - begin);
    return 0;
}

int tokenizer_walk(const struct tokenizer *t, const char *text, size_t bytes, bool images,
                   token_emit emit, void *arg) {
    size_t begin = 0, at = 0;
    while (at < bytes) {
        const struct special *s = NULL;
        bool marker = images && bytes - at >= IMAGE_TEXT_BYTES &&
                      memcmp(text + at, IMAGE_TEXT, IMAGE_TEXT_BYTES) == 0;
        if (!marker) s = special_at(t, text + at, bytes - at);
        if (!marker && s == NULL) {
            at++;
            continue;
        }
        TRY(encode_chunk(t, text, begin, at, emit, arg));
        emit(arg, marker ? DATA_IMAGE_MARKER : s->id, at);
        at += marker ? IMAGE_TEXT_BYTES : s->bytes;
        begin = at;
    }
    return encode_chunk(t, text, begin, bytes, emit, arg);
}

static void list_push(void *arg, int32_t id, size_t begin) {
    struct id_list *list = arg;
    (void)begin;
    if (list->n == list->capacity) {
        list->capacity = list->capacity == 0 ? 256 : 2 * list->capacity;
        list->ids = xrealloc(list->ids, (size_t)list->capacity * sizeof *list->ids);
    }
    list->ids[list->n++] = id;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool bos,
                     bool images, struct id_list *out) {
    if (bos) list_push(out, tokenizer_bos(t), 0);
    return tokenizer_walk(t, text, bytes, images, list_push, out);
}

/* ---- decoding ------------------------------------------------------------------------------ */

struct decoded {
    char *text;
    size_t bytes;
};

static void keep_text(void *arg, const char *text, size_t bytes) {
    struct decoded *d = arg;
    d->text = xmalloc(bytes + 1);
    memcpy(d->text, text, bytes);
    d->text[bytes] = '\0';
    d->bytes = bytes;
}

char *tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t n, size_t *bytes) {
    int *kept = xmalloc((size_t)(n + 1) * sizeof *kept);
    size_t n_kept = 0;
    struct decoded d = {0};
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] >= t->n_pieces) {
            error_raise(EXIT_BAD_DATA, "token id %d is beyond the tokenizer's %lld pieces",
                        (int)ids[i], (long long)t->n_pieces);
            free(kept);
            return NULL;
        }
        if (ids[i] >= 0) kept[n_kept++] = ids[i];
    }
    if (sp_decode(t->model, kept, n_kept, keep_text, &d) != 0)
        error_raise(EXIT_INTERNAL, "libsentencepiece failed to decode %zu ids", n_kept);
    free(kept);
    if (bytes != NULL) *bytes = d.bytes;
    return d.text;
}
