/* Job files: read, keys checked against each other, then for a number of ranks. */
/* max_len: 4096 */
#include "config.h"
#include "target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct config *cfg = NULL;
    int rc = config_load(fuzz_file("job.ini", data, bytes, 0), 0, NULL, &cfg);
    if (rc == 0) rc = config_check_world(cfg, 1 + (int64_t)(bytes % 8));
    config_free(cfg);
    fuzz_judge(rc);
    return 0;
}
