/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api_ranks: which data-parallel rank answers a request that came to this one: the one that its
 * header names, where ranks are balanced the one with the fewest requests from here, else this one.
 *
 * Threads  the loop
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "services/api/api_error.h"
#include "services/api/api_options.h"

typedef struct api_rank {
    const char *url; /* NULL: not reached from here */
    uint32_t open;   /* requests that were given to it here and are not answered */
} api_rank_t;

/* Zeroed memory is one rank of one. */
typedef struct api_ranks {
    uint32_t own;
    uint32_t size;
    uint32_t next; /* whose turn it is among equals */
    bool is_balanced;
    api_rank_t *all; /* [size]; NULL: one of one */
} api_ranks_t;

/* options outlive ranks. WEFT_ERR_INVALID: diag says what contradicts what. */
weft_status_t api_ranks_init(api_ranks_t *ranks, const api_options_t *options, uint32_t own,
                             weft_diag_t *diag);
void api_ranks_fini(api_ranks_t *ranks);

/*
 * asked: X-data-parallel-rank, or NULL; what is no number asks for nothing. WEFT_ERR_INVALID: a rank
 * that is not there, or not reached from here; the error says which are.
 */
weft_status_t api_ranks_choose(api_ranks_t *ranks, const char *asked, api_error_t *error,
                               uint32_t *rank_out);
