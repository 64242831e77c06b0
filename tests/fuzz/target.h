/* fuzz: what the harnesses share. A harness is one file fuzz_NAME.c with LLVMFuzzerTestOneInput,
 * which gives its bytes to one parser of strata, in this process. It is linked twice: with replay.c,
 * which runs it over stored files under any compiler, and with clang's libFuzzer (make fuzz), which
 * invents inputs (doc/testing.md, "Fuzzing").
 *
 * What ends a harness is a finding: a signal, a sanitizer's report, a CHECK (exit code 70) or any
 * other error_exit, a wrong word of fuzz_judge, more than 2 s or 512 MiB for one input.
 *
 * Harnesses run in the root of the checkout: they read input/ and tests/golden/.
 */
#ifndef STRATA_FUZZ_TARGET_H
#define STRATA_FUZZ_TARGET_H

#include "base.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* A folder in memory of this process alone, removed when it ends. */
const char *fuzz_folder(void);
/* Makes <folder>/<name> with these bytes and, behind them, zeros up to `size` bytes; returns its path,
 * valid until fuzz_judge, which removes all files made since the last one. */
const char *fuzz_file(const char *name, const void *data, size_t bytes, size_t size);

/* How many times 2 s an input may take: more where gcc's sanitizers are slow. */
extern double fuzz_patience;

/* Ends each input: an error is an exit code other than 0 and 70 with a sentence, and without an
 * error there is no sentence. Empties the error trace. */
void fuzz_judge(int rc);
/* Ends the process with this sentence unless `good`. */
void fuzz_expect(bool good, const char *what);

/* Inputs of several files: "@NAME SIZE\n" and the bytes up to the next line that begins with '@'. A
 * name is one path component. SIZE, if it is there: bytes of the file beyond those given. */
struct fuzz_part {
    char name[100];
    const char *data;
    size_t bytes, size;
};
/* Takes the next part off (*data, *bytes); false: there is none. */
bool fuzz_next_part(const uint8_t **data, size_t *bytes, struct fuzz_part *out);

/* Makes the .safetensors file whose header the part is: with its length in front of it, and SIZE bytes
 * behind it. */
void fuzz_weights(const struct fuzz_part *part);

/* A stored file with changes: data[0] chooses one of the n paths, and each 4 bytes behind it,
 * {kind, place low, place high, value}, change one place of it: kind 0..127 one byte, 128..191 four
 * bytes, else eight bytes, which become small, large or other numbers. Input that begins with `magic`
 * is the file itself. Returns what *size bytes to use, valid until the next call. *which: -1, or the
 * path's index. */
const char *fuzz_changed(const uint8_t *data, size_t bytes, const char *const *path, int n,
                         const char *magic, size_t *size, int *which);

/* The tokenizer of input/tiny, opened once. */
struct tokenizer;
const struct tokenizer *fuzz_tokenizer(void);

#endif
