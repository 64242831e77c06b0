/* strata plot: the loss curve of a run, as text and as SVG. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plot_impl.h"

#define TABLE_MAX ((size_t)1 << 30)
#define TEXT_WIDTH 72
#define TEXT_HEIGHT 20
#define FIELD_MAX 64

/* ---- the tables of the run ----------------------------------------------------------------------- */
/* Field `index` of a line without its line end. */
static bool read_field(const char *line, size_t length, int index, char out[FIELD_MAX]) {
    const char *end = line + length;
    for (; index > 0; index--) {
        line = memchr(line, ',', (size_t)(end - line));
        if (line == NULL) return false;
        line++;
    }
    const char *comma = memchr(line, ',', (size_t)(end - line));
    size_t n = (size_t)((comma != NULL ? comma : end) - line);
    if (n >= FIELD_MAX) return false;
    memcpy(out, line, n);
    out[n] = 0;
    return true;
}

static void curve_add(struct curve *c, double x, double y) {
    c->x = xrealloc(c->x, (size_t)(c->n + 1) * sizeof *c->x);
    c->y = xrealloc(c->y, (size_t)(c->n + 1) * sizeof *c->y);
    c->x[c->n] = x;
    c->y[c->n++] = y;
}

/* The third column over the first. A loss that is not finite leaves a gap. */
static int read_rows(const char *path, const char *text, struct curve *c) {
    static const char header[] = "iteration,consumed_samples,lm_loss,";
    if (strncmp(text, header, sizeof header - 1) != 0)
        return error_raise(EXIT_BAD_DATA, "%s does not begin with \"%s\"", path, header);
    const char *line = strchr(text, '\n');
    for (int64_t number = 2; line != NULL && line[1] != 0; number++) {
        char x[FIELD_MAX], y[FIELD_MAX];
        int64_t step = 0;
        double loss = 0;
        size_t length = strcspn(++line, "\n");
        bool good = read_field(line, length, 0, x) && read_field(line, length, 2, y) &&
                    parse_int64(x, &step);
        if (!good)
            return error_raise(EXIT_BAD_DATA, "%s:%lld is no row of figures", path,
                               (long long)number);
        if (parse_real(y, &loss)) curve_add(c, (double)step, loss);
        line = line[length] != 0 ? line + length : NULL;
    }
    return 0;
}

static int read_table(const char *dir, const char *name, bool needed, struct curve *c) {
    char *path = xasprintf("%s/%s", dir, name), *text = NULL;
    size_t bytes = 0;
    int rc = 0;
    if (needed || access(path, F_OK) == 0) {
        rc = file_read(path, TABLE_MAX, &text, &bytes);
        if (rc == 0) rc = read_rows(path, text, c);
    }
    if (rc == 0 && needed && c->n == 0)
        rc = error_raise(EXIT_BAD_DATA, "%s holds no step yet", path);
    free(text);
    free(path);
    return rc;
}

/* ---- ranges ------------------------------------------------------------------------------------------ */
static void range_add(const struct curve *c, struct plot *p) {
    for (int64_t i = 0; i < c->n; i++) {
        p->x_low = fmin(p->x_low, c->x[i]);
        p->x_high = fmax(p->x_high, c->x[i]);
        p->y_low = fmin(p->y_low, c->y[i]);
        p->y_high = fmax(p->y_high, c->y[i]);
    }
}

double plot_step(double low, double high, int most) {
    double step = pow(10, floor(log10((high - low) / most)));
    static const double factor[] = {1, 2, 5, 10};
    for (int i = 0; i < 4; i++)
        if ((high - low) / (step * factor[i]) <= most) return step * factor[i];
    return step * 10;
}

static void find_ranges(struct plot *p) {
    p->x_low = p->y_low = INFINITY;
    p->x_high = p->y_high = -INFINITY;
    range_add(&p->loss, p);
    range_add(&p->valid, p);
    if (p->x_high <= p->x_low) p->x_high = p->x_low + 1;
    if (p->y_high <= p->y_low) p->y_high = p->y_low + fmax(1e-6, fabs(p->y_low) * 1e-3);
    double step = plot_step(p->y_low, p->y_high, 8);
    p->y_low = floor(p->y_low / step) * step;
    p->y_high = ceil(p->y_high / step) * step;
}

/* ---- text -------------------------------------------------------------------------------------------- */
static void dots(const struct plot *p, const struct curve *c, char mark,
                 char cell[TEXT_HEIGHT][TEXT_WIDTH]) {
    for (int64_t i = 0; i < c->n; i++) {
        double x = (c->x[i] - p->x_low) / (p->x_high - p->x_low);
        double y = (c->y[i] - p->y_low) / (p->y_high - p->y_low);
        cell[TEXT_HEIGHT - 1 - (int)(y * (TEXT_HEIGHT - 1) + 0.5)]
            [(int)(x * (TEXT_WIDTH - 1) + 0.5)] = mark;
    }
}

void plot_text(const struct plot *p, FILE *to) {
    char cell[TEXT_HEIGHT][TEXT_WIDTH];
    memset(cell, ' ', sizeof cell);
    dots(p, &p->loss, '.', cell);
    dots(p, &p->valid, 'o', cell);
    fprintf(to, "%s\n", p->title);
    for (int r = 0; r < TEXT_HEIGHT; r++) {
        double y = p->y_high - (p->y_high - p->y_low) * r / (TEXT_HEIGHT - 1);
        int n = TEXT_WIDTH;
        while (n > 0 && cell[r][n - 1] == ' ') n--;
        if (r % 4 == 0 || r == TEXT_HEIGHT - 1)
            fprintf(to, "%9.4g |%.*s\n", y, n, cell[r]);
        else
            fprintf(to, "%9s |%.*s\n", "", n, cell[r]);
    }
    fprintf(to, "%9s +", "");
    for (int i = 0; i < TEXT_WIDTH; i++) fputc('-', to);
    fprintf(to, "\n%9s  %-*.0f%*.0f\n", "step", TEXT_WIDTH / 2, p->x_low, TEXT_WIDTH / 2,
            p->x_high);
    fprintf(to, "           . loss, last %.4f", p->loss.y[p->loss.n - 1]);
    if (p->valid.n > 0) fprintf(to, "    o validation loss, last %.4f", p->valid.y[p->valid.n - 1]);
    fputc('\n', to);
}

/* ---- the command ------------------------------------------------------------------------------------- */
static int draw(const char *dir, const char *svg) {
    struct plot p = {.title = dir};
    int rc = read_table(dir, "metrics.csv", true, &p.loss);
    if (rc == 0) rc = read_table(dir, "validation.csv", false, &p.valid);
    if (rc == 0) {
        find_ranges(&p);
        plot_text(&p, stdout);
        if (svg != NULL) rc = plot_svg(&p, svg);
    }
    free(p.loss.x);
    free(p.loss.y);
    free(p.valid.x);
    free(p.valid.y);
    return rc;
}

int cli_plot(int argc, char **argv) {
    if (argc == 1 && strncmp(argv[0], "--", 2) != 0) return draw(argv[0], NULL);
    if (argc == 3 && strcmp(argv[1], "--svg") == 0) return draw(argv[0], argv[2]);
    return error_raise(EXIT_USAGE, "strata plot takes a run directory: RUN_DIR [--svg FILE]");
}
