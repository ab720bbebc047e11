/* SPDX-License-Identifier: Apache-2.0 */
/*
 * int4_folder: checkpoints of packed 4-bit weights, packed by the rule of those who write them: a llama
 * of one layer with random numbers.
 */
#pragma once

#include "base/buffer.h"
#include "tests/support/random.h"

enum { INT4_HIDDEN = 64, INT4_FFN = 128, INT4_VOCAB = 96, INT4_GROUP = 32 };

/* A matrix [rows, columns] of numbers, and what they stand for. */
typedef struct int4_matrix {
    uint32_t rows;
    uint32_t columns;
    uint8_t q[INT4_FFN * INT4_FFN];
    uint8_t zero[INT4_FFN / INT4_GROUP][INT4_FFN];
    uint16_t scale[INT4_FFN / INT4_GROUP][INT4_FFN];
} int4_matrix_t;

typedef struct int4_checkpoint {
    weft_buffer_t header;
    weft_buffer_t data;
    bool is_awq; /* as AutoAWQ packs it, or AutoGPTQ */
    test_random_t random;
    int4_matrix_t down; /* the last one written: layer 0's */
    bool sorts_groups;  /* GPTQ's desc_act: columns of a group are no neighbours */
} int4_checkpoint_t;

/* config.json and model.safetensors. */
void int4_folder_write(int4_checkpoint_t *c, const char *folder);
