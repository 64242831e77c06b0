/* strata check: a job's errors, layout, memory and FLOPs, without MPI, device or training. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check_impl.h"

#define RANKS_MAX 131072 /* a rank's plan has half a KB, in JSON several */

/* ---- the command line -------------------------------------------------------------------------- */
struct options {
    bool json, generate;
    int64_t ranks, ranks_per_node; /* 0: not given */
    int argc;                      /* what is left: the job file and its overrides */
    char **argv;
};

static int read_ranks(const char *name, const char *text, int64_t *ranks) {
    if (text != NULL && parse_int64(text, ranks) && *ranks >= 1 && *ranks <= RANKS_MAX) return 0;
    return error_raise(EXIT_USAGE, "strata check: %s takes a whole number from 1 to %d, not \"%s\"",
                       name, RANKS_MAX, text == NULL ? "" : text);
}

static int read_options(int argc, char **argv, struct options *o) {
    o->argv = xcalloc((size_t)argc + 1, sizeof *o->argv);
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            o->json = true;
        } else if (strcmp(argv[i], "--generate") == 0) {
            o->generate = true;
        } else if (strcmp(argv[i], "--ranks") == 0) {
            TRY(read_ranks(argv[i], i + 1 < argc ? argv[i + 1] : NULL, &o->ranks));
            i++;
        } else if (strcmp(argv[i], "--ranks-per-node") == 0) {
            TRY(read_ranks(argv[i], i + 1 < argc ? argv[i + 1] : NULL, &o->ranks_per_node));
            i++;
        } else if (strncmp(argv[i], "--", 2) == 0) {
            return error_raise(EXIT_USAGE,
                               "strata check knows --ranks N, --ranks-per-node N, --generate and "
                               "--json, not \"%s\"",
                               argv[i]);
        } else {
            o->argv[o->argc++] = argv[i];
        }
    }
    return 0;
}

/* A number that a launcher left in the environment; -1: none. No MPI is started for it. */
static int64_t launcher_number(const char *const *names) {
    for (; *names != NULL; names++) {
        const char *text = getenv(*names);
        int64_t n;
        if (text != NULL && parse_int64(text, &n) && n >= 0) return n;
    }
    return -1;
}

static int64_t launched_ranks(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS", NULL};
    return launcher_number(names);
}

/* As the launcher of this program dealt them out; 0: not known. */
static int64_t launched_per_node(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE",
                                        NULL};
    int64_t n = launcher_number(names);
    return n > 0 ? n : 0;
}

static bool first_of_launched(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", NULL};
    return launcher_number(names) <= 0;
}

static int64_t choose_ranks(const struct options *o, const struct config *cfg) {
    const struct config_parallel *p = &cfg->parallel;
    if (o->ranks > 0) return o->ranks;
    if (launched_ranks() > 1) return launched_ranks();
    return p->tensor_model_parallel_size * p->pipeline_model_parallel_size;
}

