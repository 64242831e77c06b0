/* config: the job file as a plain struct.
 *
 * config_keys.def is the one table of keys. A field is named like its key in lower case:
 * [vision] freeze_ViT = cfg->vision.freeze_vit. What "unset" reads as: an int64_t one below the
 * smallest legal value (so 0 for most), a double 0, a string NULL, an enumeration CONFIG_UNSET, a
 * list n = 0. Ranges, defaults and meanings: doc/job-file.md.
 */
#ifndef STRATA_CONFIG_H
#define STRATA_CONFIG_H

#include "base.h"

#define CONFIG_UNSET (-1)
#define CONFIG_PINPOINTS_MAX 64 /* pairs in [data] image_grid_pinpoints */
#define CONFIG_AUTO INT64_MAX   /* of a whole number that may be the word auto */

struct config_list {
    int64_t n;
    int64_t *v;
};
struct config_real_list {
    int64_t n;
    double *v;
};

/* Choices of the enumerations: C(name in C, spelling, NULL or why not in this version). */
#define CONFIG_FAMILY(C)                                                                           \
    C(FAMILY_LLAVA, "llava", NULL)                                                                 \
    C(FAMILY_GPT2, "gpt2", "only llava is in this version")                                        \
    C(FAMILY_BERT, "bert", "only llava is in this version")                                        \
    C(FAMILY_GLM, "glm", "only llava is in this version")                                          \
    C(FAMILY_T5, "t5", "only llava is in this version")
#define CONFIG_DEVICE(C) C(DEVICE_CPU, "cpu", NULL) C(DEVICE_CUDA, "cuda", NULL)
#define CONFIG_DISTRIBUTED(C) C(DISTRIBUTED_MPI, "mpi", NULL) C(DISTRIBUTED_NCCL, "nccl", NULL)
#define CONFIG_SCHEDULE(C)                                                                         \
    C(SCHEDULE_1F1B, "1f1b", NULL)                                                                 \
    C(SCHEDULE_GPIPE, "gpipe", NULL)                                                               \
    C(SCHEDULE_INTERLEAVED, "interleaved", "each rank holds one piece of the stack")               \
    C(SCHEDULE_ZB, "zb", "backward is not split in two")
#define CONFIG_PLACEMENT(C)                                                                        \
    C(PLACEMENT_STACK, "stack", NULL)                                                              \
    C(PLACEMENT_BUBBLE, "bubble", "vision layers run where split_spec puts them")
#define CONFIG_PRECISION(C)                                                                        \
    C(PRECISION_FP32, "fp32", NULL)                                                                \
    C(PRECISION_BF16, "bf16", NULL)                                                                \
    C(PRECISION_FP16, "fp16", NULL)
#define CONFIG_LAYOUT(C)                                                                           \
    C(LAYOUT_FIXED, "fixed", NULL)                                                                 \
    C(LAYOUT_AUTO, "auto", "the layout is what the job file says")
#define CONFIG_PROJECTOR(C) C(PROJECTOR_MLP, "mlp", NULL) C(PROJECTOR_AFFINE, "affine", NULL)
#define CONFIG_PROJECTOR_ACTIVATION(C)                                                             \
    C(PROJECTOR_GELU, "gelu", NULL)                                                                \
    C(PROJECTOR_QUICK_GELU, "quick_gelu", NULL)                                                    \
    C(PROJECTOR_SILU, "silu", NULL)
#define CONFIG_PROJECTOR_INIT(C)                                                                   \
    C(PROJECTOR_INIT_UNIFORM, "uniform", NULL)                                                     \
    C(PROJECTOR_INIT_NORMAL, "normal", NULL)
#define CONFIG_NORMALIZATION(C)                                                                    \
    C(NORMALIZATION_LAYERNORM, "LayerNorm", NULL)                                                  \
    C(NORMALIZATION_RMSNORM, "RMSNorm", NULL)
#define CONFIG_POSITION(C)                                                                         \
    C(POSITION_LEARNED_ABSOLUTE, "learned_absolute", NULL)                                         \
    C(POSITION_ROPE, "rope", NULL)                                                                 \
    C(POSITION_RELATIVE, "relative", "it belongs to family t5")                                    \
    C(POSITION_NONE, "none", NULL)
