/* SPDX-License-Identifier: Apache-2.0 */
/*
 * safetensors: the container of Hugging Face checkpoints: a JSON header that names tensors, then
 * their bytes. Accepts what the reference parser accepts: ranges in the header cover the data
 * exactly, without gaps and overlaps. Source: the format section of huggingface/safetensors'
 * README, and its src/tensor.rs.
 *
 * Works on the first bytes of a file, as gguf.h does. Numbers are little-endian.
 *
 * Owns     everything handed out, until destroy; nothing is borrowed from the bytes
 * Threads  immutable after parse
 * Errors   one line in diag: name, tensor, reason
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/dtypes.h"

#define SAFETENSORS_MAX_DIMS         8
#define SAFETENSORS_MAX_HEADER_BYTES 100000000

typedef struct safetensors safetensors_t;

typedef struct safetensors_tensor {
    const char *name; /* terminated */
    const char *type; /* "BF16", "I64": any type of the format */
    bool is_computable;
    k_dtype_t dtype; /* when is_computable */
    uint32_t n_dims;
    uint64_t dims[SAFETENSORS_MAX_DIMS]; /* the last is contiguous */
    uint64_t offset;                     /* of the data, from the start of the file */
    size_t bytes;
} safetensors_tensor_t;

/*
 * bytes [length]: the beginning of a file of file_length bytes. name: how errors call the file.
 * WEFT_PENDING: the header reaches past length; call again with more.
 */
weft_status_t safetensors_parse(const void *bytes, size_t length, uint64_t file_length,
                                const char *name, weft_diag_t *diag, safetensors_t **file_out);
void safetensors_destroy(safetensors_t *file); /* NULL is fine */

size_t safetensors_tensor_count(const safetensors_t *file);
const safetensors_tensor_t *safetensors_tensor_at(const safetensors_t *file, size_t index);
