/* Options that users of other trainers will write, and why strata does not have them. */
#include <string.h>
#include <strings.h>

#include "config_impl.h"

#define SPLIT "strata has split_spec: the layers of each stage, any cut"
#define ONE_GRID "vision, projector and language share one tensor and pipeline size"
#define LATER_MODEL "not planned for this version"
#define NO_MEANING "it has no meaning here"
#define ALWAYS_VARIABLE "shapes are always variable and nothing is padded"
#define FORMATS "checkpoints are HDF5 shards that load into any layout"
#define NO_MOE "there is no mixture of experts"
#define NO_FP8 "precisions are fp32, bf16 and fp16"

/* A star matches any letters. */
static const struct {
    const char *pattern, *reason;
} foreign[] = {
    {"decoder_first_pipeline_num_layers", SPLIT},
    {"decoder_last_pipeline_num_layers", SPLIT},
    {"num_layers_in_*_pipeline_stage", SPLIT},
    {"pipeline_model_parallel_layout", SPLIT},
    {"account_for_*_in_pipeline_split", SPLIT},
    {"pipeline_model_parallel_split_rank", SPLIT},
    {"num_layers_per_virtual_pipeline_stage", SPLIT},
    {"num_virtual_stages_per_pipeline_rank", SPLIT},
    {"encoder_*_model_parallel_size", ONE_GRID ", and " SPLIT},
    {"variable_seq_lengths", ALWAYS_VARIABLE},
    {"pad_to_*", ALWAYS_VARIABLE},
    {"expert_*", NO_MOE},
    {"moe_*", NO_MOE},
    {"num_experts", NO_MOE},
    {"cp_comm_type", "there is no context parallelism"},
    {"hierarchical_context_parallel_sizes", "there is no context parallelism"},
    {"tp_comm_*", "overlap of tensor-parallel sums is not planned"},
    {"use_*fsdp*", "states are sharded with use_distributed_optimizer"},
    {"fp8*", NO_FP8},
    {"fp4*", NO_FP8},
    {"transformer_impl", "there is one implementation of a layer"},
    {"te_*", "there are no Transformer Engine kernels"},
    {"cpu_offloading*",
     "activations are recomputed (recompute_granularity), not moved to the host"},
    {"*cuda_graph*", "there are no CUDA graphs"},
    {"use_flash_attn", "attention never stores a rows x rows matrix anyway"},
    {"attention_backend", "attention never stores a rows x rows matrix anyway"},
    {"language_model_type", "write the model's keys out, or start from a job file in input/"},
    {"vision_model_type", "write the keys of [vision] out"},
    {"vision_projection_type", "write [projector] projector_type"},
    {"group_query_attention", "num_query_groups says it"},
    {"params_dtype", "write [training] bf16 or fp16; neither means fp32"},
    {"disable_bias_linear", "write [language] add_bias_linear = false"},
    {"dataloader_type", NO_MEANING ": the order is a function of seed and epoch"},
    {"dataloader_save", NO_MEANING ": the data's position follows from the step"},
    {"mock_data", "write [data] data_format = mock"},
    {"exit_on_missing_checkpoint", "a missing checkpoint is always an error"},
    {"manual_gc*", NO_MEANING ": nothing is collected"},
    {"empty_unused_memory_level", NO_MEANING ": memory is laid out once"},
    {"use_cpu_initialization", NO_MEANING ": first weights are the same on any device"},
    {"data_parallel_random_init", NO_MEANING ": first weights are a function of the seed"},
    {"ddp_average_in_collective", NO_MEANING ": gradients are divided by the target count"},
    {"batch_p2p_comm", NO_MEANING ": messages are posted one by one"},
    {"ckpt_format", FORMATS},
    {"dist_ckpt_*", FORMATS},
    {"use_dist_ckpt", FORMATS},
    {"auto_detect_ckpt_format", FORMATS},
    {"ckpt_convert_*", "`strata import` and `strata export` convert"},
    {"verify_integrity", "checkpoints are always verified; see verify_save and verify_load"},
    {"one_logger*", "metrics.csv and status.json hold the figures"},
    {"enable_one_logger", "metrics.csv and status.json hold the figures"},
    {"enable_ft_package", "there is no restart inside a process; the job script starts it again"},
    {"inprocess_restart", "there is no restart inside a process; the job script starts it again"},
    {"inference_*", "there is no inference server"},
    {"num_workers_per_dataset", "write [data] num_workers"},
    {"no_gradient_accumulation_fusion", NO_MEANING},
    {"gradient_accumulation_fusion", NO_MEANING},
    {"masked_softmax_fusion", NO_MEANING},
    {"bias_*_fusion", NO_MEANING},
    {"rope_fusion", NO_MEANING},
    {"rotary_seq_len_interpolation_factor",
     "write [language] rope_type = linear and rotary_scaling_factor"},
    {"use_rope_scaling", "write [language] rope_type = llama3 and rotary_scaling_factor"},
    {"rope_scaling_factor", "write [language] rope_type = llama3 and rotary_scaling_factor"},
    {"yarn_*", "write [language] rope_type = yarn and the same name without yarn_"},
    {"distributed_timeout_seconds_after_init", "write distributed_timeout_minutes"},
    {"lazy_mpu_init", NO_MEANING},
    {"use_legacy_models", LATER_MODEL},
    {"use_mcore_models", NO_MEANING ": there is one implementation"},
    {"multi_latent_attention", LATER_MODEL},
    {"mtp_num_layers", LATER_MODEL},
    {"tensorboard_*", "metrics.csv holds the figures"},
};

static bool matches(const char *pattern, const char *name) {
    for (; *pattern != '\0'; pattern++, name++) {
        if (*pattern == '*') {
            for (;; name++) {
                if (matches(pattern + 1, name)) return true;
                if (*name == '\0') return false;
            }
        }
        if (strncasecmp(pattern, name, 1) != 0) return false;
    }
    return *name == '\0';
}

const char *config_foreign_reason(const char *key) {
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (matches(foreign[i].pattern, key)) return foreign[i].reason;
    return NULL;
}