#define CONFIG_ROPE_TYPE(C)                                                                        \
    C(ROPE_TYPE_ROPE, "rope", NULL)                                                                \
    C(ROPE_TYPE_LINEAR, "linear", NULL)                                                            \
    C(ROPE_TYPE_LLAMA3, "llama3", NULL)                                                            \
    C(ROPE_TYPE_YARN, "yarn", NULL)
#define CONFIG_POSITION_MODE(C)                                                                    \
    C(POSITION_MODE_BLOCK, "block", NULL)                                                          \
    C(POSITION_MODE_ABSOLUTE, "absolute", "only family llava is in this version")                  \
    C(POSITION_MODE_RELATIVE, "relative", "only family llava is in this version")
#define CONFIG_RECOMPUTE(C)                                                                        \
    C(RECOMPUTE_NONE, "none", NULL)                                                                \
    C(RECOMPUTE_FULL, "full", NULL)                                                                \
    C(RECOMPUTE_SELECTIVE, "selective", "attention keeps no rows x rows matrix anyway")
#define CONFIG_RECOMPUTE_METHOD(C)                                                                 \
    C(RECOMPUTE_UNIFORM, "uniform", NULL)                                                          \
    C(RECOMPUTE_BLOCK, "block", NULL)
#define CONFIG_EXIT_SIGNAL(C)                                                                      \
    C(EXIT_SIGNAL_TERM, "SIGTERM", NULL)                                                           \
    C(EXIT_SIGNAL_INT, "SIGINT", NULL)                                                             \
    C(EXIT_SIGNAL_USR1, "SIGUSR1", NULL)                                                           \
    C(EXIT_SIGNAL_USR2, "SIGUSR2", NULL)                                                           \
    C(EXIT_SIGNAL_HUP, "SIGHUP", NULL)
#define CONFIG_ON_NAN(C)                                                                           \
    C(ON_NAN_STOP, "stop", NULL)                                                                   \
    C(ON_NAN_SKIP, "skip", "a step that is not finite stops the job")                              \
    C(ON_NAN_ROLLBACK, "rollback", "a step that is not finite stops the job")
#define CONFIG_OPTIMIZER(C) C(OPTIMIZER_ADAM, "adam", NULL) C(OPTIMIZER_SGD, "sgd", NULL)
#define CONFIG_LR_DECAY(C)                                                                         \
    C(LR_DECAY_CONSTANT, "constant", NULL)                                                         \
    C(LR_DECAY_LINEAR, "linear", NULL)                                                             \
    C(LR_DECAY_COSINE, "cosine", NULL)                                                             \
    C(LR_DECAY_INVERSE_SQUARE_ROOT, "inverse-square-root", NULL)                                   \
    C(LR_DECAY_WSD, "WSD", NULL)
#define CONFIG_LR_WSD(C)                                                                           \
    C(WSD_EXPONENTIAL, "exponential", NULL)                                                        \
    C(WSD_LINEAR, "linear", NULL)                                                                  \
    C(WSD_COSINE, "cosine", NULL)                                                                  \
    C(WSD_MINUS_SQRT, "minus_sqrt", NULL)
#define CONFIG_WEIGHT_DECAY_INCR(C)                                                                \
    C(WEIGHT_DECAY_CONSTANT, "constant", NULL)                                                     \
    C(WEIGHT_DECAY_LINEAR, "linear", "the weight decay stays as it is")                            \
    C(WEIGHT_DECAY_COSINE, "cosine", "the weight decay stays as it is")
#define CONFIG_DATA_FORMAT(C)                                                                      \
    C(FORMAT_LLAVA_JSON, "llava_json", NULL)                                                       \
    C(FORMAT_CAPTIONED_FOLDER, "captioned_folder", NULL)                                           \
    C(FORMAT_TOKENS, "tokens", "token files are for the text families")                            \
    C(FORMAT_MOCK, "mock", NULL)
#define CONFIG_CONVERSATION(C)                                                                     \
    C(CONVERSATION_PLAIN, "plain", NULL)                                                           \
    C(CONVERSATION_V1, "v1", NULL)                                                                 \
    C(CONVERSATION_MISTRAL_INSTRUCT, "mistral_instruct", NULL)                                     \
    C(CONVERSATION_LLAVA_LLAMA_2, "llava_llama_2", NULL)                                           \
    C(CONVERSATION_CHATML_DIRECT, "chatml_direct", NULL)
