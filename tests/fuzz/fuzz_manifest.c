/* Checkpoint manifests, signed anew: refused, or one that can be written and read again. */
/* max_len: 30000 */
#include <stdlib.h>
#include <string.h>

#include "../../src/checkpoint/ckpt_impl.h"
#include "target.h"

/* Its own checksum, without which nothing behind it would be seen. */
static void sign(char *text, size_t bytes) {
    static const char key[] = "\"crc32c\"";
    char digits[9], *at = memmem(text, bytes, key, sizeof key - 1), *end = text + bytes;
    if (at == NULL) return;
    at += sizeof key - 1;
    while (at < end && (*at == ':' || *at == ' ' || *at == '"')) at++;
    if (end - at < 8) return;
    memcpy(at, "00000000", 8);
    snprintf(digits, sizeof digits, "%08x", crc32c(0, text, bytes));
    memcpy(at, digits, 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct ckpt_manifest *m = NULL, *again = NULL;
    char *text = xmalloc(bytes + 1);
    memcpy(text, data, bytes);
    text[bytes] = '\0';
    sign(text, bytes);
    int rc = manifest_parse("m", text, bytes, &m);
    if (rc == 0) rc = manifest_check_coverage(m, "m");
    if (rc == 0) {
        size_t n;
        char *back = manifest_text(m, &n);
        fuzz_expect(manifest_parse("m", back, n, &again) == 0, "what was written is refused");
        free(back);
    }
    manifest_free(m);
    manifest_free(again);
    free(text);
    fuzz_judge(rc);
    return 0;
}
