/* A loss curve as an SVG file: axes with round numbers, the loss, the validation loss, a legend. */
#include <math.h>
#include <stdlib.h>

#include "plot_impl.h"

#define WIDTH 760
#define HEIGHT 440
#define LEFT 70
#define RIGHT 20
#define TOP 44
#define BOTTOM 56
#define LOSS_COLOUR "#1f6fb4"
#define VALID_COLOUR "#c8501e"

static double place_x(const struct plot *p, double x) {
    return LEFT + (x - p->x_low) / (p->x_high - p->x_low) * (WIDTH - LEFT - RIGHT);
}

static double place_y(const struct plot *p, double y) {
    return HEIGHT - BOTTOM - (y - p->y_low) / (p->y_high - p->y_low) * (HEIGHT - TOP - BOTTOM);
}

static void put_text(FILE *to, double x, double y, const char *anchor, const char *more,
                     const char *text) {
    fprintf(to, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>", x, y, anchor, more);
    for (; *text != 0; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '<' || c == '>' || c == '&' || c < 0x20)
            fprintf(to, "&#%d;", c < 0x20 ? '?' : c);
        else
            fputc(c, to);
    }
    fprintf(to, "</text>\n");
}

static void put_axes(const struct plot *p, FILE *to) {
    char label[32];
    double step = plot_step(p->y_low, p->y_high, 8);
    fprintf(to, "<g stroke=\"#dddddd\">\n");
    int n = (int)floor((p->y_high - p->y_low) / step + 0.5);
    for (int i = 0; i <= n; i++) {
        double y = p->y_low + i * step;
        fprintf(to, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>\n", LEFT, place_y(p, y),
                WIDTH - RIGHT, place_y(p, y));
    }
    fprintf(to, "</g>\n");
    for (int i = 0; i <= n; i++) {
        double y = p->y_low + i * step;
        snprintf(label, sizeof label, "%g", round(y / step) * step);
        put_text(to, LEFT - 8, place_y(p, y) + 4, "end", "", label);
    }
    step = fmax(1, plot_step(p->x_low, p->x_high, 8));
    double first = ceil(p->x_low / step) * step;
    n = (int)floor((p->x_high - first) / step);
    for (int i = 0; i <= n; i++) {
        double x = first + i * step;
        fprintf(to, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"black\"/>\n",
                place_x(p, x), HEIGHT - BOTTOM, place_x(p, x), HEIGHT - BOTTOM + 5);
        snprintf(label, sizeof label, "%.0f", x);
        put_text(to, place_x(p, x), HEIGHT - BOTTOM + 20, "middle", "", label);
    }
    fprintf(to, "<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"black\"/>\n", LEFT, TOP,
            HEIGHT - BOTTOM, WIDTH - RIGHT);
    put_text(to, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 14, "middle", "", "step");
    put_text(to, 0, 0, "middle", " transform=\"translate(18 220) rotate(-90)\"", "loss per token");
}

static void put_line(const struct plot *p, const struct curve *c, const char *colour,
                     const char *width, FILE *to) {
    fprintf(to, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" points=\"", colour,
            width);
    for (int64_t i = 0; i < c->n; i++)
        fprintf(to, "%.1f,%.1f%s", place_x(p, c->x[i]), place_y(p, c->y[i]),
                i % 8 == 7 ? "\n" : " ");
    fprintf(to, "\"/>\n");
}

static void put_legend(FILE *to, int row, const char *colour, const char *text) {
    int y = TOP + 16 + 20 * row, x = WIDTH - RIGHT - 190;
    fprintf(to,
            "<line x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" stroke=\"%s\" stroke-width=\"2\"/>\n", x,
            y - 4, x + 24, y - 4, colour);
    put_text(to, x + 32, y, "start", "", text);
}

int plot_svg(const struct plot *p, const char *path) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);
    CHECK(to != NULL, "no memory for the drawing");
    fprintf(to,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"13\">\n"
            "<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT, WIDTH, HEIGHT);
    put_text(to, LEFT, 26, "start", " font-size=\"16\"", p->title);
    put_axes(p, to);
    put_line(p, &p->loss, LOSS_COLOUR, "1.2", to);
    put_legend(to, 0, LOSS_COLOUR, "training loss");
    if (p->valid.n > 0) {
        put_line(p, &p->valid, VALID_COLOUR, "2", to);
        for (int64_t i = 0; i < p->valid.n; i++)
            fprintf(to, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>\n",
                    place_x(p, p->valid.x[i]), place_y(p, p->valid.y[i]), VALID_COLOUR);
        put_legend(to, 1, VALID_COLOUR, "validation loss");
    }
    fprintf(to, "</svg>\n");
    fclose(to);
    int rc = file_write_atomic(path, text, bytes);
    free(text);
    return rc;
}