#define CONFIG_IMAGE_ASPECT(C)                                                                     \
    C(IMAGE_ASPECT_SQUARE, "square", NULL)                                                         \
    C(IMAGE_ASPECT_PAD, "pad", NULL)                                                               \
    C(IMAGE_ASPECT_ANYRES, "anyres", NULL)
#define CONFIG_ON_BAD_IMAGE(C)                                                                     \
    C(ON_BAD_IMAGE_FAIL, "fail", NULL)                                                             \
    C(ON_BAD_IMAGE_SKIP, "skip", NULL)                                                             \
    C(ON_BAD_IMAGE_BLANK, "blank", NULL)
#define CONFIG_ON_NO_TARGET(C)                                                                     \
    C(ON_NO_TARGET_FAIL, "fail", NULL)                                                             \
    C(ON_NO_TARGET_SKIP, "skip", NULL)                                                             \
    C(ON_NO_TARGET_KEEP, "keep", NULL)
#define CONFIG_CAPTION_LINES(C)                                                                    \
    C(CAPTION_LINES_ALL, "all", NULL)                                                              \
    C(CAPTION_LINES_FIRST, "first", NULL)
#define CONFIG_TOKENIZER(C)                                                                        \
    C(TOKENIZER_LLAMA2, "Llama2Tokenizer", NULL)                                                   \
    C(TOKENIZER_GPT_SENTENCEPIECE, "GPTSentencePieceTokenizer", NULL)                              \
    C(TOKENIZER_SENTENCEPIECE, "SentencePieceTokenizer", NULL)                                     \
    C(TOKENIZER_GPT2_BPE, "GPT2BPETokenizer", "only SentencePiece models are read")                \
    C(TOKENIZER_BERT_LOWER, "BertWordPieceLowerCase", "only SentencePiece models are read")        \
    C(TOKENIZER_BERT_CASE, "BertWordPieceCase", "only SentencePiece models are read")              \
    C(TOKENIZER_NULL, "NullTokenizer", "only SentencePiece models are read")                       \
    C(TOKENIZER_HUGGING_FACE, "HuggingFaceTokenizer", "only SentencePiece models are read")        \
    C(TOKENIZER_TIK, "TikTokenizer", "only SentencePiece models are read")
#define CONFIG_PAIR(C)                                                                             \
    C(PAIR_NSP, "nsp", NULL) C(PAIR_SOP, "sop", "only family llava is in this version")
#define CONFIG_RESUME(C)                                                                           \
    C(RESUME_NEVER, "never", NULL) C(RESUME_AUTO, "auto", NULL) C(RESUME_MUST, "must", NULL)
#define CONFIG_VERIFY_SAVE(C) C(VERIFY_SAVE_ALL, "all", NULL) C(VERIFY_SAVE_SAMPLE, "sample", NULL)
#define CONFIG_VERIFY_LOAD(C)                                                                      \
    C(VERIFY_LOAD_ALL, "all", NULL)                                                                \
    C(VERIFY_LOAD_USED, "used", NULL)                                                              \
    C(VERIFY_LOAD_SIZE, "size", NULL)
#define CONFIG_HASH(C) C(HASH_NONE, "none", NULL) C(HASH_SHA256, "sha256", NULL)
#define CONFIG_INTEGRITY_FILTER(C)                                                                 \
    C(INTEGRITY_NONE, "none", NULL)                                                                \
    C(INTEGRITY_FLETCHER32, "fletcher32", NULL)                                                    \
    C(INTEGRITY_DEFLATE, "deflate", NULL)
#define CONFIG_WRITERS(C) C(WRITERS_RANK, "rank", NULL) C(WRITERS_NODE, "node", NULL)
#define CONFIG_TIMING(C)                                                                           \
    C(TIMING_MAX, "max", "there are no timers yet")                                                \
    C(TIMING_MINMAX, "minmax", NULL) C(TIMING_ALL, "all", "there are no timers yet")

