/* checkpoint, private: a save in phases, so that they may follow each other on one thread or be
 * spread over steps. Numbers are the steps of doc/checkpoint.md. */
#ifndef STRATA_CKPT_SAVE_IMPL_H
#define STRATA_CKPT_SAVE_IMPL_H

#include "h5_impl.h"

/* The attributes of /provenance. */
#define PROVENANCE_MAX 12
struct provenance {
    struct ckpt_text text[PROVENANCE_MAX];
    int64_t n;
};
/* Collective over the world. */
void provenance_collect(const struct ckpt_state *st, struct provenance *p);
void provenance_free(struct provenance *p);

/* A part that another rank holds, as the one that writes it knows it. */
struct handed {
    char name[160], hf_name[160], dims[128];
    int ndim, stack_layer;
    int64_t shape[CKPT_DIMS];
    struct cut cut;
    enum ckpt_role role;
    enum dtype dtype;
    struct box box;
};
struct guest { /* a rank whose parts lie in the file of another */
    int rank;
    struct handed *part;
    int64_t n;
    int64_t left; /* slices it still has */
};

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
    int *writer;         /* [world] the rank that writes for each */
    struct guest *guest; /* those this rank writes for, itself left out, ascending */
    int n_guests;
    /* Host copy of all parts, those of the guests behind its own; NULL: taken while writing. */
    const char *copy;
};
/* 1, 2, collective: what goes where, the new folder. phase_end is due in any case. */
int phase_begin(struct save *s, const struct ckpt_settings *settings,
                const struct ckpt_state *state);
/* 3: the copy, into a buffer of ckpt_snapshot_bytes of all that this rank writes; one that hands its
 * parts over needs ckpt_passing_bytes. Collective over the ranks that share a file. */
void phase_copy(struct save *s, char *host, size_t host_bytes);
/* 4 to 8: this rank's shard, if it writes one. Does not communicate once there is a copy; without
 * one it is collective over the ranks that share a file. */
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

/* ---- ranks that share a file (gather.c) ------------------------------------------------------------ */
int64_t writer_index(const int *writer, int rank); /* of the shard that holds the rank's parts */
/* Collective over the world, once s->part is known: sets writer and guest. */
void guests_begin(struct save *s);
void guests_end(struct save *s);
bool save_writes(const struct save *s);       /* this rank writes a file */
int64_t guests_largest(const struct save *s); /* bytes of their largest part */
struct param guest_param(const struct handed *h);
struct part guest_part(const struct handed *h);
/* The writer takes the parts of its guests: all into host (returns its end), or slice by slice into
 * the shard; rc, an error so far, sends them away. */
char *guests_copy(struct save *s, char *host);
int guests_write(int rc, struct save *s, struct shard *shard);
/* Meanwhile on each guest, whose parts pass through `room`. */
void parts_hand_over(struct save *s, char *room, size_t room_bytes);

#endif
