/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_ranks.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

/* "3=http://10.0.0.7:8003" */
static weft_status_t take_peer(api_ranks_t *ranks, const char *peer, weft_diag_t *diag)
{
    char *end;
    const unsigned long rank = strtoul(peer, &end, 10);
    if (end == peer || *end != '=' || rank >= ranks->size || strncmp(end + 1, "http", 4) != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--data-parallel-peers %s: not RANK=URL with a rank below %u", peer,
                         ranks->size);
    }
    ranks->all[rank].url = end + 1;
    return WEFT_OK;
}

/* The rank at the machine's first port; in a headless one there is no such port. */
static bool is_balancer(const api_ranks_t *ranks, const api_options_t *options)
{
    return options->data_parallel_peers.count > 0 && !options->data_parallel_external_lb &&
           !options->headless && ranks->own == options->data_parallel_start_rank;
}

weft_status_t api_ranks_init(api_ranks_t *ranks, const api_options_t *options, uint32_t own,
                             weft_diag_t *diag)
{
    const uint32_t size = options->data_parallel_size;
    weft_status_t status = WEFT_OK;
    if (own >= size) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--data-parallel-rank %u: with --data-parallel-size %u ranks end at %u",
                         own, size, size - 1);
    }
    if (size == 1) {
        return WEFT_OK;
    }
    ranks->own = own;
    ranks->size = size;
    ranks->is_balanced = is_balancer(ranks, options);
    ranks->all = weft_calloc(size, sizeof(*ranks->all), "api.ranks");
    if (ranks->all == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < options->data_parallel_peers.count && status == WEFT_OK; i++) {
        status = take_peer(ranks, options->data_parallel_peers.items[i], diag);
    }
    return status;
}

void api_ranks_fini(api_ranks_t *ranks)
{
    weft_free(ranks->all);
    *ranks = (api_ranks_t){0};
}

static bool is_reached(const api_ranks_t *ranks, uint32_t rank)
{
    return rank == ranks->own || ranks->all[rank].url != NULL;
}

static uint32_t least_busy(api_ranks_t *ranks)
{
    uint32_t best = ranks->own;
    bool is_found = false;
    for (uint32_t i = 0; i < ranks->size; i++) {
        const uint32_t rank = (ranks->next + i) % ranks->size;
        if (is_reached(ranks, rank) &&
            (!is_found || ranks->all[rank].open < ranks->all[best].open)) {
            best = rank;
            is_found = true;
        }
    }
    ranks->next = (best + 1) % ranks->size;
    return best;
}

static bool read_rank(const char *text, long long *rank_out)
{
    char *end;
    errno = 0;
    *rank_out = text != NULL ? strtoll(text, &end, 10) : 0;
    return text != NULL && end != text && *end == '\0' && errno == 0;
}

weft_status_t api_ranks_choose(api_ranks_t *ranks, const char *asked, api_error_t *error,
                               uint32_t *rank_out)
{
    long long rank;
    if (ranks->all == NULL) {
        *rank_out = 0;
    } else if (!read_rank(asked, &rank)) {
        *rank_out = ranks->is_balanced ? least_busy(ranks) : ranks->own;
    } else if (rank < 0 || rank >= ranks->size) {
        api_error_set(error, API_ERROR_BAD_REQUEST, "X-data-parallel-rank",
                      "X-data-parallel-rank %lld: data-parallel ranks are 0 to %u.", rank,
                      ranks->size - 1);
        return WEFT_ERR_INVALID;
    } else if (!is_reached(ranks, (uint32_t)rank)) {
        api_error_set(error, API_ERROR_BAD_REQUEST, "X-data-parallel-rank",
                      "X-data-parallel-rank %lld is on another machine, which rank %u does not "
                      "reach.",
                      rank, ranks->own);
        return WEFT_ERR_INVALID;
    } else {
        *rank_out = (uint32_t)rank;
    }
    return WEFT_OK;
}