#define CONFIG_ENUMERATOR(name, text, missing) name,
#define CONFIG_CHOICES(LIST) enum { LIST(CONFIG_ENUMERATOR) CONFIG_END_##LIST };
CONFIG_CHOICES(CONFIG_FAMILY)
CONFIG_CHOICES(CONFIG_DEVICE)
CONFIG_CHOICES(CONFIG_DISTRIBUTED)
CONFIG_CHOICES(CONFIG_SCHEDULE)
CONFIG_CHOICES(CONFIG_PLACEMENT)
CONFIG_CHOICES(CONFIG_PRECISION)
CONFIG_CHOICES(CONFIG_LAYOUT)
CONFIG_CHOICES(CONFIG_PROJECTOR)
CONFIG_CHOICES(CONFIG_PROJECTOR_ACTIVATION)
CONFIG_CHOICES(CONFIG_PROJECTOR_INIT)
CONFIG_CHOICES(CONFIG_NORMALIZATION)
CONFIG_CHOICES(CONFIG_POSITION)
CONFIG_CHOICES(CONFIG_ROPE_TYPE)
CONFIG_CHOICES(CONFIG_POSITION_MODE)
CONFIG_CHOICES(CONFIG_RECOMPUTE)
CONFIG_CHOICES(CONFIG_RECOMPUTE_METHOD)
CONFIG_CHOICES(CONFIG_EXIT_SIGNAL)
CONFIG_CHOICES(CONFIG_ON_NAN)
CONFIG_CHOICES(CONFIG_OPTIMIZER)
CONFIG_CHOICES(CONFIG_LR_DECAY)
CONFIG_CHOICES(CONFIG_LR_WSD)
CONFIG_CHOICES(CONFIG_WEIGHT_DECAY_INCR)
CONFIG_CHOICES(CONFIG_DATA_FORMAT)
CONFIG_CHOICES(CONFIG_CONVERSATION)
CONFIG_CHOICES(CONFIG_IMAGE_ASPECT)
CONFIG_CHOICES(CONFIG_ON_BAD_IMAGE)
CONFIG_CHOICES(CONFIG_ON_NO_TARGET)
CONFIG_CHOICES(CONFIG_CAPTION_LINES)
CONFIG_CHOICES(CONFIG_TOKENIZER)
CONFIG_CHOICES(CONFIG_PAIR)
CONFIG_CHOICES(CONFIG_RESUME)
CONFIG_CHOICES(CONFIG_VERIFY_SAVE)
CONFIG_CHOICES(CONFIG_VERIFY_LOAD)
CONFIG_CHOICES(CONFIG_HASH)
CONFIG_CHOICES(CONFIG_INTEGRITY_FILTER)
CONFIG_CHOICES(CONFIG_WRITERS)
CONFIG_CHOICES(CONFIG_TIMING)

/* One struct per section, config_<section>. An enumeration is an int holding its enumerator. */
#define SECTION(section, meaning) struct config_##section {
#define END(section)                                                                               \
    }                                                                                              \
    ;
#define INT(section, field, ...) int64_t field;
#define INT_AUTO(section, field, ...) int64_t field;
#define REAL(section, field, ...) double field;
#define BOOL(section, field, ...) bool field;
#define BOOL_AS(section, field, ...) bool field;
#define ENUM(section, field, ...) int field;
#define TEXT(section, field, ...) char *field;
#define PATH(section, field, ...) char *field;
#define INTS(section, field, ...) struct config_list field;
#define REALS(section, field, ...) struct config_real_list field;
#define LATER(section, ...)
#include "config_keys.def"
#undef SECTION
#undef END
#undef INT
#undef INT_AUTO
#undef REAL
#undef BOOL
#undef BOOL_AS
#undef ENUM
#undef TEXT
#undef PATH
#undef INTS
#undef REALS
#undef LATER

struct config_source; /* where each value came from */
struct config {
    struct config_run run;
    struct config_parallel parallel;
    struct config_vision vision;
    struct config_projector projector;
    struct config_language language;
    struct config_training training;
    struct config_optimizer optimizer;
    struct config_data data;
    struct config_checkpoint checkpoint;
    struct config_logging logging;
    struct config_eval eval;
    struct config_generate generate;
    struct {                        /* what is no key but follows from them */
        int64_t n_layers;           /* of the whole stack */
        int64_t n_projector_layers; /* 2, or 1 when affine */
        /* set by config_check_world: */
        int64_t n_ranks, data_parallel_size;
        int64_t n_micro_batches; /* of one rank in one step */
        int64_t train_iters;
        /* The learning-rate curve in iterations, or in samples with train_samples. */
        bool lr_by_samples;
        int64_t lr_warmup, lr_decay, lr_wsd_decay;
    } derived;
    struct config_source *source;
};

