/* strata checkpoint reshard: the ranks of the new layout, one after the other, as the checkpoint
 * module wants them described. Everything is laid out by the code that trains, over the measuring
 * backend. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint_tools.h"
#include "run_impl.h"

struct ranks {
    struct config *cfg;
    struct stack stack;
    struct microbatch *largest;
    int64_t *split;
    struct plan_layout layout;
    struct backend *be;
    char *split_text;
    /* the rank described last */
    bool built;
    struct stage stage;
    struct grid *grid;
    struct optim *optim;
    struct arena arena;
};

static void forget_rank(struct ranks *r) {
    optim_destroy(r->optim);
    if (r->built) stage_free(&r->stage);
    if (r->grid != NULL) grid_destroy(r->grid);
    r->optim = NULL;
    r->built = false;
    r->grid = NULL;
}

static int describe_optimizer(struct ranks *r) {
    int *index = xcalloc((size_t)r->stage.params.n + 1, sizeof *index);
    for (int i = 0; i < r->stage.params.n; i++) index[i] = r->stack.first_param[r->stage.first] + i;
    int rc = optim_create(&r->layout.optim, &r->stage.params, index, r->stack.n_params, r->grid,
                          &r->optim);
    free(index);
    return rc != 0 ? rc : optim_layout(r->optim, r->be, &r->arena);
}

static int describe(void *arg, int tp, int pp, int dp, struct ckpt_state *st) {
    struct ranks *r = arg;
    const struct plan_layout *l = &r->layout;
    int first = 0;
    forget_rank(r);
    for (int i = 0; i < pp; i++) first += (int)r->split[i];
    r->grid = grid_create_measuring(l->tp, l->pp, l->dp, l->tp_pp_dp, tp, pp, dp);
    TRY(stage_build(&r->stack, first, first + (int)r->split[pp], l->tp, tp, REPEAT_NOTHING, 0,
                    &r->stage));
    r->built = true;
    arena_init_measuring(&r->arena, "resharding");
    stage_allocate(&r->stage, r->be, &r->arena);
    TRY(describe_optimizer(r));
    st->grid = r->grid;
    st->set = &r->stage.params;
    st->be = r->be;
    st->piece = optim_pieces(r->optim, &st->n_pieces);
    st->sharded_optimizer = l->optim.distributed;
    return 0;
}

static void release(void *arg) {
    forget_rank(arg);
}

/* config_load reads files, so the text becomes one for a moment. */
static int load_text(const char *text, int n, char **overrides, struct config **out) {
    const char *folder = getenv("TMPDIR");
    char *path = xasprintf("%s/strata-used-000000.ini", folder != NULL ? folder : P_tmpdir);
    memset(path + strlen(path) - 10, 'X', 6); /* for mkstemps */
    int fd = mkstemps(path, 4), rc = 0;
    if (fd < 0) rc = error_raise(EXIT_CANT_CREATE, "%s: no temporary file can be made", path);
    if (fd >= 0) close(fd);
    if (rc == 0) rc = file_write_atomic(path, text, strlen(text));
    if (rc == 0) rc = config_load(path, n, overrides, out);
    if (fd >= 0) unlink(path);
    free(path);
    return rc;
}

static int load_job(struct ranks *r, const struct train_reshard *q, const char *used_ini) {
    char *o[5] = {xasprintf("parallel:tensor_model_parallel_size=%lld", (long long)q->tp),
                  xasprintf("parallel:pipeline_model_parallel_size=%lld", (long long)q->pp),
                  xasprintf("parallel:split_spec=%s", q->split_spec ? q->split_spec : "auto"),
                  xasprintf("parallel:use_distributed_optimizer=%s", q->sharded ? "true" : "false"),
                  xasprintf("parallel:sequence_parallel=false")};
    int rc = load_text(used_ini, q->tp > 1 ? 4 : 5, o, &r->cfg);
    for (int i = 0; i < 5; i++) free(o[i]);
    if (rc == 0) rc = config_check_world(r->cfg, q->tp * q->pp * q->dp);
    return rc;
}

static int lay_out(struct ranks *r) {
    TRY(stack_build(r->cfg, &r->stack));
    r->largest = train_largest_microbatch(r->cfg, NULL, NULL, &r->stack);
    TRY(train_split(r->cfg, &r->stack, r->largest, &r->split));
    plan_layout_from_config(r->cfg, r->split, &r->layout);
    r->be = backend_create_measuring(r->layout.dtype);
    r->split_text = train_split_text(r->split, r->layout.pp);
    return 0;
}

static void free_ranks(struct ranks *r) {
    forget_rank(r);
    if (r->be != NULL) backend_destroy(r->be);
    plan_microbatch_free(r->largest);
    free(r->split);
    free(r->split_text);
    stack_free(&r->stack);
    config_free(r->cfg);
}

int train_reshard(const struct train_reshard *request, FILE *to) {
    struct ranks r = {0};
    char *used_ini = NULL, *dir = NULL;
    int rc = ckpt_used_ini(request->where, &used_ini, &dir);
    if (rc == 0) {
        rc = load_job(&r, request, used_ini);
        if (rc == 0) rc = lay_out(&r);
        if (rc != 0) error_note(rc, "while planning the new layout for the job file in %s", dir);
    }
    if (rc == 0) {
        struct ckpt_target target = {.tp = r.layout.tp,
                                     .pp = r.layout.pp,
                                     .dp = r.layout.dp,
                                     .split_spec = r.split_text,
                                     .describe = describe,
                                     .release = release,
                                     .arg = &r};
        rc = ckpt_reshard(dir, request->save, &target, to);
    }
    free_ranks(&r);
    free(used_ini);
    free(dir);
    return rc;
}
