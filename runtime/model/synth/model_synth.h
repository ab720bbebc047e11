/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_synth: writes a model of a real shape with random weights, for benchmarks and tests that
 * need the size of a model and not its knowledge.
 *
 * A weight depends on the seed, its tensor and its place there, on nothing else: the same options
 * give the same bytes whatever the threads. Matrices have a standard deviation of 1/sqrt(fan in),
 * norms are near 1, so that activations stay finite and of ordinary size. The tokenizer knows every
 * byte, and pairs and triples of bytes up to the size of the vocabulary.
 *
 * Threads  any; starts its own for the time of the call
 */
#pragma once

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

typedef struct model_synth_options {
    const char *family; /* a row of models.def */
    const char *shape;  /* one of its rows in synth_shapes.def */
    const char *dtype;  /* of the matrices: "q4_0"; "fp8", "awq" and others, see model_synth.def */
    uint64_t seed;
    uint32_t threads; /* 0: the cores there are */
} model_synth_options_t;

/*
 * path "*.gguf": one GGUF file; any other: a folder (made if need be) with model.safetensors,
 * config.json, generation_config.json, tokenizer.json and tokenizer_config.json. The file of
 * weights is renamed to its name when it is whole. A GGUF matrix whose rows are not whole blocks of
 * dtype becomes Q8_0, else F16, as converters do it; vectors are F32 there.
 * WEFT_ERR_NOT_FOUND: no such shape; the known ones are listed. WEFT_ERR_UNSUPPORTED: a dtype that
 * the format does not have or that is not synthesized. bytes_out: of weights.
 */
weft_status_t model_synth_write(const model_synth_options_t *options, const char *path,
                                weft_diag_t *diag, uint64_t *bytes_out);