/* ---- the plan ------------------------------------------------------------------------------------ */
/* The job file has to say the vocabulary as long as the tokenizer is not there. */
static bool has_json_alone(const char *model) {
    const char *slash = strrchr(model, '/');
    char *path =
        xasprintf("%.*stokenizer.json", slash != NULL ? (int)(slash - model) + 1 : 0, model);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

static int find_vocabulary(struct check_report *r) {
    struct config *c = r->cfg;
    const char *model = c->data.tokenizer_model;
    if (c->data.data_format == FORMAT_MOCK) return 0;
    if (access(model, F_OK) == 0) return train_resolve_vocabulary(c);
    if (c->language.vocab_size <= 0)
        return error_raise(EXIT_NO_INPUT,
                           "the size of the vocabulary is not known: there is no "
                           "tokenizer_model %s, and [language] vocab_size is not set",
                           model);
    check_warn(r, "there is no tokenizer_model %s yet; vocab_size = %lld is taken as it is%s",
               model, (long long)c->language.vocab_size,
               has_json_alone(model)
                   ? ". The tokenizer.json beside it is not what strata reads (SentencePiece): put "
                     "the tokenizer.model of the base model there"
                   : "");
    return 0;
}

/* An index that cannot be used is no error here: `train` builds it. */
static void find_data(struct check_report *r, enum data_part part, struct dataset **data) {
    struct data_settings s;
    if (!train_has_data(r->cfg, part)) return;
    train_data_settings(r->cfg, part, &s);
    if (s.format != DATA_MOCK && access(s.tokenizer_model, F_OK) != 0) return;
    int rc = dataset_open(&s, data);
    if (rc == 0) return;
    *data = NULL;
    if (rc != EXIT_NO_INPUT) check_warn(r, "the data set's index is not used: %s", error_text());
    error_clear();
}

static int plan_all(struct check_report *r) {
    const struct plan_layout *l = &r->layout;
    r->n_ranks = l->tp * l->pp * l->dp;
    r->rank = xcalloc((size_t)r->n_ranks, sizeof *r->rank);
    r->grid = grid_create_measuring(l->tp, l->pp, l->dp, l->tp_pp_dp, 0, 0, 0);
    return plan_ranks(&r->stack, l, r->largest, r->rank);
}

static void plan_cuts(struct check_report *r) {
    r->cut = xcalloc((size_t)r->layout.pp * STREAMS_MAX, sizeof *r->cut);
    for (int pp = 0; pp + 1 < r->layout.pp; pp++) {
        struct stream stream[STREAMS_MAX];
        int cut = r->stage[pp].end;
        int n = boundary_streams(&r->stack, cut, r->largest, 1, 0, r->layout.dtype, stream);
        for (int i = 0; i < n; i++) r->cut[r->n_cuts++] = (struct cut_plan){cut, pp, stream[i]};
    }
}

/* strata generate: one question of decoder_seq_length rows with an image, answer included. */
static int plan_generation(struct check_report *r) {
    int64_t rows = r->cfg->language.decoder_seq_length;
    TRY(train_infer_stack(r->cfg, &r->stack));
    struct microbatch sizes = {.samples = 1,
                               .images = 1,
                               .tiles = r->stack.shape.image_tiles,
                               .tokens = rows,
                               .newlines = r->stack.shape.image_newlines,
                               .max_segment = rows,
                               .targets = 1};
    r->largest = plan_microbatch_of(&r->stack, &sizes);
    r->split_auto = r->cfg->parallel.split_spec.n == 0;
    TRY(train_split(r->cfg, &r->stack, r->largest, &r->split));
    train_infer_layout(r->cfg, r->split, 1, rows, &r->layout);
    return 0;
}

/* Which ranks share a machine is known only once they run. */
static void plan_writers(struct check_report *r) {
    const struct plan_layout *l = &r->layout;
    int n = l->tp * l->pp * l->dp, *node = xcalloc((size_t)n, sizeof *node);
    for (int i = 0; i < n && r->ranks_per_node > 0; i++) node[i] = i / (int)r->ranks_per_node;
    r->writer = train_writers(r->cfg, n, node);
    r->layout.writer = r->writer;
    free(node);
}

static int plan_training(struct check_report *r) {
    find_data(r, DATA_TRAIN, &r->data);
    find_data(r, DATA_VALID, &r->valid);
    TRY(stack_build(r->cfg, &r->stack));
    r->largest = train_largest_microbatch(r->cfg, r->data, r->valid, &r->stack);
    r->split_auto = r->cfg->parallel.split_spec.n == 0;
    TRY(train_split(r->cfg, &r->stack, r->largest, &r->split));
    plan_layout_from_config(r->cfg, r->split, &r->layout);
    plan_writers(r);
    return 0;
}

/* As train would choose on this machine, where the job may be planned but not run. */
static void plan_threads(struct check_report *r) {
    const struct config *c = r->cfg;
    char notice[CPU_TEXT_MAX];
    struct cpu_limits limits;
    if (c->run.device != DEVICE_CPU) return;
    int here = r->ranks_per_node > 0 && r->ranks_per_node < r->n_ranks ? (int)r->ranks_per_node
                                                                       : r->n_ranks;
    cpus_read("", &limits);
    struct cpu_share share = cpus_share_alike(&limits, here);
    r->threads = cpus_threads(&share, (int)c->run.threads_per_rank, getenv("OMP_NUM_THREADS"),
                              r->threads_how, notice);
    if (notice[0] != '\0') check_warn(r, "%s", notice);
}

static int make_plan(struct check_report *r) {
    TRY(find_vocabulary(r));
    TRY(r->generate ? plan_generation(r) : plan_training(r));
    r->stage = xcalloc((size_t)r->layout.pp, sizeof *r->stage);
    TRY(plan_step(&r->stack, &r->layout, r->largest, r->stage, &r->step));
    plan_cuts(r);
    TRY(plan_all(r));
    plan_threads(r);
    return 0;
}

/* The rank that needs most speaks for all that need too much. */
static int check_limit(const struct check_report *r) {
    int most = 0;
    for (int i = 1; i < r->n_ranks; i++)
        if (rank_plan_total(&r->rank[i]) > rank_plan_total(&r->rank[most])) most = i;
    return train_check_memory(r->cfg, &r->rank[most], most);
}

static void report_free(struct check_report *r) {
    for (int i = 0; i < r->n_warnings; i++) free(r->warning[i]);
    free(r->warning);
    free(r->cut);
    free(r->rank);
    free(r->stage);
    free(r->split);
    free(r->writer);
    plan_microbatch_free(r->largest);
    stack_free(&r->stack);
    if (r->grid != NULL) grid_destroy(r->grid);
    if (r->data != NULL) dataset_close(r->data);
    if (r->valid != NULL) dataset_close(r->valid);
    config_free(r->cfg);
}

static int check_job(const struct options *o, struct check_report *r, bool *planned) {
    TRY(cli_load_job(o->argc, o->argv, "check", &r->cfg));
    int64_t ranks = choose_ranks(o, r->cfg);
    if (ranks > RANKS_MAX)
        return error_raise(EXIT_USAGE, "strata check plans for up to %d ranks, not %lld", RANKS_MAX,
                           (long long)ranks);
    TRY(config_check_world(r->cfg, ranks));
    r->generate = o->generate;
    r->ranks_per_node = o->ranks_per_node > 0                   ? o->ranks_per_node
                        : o->ranks == 0 && launched_ranks() > 1 ? launched_per_node()
                                                                : 0;
    TRY(make_plan(r));
    *planned = true;
    check_find_warnings(r);
    return check_limit(r);
}

static int print(const struct options *o, const struct check_report *r, bool planned) {
    if (o->json) {
        char *text = check_json_text(planned ? r : NULL);
        puts(text);
        free(text);
    } else if (planned) {
        check_print_text(r, stdout);
    }
    if (fflush(stdout) == 0 && !ferror(stdout)) return 0;
    return error_raise(EXIT_IO, "strata check: standard output cannot be written");
}

int cli_check(int argc, char **argv) {
    if (!first_of_launched()) return EXIT_OK; /* one of several ranks is enough to say it */
    struct options o = {0};
    struct check_report r = {0};
    bool planned = false;
    int rc = read_options(argc, argv, &o);
    if (rc == 0) rc = check_job(&o, &r, &planned);
    int printed = print(&o, &r, planned);
    report_free(&r);
    free(o.argv);
    return rc != 0 ? rc : printed;
}
