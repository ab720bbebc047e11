/* SPDX-License-Identifier: Apache-2.0 */
/* Which rows of a step are whose, and what of that lies on the device. */
#pragma once

#include <stdint.h>

/*
 * The rows [row, row + rows) of the step belong to one sequence, at positions start...
 * An op's sequences cover its rows from 0 on, in order, without gaps.
 */
typedef struct k_seq {
    uint32_t row;
    uint32_t rows;
    uint32_t start;              /* tokens of the sequence already in the cache */
    uint32_t adapter;            /* of the tables of k_lora_t, counted from 1; 0: none */
    const uint32_t *block_table; /* block ids; entry i holds tokens [i·block_tokens, …) */
    const int32_t *history; /* token ids of the sequence from position 0; gather_tokens reads it */
} k_seq_t;

/* ids[seq.row + i] = seq.history[seq.start + i] for every row of every sequence. */
typedef struct k_gather_tokens_args {
    const k_seq_t *seqs;
    uint32_t n_seqs;
    int32_t *ids; /* [rows of all sequences] */
} k_gather_tokens_args_t;

typedef struct k_word {
    uint32_t *at;
    uint32_t value;
} k_word_t;

/* *words[i].at = words[i].value; no two of the same address. Single entries of block tables and histories. */
typedef struct k_write_words_args {
    const k_word_t *words;
    uint32_t n_words;
} k_write_words_args_t;
