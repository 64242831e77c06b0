#ifndef STRATA_MODEL_IMPL_H
#define STRATA_MODEL_IMPL_H

#include "model.h"

extern const struct family family_llava;
bool stage_mark_gradients(struct stage *st, bool below);

#endif
