/* strata checkpoint ls: what lies in a folder of checkpoints, and which one resume would take. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "tools_impl.h"

enum entry_kind { ENTRY_CHECKPOINT, ENTRY_TEMPORARY, ENTRY_ASIDE, ENTRY_TRASH };
struct entry {
    enum entry_kind kind;
    const char *name;
    char *dir;
    int64_t step, bytes;
    time_t changed;
    struct ckpt_manifest *m; /* NULL: unreadable */
    const char *state;
    bool taken;
};

static int64_t folder_bytes(const char *dir) {
    struct name_list list;
    int64_t bytes = 0;
    if (folder_list(dir, &list) != 0) {
        error_clear();
        return 0;
    }
    for (int64_t i = 0; i < list.n; i++) {
        struct stat st;
        char *path = xasprintf("%s/%s", dir, list.name[i]);
        if (lstat(path, &st) == 0) bytes += st.st_size;
        free(path);
    }
    name_list_free(&list);
    return bytes;
}

/* The step of "iter_0000003.tmp-...", ".trash-iter_0000003" and ".aside-iter_0000003". */
static int64_t step_in(const char *name, enum entry_kind *kind) {
    char copy[CKPT_NAME_MAX + 1];
    snprintf(copy, sizeof copy, "%s", name);
    char *tmp = strstr(copy, ".tmp-");
    const char *rest = copy;
    bool trash = strncmp(copy, CKPT_TRASH, strlen(CKPT_TRASH)) == 0;
    bool aside = strncmp(copy, CKPT_ASIDE, strlen(CKPT_ASIDE)) == 0;
    if (trash) rest += strlen(CKPT_TRASH);
    if (aside) rest += strlen(CKPT_ASIDE);
    if (tmp) *tmp = 0;
    *kind = trash ? ENTRY_TRASH : aside ? ENTRY_ASIDE : tmp ? ENTRY_TEMPORARY : ENTRY_CHECKPOINT;
    return ckpt_folder_step(rest);
}

/* Everything but the data: manifest, list of files, sizes, coverage. */
static bool sound(struct entry *e) {
    if (!e->m) return false;
    return ckpt_check_files(e->dir, e->m) == 0 && manifest_check_coverage(e->m, e->dir) == 0 &&
           (e->kind == ENTRY_TEMPORARY || e->m->step == e->step);
}

static void add_note(char **notes, const struct entry *e) {
    char *longer = xasprintf("%s%s: %s\n", *notes ? *notes : "", e->name, error_text());
    free(*notes);
    *notes = longer;
}

/* As resume goes about it: refused ones are passed over, the first that verifies is taken. */
static void judge(struct entry *e, bool quick, bool *taken, char **notes) {
    error_clear();
    bool refused = ckpt_is_refused(e->dir), read = !quick && !*taken && !refused;
    if (ckpt_read_manifest(e->dir, &e->m) != 0 && e->kind == ENTRY_TEMPORARY) error_clear();
    bool fine = sound(e);
    if (fine && read) fine = ckpt_verify_folder(e->dir) == 0;
    if (e->kind == ENTRY_TRASH)
        e->state = "being deleted";
    else if (e->kind == ENTRY_ASIDE)
        e->state = "set aside";
    else if (e->kind == ENTRY_TEMPORARY)
        e->state = fine ? "temporary, complete" : "temporary";
    else
        e->state = refused ? "refused" : !fine ? "damaged" : read ? "verified" : "unverified";
    if (!fine && e->kind == ENTRY_CHECKPOINT && error_code() != 0 &&
        !ckpt_is_damage(error_code()) && error_code() != EXIT_RESUME)
        e->state = "unreadable";
    e->taken = fine && !refused && !*taken && e->kind < ENTRY_ASIDE;
    *taken = *taken || e->taken;
    if (!fine && e->kind == ENTRY_CHECKPOINT && error_count() > 0) add_note(notes, e);
    error_clear();
}