/* Reads the job file, then the overrides "section:key=value", fills in what follows from other
 * keys, and applies config_check_rules. Every fault is recorded before it returns EXIT_USAGE
 * (EXIT_NO_INPUT: no such file); *out is then NULL. Relative paths, those of overrides too, are
 * resolved against the folder of the job file. No MPI inside. */
int config_load(const char *path, int n_overrides, char **overrides, struct config **out);
/* The same for a job file that is made up: `name` stands for it in sentences, and relative paths are
 * those of `folder` (NULL: the working folder). */
int config_load_named(const char *path, const char *name, const char *folder, struct config **out);
void config_free(struct config *cfg);

/* Rules between keys that hold for any number of ranks (called by config_load). */
int config_check_rules(struct config *cfg);
/* Rules that need the number of ranks; sets global_batch_size if it is unset, and cfg->derived.
 * May be called again with another number while global_batch_size was not given. */
int config_check_world(struct config *cfg, int64_t n_ranks);
/* Whether this program can train it: device (EXIT_UNAVAILABLE) and precision (EXIT_USAGE). `strata
 * check` plans without asking this. */
int config_check_trainable(const struct config *cfg);

/* What split_spec = auto came to; the legal cuts are checked again. */
int config_resolve_split(struct config *cfg, const int64_t *layers, int64_t n);
/* The tokenizer's vocabulary: sets vocab_size if it is unset, refuses one larger than vocab_size
 * (rule 12), and checks TP against it. */
int config_resolve_vocab(struct config *cfg, int64_t tokenizer_vocab);

/* About the key behind a field of cfg: &cfg->optimizer.lr. */
bool config_given(const struct config *cfg, const void *field); /* in file or argument, and not at
                                                                 * its default */
const char *config_choice(const struct config *cfg, const int *field); /* spelling; "" if unset */
/* Of the job file as it was read, overrides left out: 64 hex digits. */
const char *config_sha256(const struct config *cfg);
/* "strata COMMAND JOB.ini", then `options` (may be ""), then the arguments section:key=value as they were
 * given, quoted for a shell. free() it. */
char *config_command(const struct config *cfg, const char *command, const char *options);
/* EXIT_USAGE with the place, the key and the value of a field in front of the sentence. */
int config_raise(const struct config *cfg, const void *field, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Every key with its present value as text, in the table's order; unset ones have NULL. */
void config_each(const struct config *cfg,
                 void (*each)(void *arg, const char *section, const char *key, const char *value,
                              bool defaulted),
                 void *arg);

/* ---- another value than the run had that wrote the checkpoint -------------------------------- */
enum config_change {
    CONFIG_FREE,        /* nothing that is computed depends on it */
    CONFIG_NOTICE,      /* allowed, and said */
    CONFIG_BY_ARGUMENT, /* allowed where it is given as an argument or follows from another key */
    CONFIG_REFUSED,     /* it would be another run */
};
enum config_change config_change_of(const char *section, const char *key);
const char *config_change_text(enum config_change change);
struct config_stored { /* a key of the checkpoint's run; unset ones are not there */
    const char *section, *key, *value;
};
struct config_difference {
    const char *section, *key, *place, *before, *now;
    enum config_change change; /* CONFIG_BY_ARGUMENT: it was not given as one */
};
/* Calls `each` for every key that differs, in the table's order. */
void config_compare(const struct config *cfg, const struct config_stored *was, int64_t n,
                    void (*each)(void *arg, const struct config_difference *d), void *arg);

/* Return EXIT_IO if writing fails. */
int config_print_keys(FILE *to);     /* one line per key */
int config_print_template(FILE *to); /* commented job file that loads as it stands */
int config_print_markdown(FILE *to); /* doc/job-file.md */
/* used.ini: every key, what was not given marked, paths absolute; loads to the same values. */
int config_write_used(const struct config *cfg, FILE *to);

#endif
