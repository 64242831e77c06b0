/* checkpoint, private: a save in phases, so that they may follow each other on one thread or be
 * spread over steps. Numbers are the steps of doc/checkpoint.md. */
#ifndef STRATA_CKPT_SAVE_IMPL_H
#define STRATA_CKPT_SAVE_IMPL_H

#include "h5_impl.h"

/* The attributes of /provenance. */
#define PROVENANCE_MAX 8
struct provenance {
    struct ckpt_text text[PROVENANCE_MAX];
    int64_t n;
};
void provenance_collect(const struct group *world, struct provenance *p); /* collective over it */
void provenance_free(struct provenance *p);

struct save {
    const struct ckpt_settings *set;
    const struct ckpt_state *st;
    struct ckpt_state described; /* *st where it comes with the provenance of this save */
    struct provenance provenance;
    const struct group *world;
    struct ckpt_manifest *m; /* this writer's share; on rank 0 all in the end */
    struct shard_identity id;
    struct part_list part;
    char *tmp;
    const char *copy; /* host copy of all parts, one after the other; NULL: taken while writing */
};
/* 1, 2, collective: what goes where, the new folder. phase_end is due in any case. */
int phase_begin(struct save *s, const struct ckpt_settings *settings,
                const struct ckpt_state *state);
/* 3: the copy, into a buffer of ckpt_snapshot_bytes. */
void phase_copy(struct save *s, char *host, size_t host_bytes);
/* 4 to 8: this rank's shard. Does not communicate. */
int phase_write(struct save *s);
/* 9, collective: the vote on rc, the codes of phase_write; rank 0 then has the whole manifest. */
int phase_vote(struct save *s, int rc);
/* 10 to 13: rank 0, which does not communicate. */
int phase_commit(struct save *s);
/* Collective: agrees on rc, a code of phase_commit or one already agreed on, and returns it. Without
 * success the folder goes. */
int phase_end(struct save *s, int rc);
/* Collective: after a save into settings->save that failed with rc, whether settings->save_second is to
 * be tried; then the sentences of the failure were told. */
bool phase_try_second(const struct ckpt_settings *settings, const struct group *world, int rc);

#endif