static void bytes_text(int64_t bytes, char *text, size_t size) {
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    int u = 0;
    for (; v >= 1024.0 && u < 4; u++) v /= 1024.0;
    snprintf(text, size, u ? "%.1f %s" : "%.0f %s", v, unit[u]);
}

static void age_text(time_t changed, char *text, size_t size) {
    int64_t s = (int64_t)(time(NULL) - changed);
    if (s < 120)
        snprintf(text, size, "%lld s", (long long)(s < 0 ? 0 : s));
    else if (s < 7200)
        snprintf(text, size, "%lld min", (long long)(s / 60));
    else if (s < 172800)
        snprintf(text, size, "%lld h", (long long)(s / 3600));
    else
        snprintf(text, size, "%lld d", (long long)(s / 86400));
}

static void print_entry(const struct entry *e, FILE *to) {
    char bytes[32], age[32], layout[48] = "?", split[28] = "?", when[24] = "?", shown[28];
    struct tm tm;
    bytes_text(e->bytes, bytes, sizeof bytes);
    age_text(e->changed, age, sizeof age);
    if (e->m) {
        snprintf(layout, sizeof layout, "TP%lld PP%lld DP%lld", (long long)e->m->tp,
                 (long long)e->m->pp, (long long)e->m->dp);
        text_printable(e->m->split_spec, shown, sizeof shown);
        snprintf(split, sizeof split, "%.20s%s", shown, strlen(e->m->split_spec) > 20 ? "..." : "");
    }
    if (gmtime_r(&e->changed, &tm)) strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (e->m && strncmp(e->m->created, "1970-01-01", 10) != 0)
        snprintf(when, sizeof when, "%.20s", e->m->created);
    fprintf(to, "%8lld  %-20s  %10s  %-15s %-23s  %-19s  %8s%s\n", (long long)e->step, when, bytes,
            layout, split, e->state, age, e->taken ? "  <- resume takes this" : "");
}

static int by_step(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->step != y->step) return x->step > y->step ? -1 : 1;
    return (int)x->kind - (int)y->kind;
}

static int64_t collect(const char *save, const struct name_list *list, struct entry *entry) {
    int64_t n = 0;
    for (int64_t i = 0; i < list->n; i++) {
        struct stat st;
        struct entry e = {.name = list->name[i]};
        e.step = step_in(e.name, &e.kind);
        e.dir = xasprintf("%s/%s", save, e.name);
        if (e.step < 0 || stat(e.dir, &st) != 0 || !S_ISDIR(st.st_mode)) {
            free(e.dir);
            continue;
        }
        e.changed = st.st_mtime;
        e.bytes = folder_bytes(e.dir);
        entry[n++] = e;
    }
    if (n > 0) qsort(entry, (size_t)n, sizeof *entry, by_step);
    return n;
}

int ckpt_ls(const char *save, bool quick, FILE *to) {
    struct name_list list;
    bool taken = false;
    char *notes = NULL;
    TRY(folder_list(save, &list));
    struct entry *entry = xcalloc((size_t)list.n + 1, sizeof *entry);
    int64_t n = collect(save, &list, entry);
    if (n > 0)
        fprintf(to, "%8s  %-20s  %10s  %-15s %-23s  %-19s  %8s\n", "step", "time", "size", "layout",
                "split_spec", "state", "age");
    for (int64_t i = 0; i < n; i++) {
        judge(&entry[i], quick, &taken, &notes);
        print_entry(&entry[i], to);
        manifest_free(entry[i].m);
        free(entry[i].dir);
    }
    if (n == 0) fprintf(to, "%s holds no checkpoint: a run would start anew\n", save);
    if (n > 0 && !taken) fprintf(to, "no checkpoint here can be used: a run would stop\n");
    if (notes) fputs(notes, to);
    free(notes);
    free(entry);
    name_list_free(&list);
    return ferror(to) ? error_raise(EXIT_IO, "the list cannot be written") : 0;
}
