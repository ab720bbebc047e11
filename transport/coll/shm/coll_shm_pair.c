/* SPDX-License-Identifier: Apache-2.0 */
/* From one rank to another: two messages at a time in memory that is made when it is first used. */
#include <string.h>
#include <sys/mman.h>

#include "transport/coll/shm/coll_shm_priv.h"

#define ROOM_BYTES ((size_t)64 << 20) /* of a message; a longer one goes in pieces */

struct coll_shm_pair {
    _Alignas(WEFT_CACHE_LINE) atomic_uint n_sent;     /* released by send, acquired by receive */
    _Alignas(WEFT_CACHE_LINE) atomic_uint n_received; /* and the other way */
    _Alignas(WEFT_CACHE_LINE) size_t bytes[COLL_SEND_AHEAD];
    _Alignas(4096) char rooms[COLL_SEND_AHEAD][ROOM_BYTES];
};

_Static_assert(sizeof(coll_shm_pair_t) <= COLL_SHM_PAIR_BYTES, "a pair has its place in the file");

static bool map_channel(coll_shm_t *shm, coll_shm_channel_t *channel, uint32_t from, uint32_t to)
{
    if (channel->shared == NULL) {
        channel->shared =
            coll_shm_map(shm, coll_shm_pair_offset(shm, from, to), sizeof(coll_shm_pair_t));
        if (channel->shared == NULL) {
            coll_shm_fail(shm, WEFT_ERR_NO_MEMORY, shm->base.config.rank);
        }
    }
    return channel->shared != NULL;
}

static bool send_piece(coll_shm_t *shm, uint32_t to, const char *data, size_t bytes)
{
    coll_shm_channel_t *channel = &shm->to[to];
    coll_shm_pair_t *pair = channel->shared;
    const uint32_t n = channel->n_done;
    if (!coll_shm_wait(shm, &pair->n_received, n + 1 - COLL_SEND_AHEAD, to)) {
        return false;
    }
    pair->bytes[n % COLL_SEND_AHEAD] = bytes;
    memcpy(pair->rooms[n % COLL_SEND_AHEAD], data, bytes);
    channel->n_done = n + 1;
    atomic_store_explicit(&pair->n_sent, n + 1, memory_order_release);
    coll_shm_wake(shm, &pair->n_sent);
    return true;
}

static bool receive_piece(coll_shm_t *shm, uint32_t from, char *out, size_t bytes)
{
    coll_shm_channel_t *channel = &shm->from[from];
    coll_shm_pair_t *pair = channel->shared;
    const uint32_t n = channel->n_done;
    if (!coll_shm_wait(shm, &pair->n_sent, n + 1, from)) {
        return false;
    }
    if (pair->bytes[n % COLL_SEND_AHEAD] != bytes) {
        coll_shm_fail(shm, WEFT_ERR_INVALID, from);
        return false;
    }
    memcpy(out, pair->rooms[n % COLL_SEND_AHEAD], bytes);
    channel->n_done = n + 1;
    atomic_store_explicit(&pair->n_received, n + 1, memory_order_release);
    coll_shm_wake(shm, &pair->n_received);
    return true;
}

static size_t next_piece(size_t bytes)
{
    return bytes < ROOM_BYTES ? bytes : ROOM_BYTES;
}

void coll_shm_send(coll_t *coll, weft_queue_t *queue, uint32_t to, const void *data, size_t bytes)
{
    coll_shm_t *shm = (coll_shm_t *)coll;
    size_t at = 0;
    (void)queue;
    if (!map_channel(shm, &shm->to[to], coll->config.rank, to)) {
        return;
    }
    do { /* an empty one, too */
        const size_t piece = next_piece(bytes - at);
        if (!send_piece(shm, to, (const char *)data + at, piece)) {
            return;
        }
        at += piece;
    } while (at < bytes);
}

void coll_shm_receive(coll_t *coll, weft_queue_t *queue, uint32_t from, void *out, size_t bytes)
{
    coll_shm_t *shm = (coll_shm_t *)coll;
    size_t at = 0;
    (void)queue;
    if (!map_channel(shm, &shm->from[from], from, coll->config.rank)) {
        return;
    }
    do {
        const size_t piece = next_piece(bytes - at);
        if (!receive_piece(shm, from, (char *)out + at, piece)) {
            return;
        }
        at += piece;
    } while (at < bytes);
}

void coll_shm_close_channels(coll_shm_t *shm)
{
    for (uint32_t rank = 0; rank < shm->base.config.size; rank++) {
        if (shm->to != NULL && shm->to[rank].shared != NULL) {
            munmap(shm->to[rank].shared, sizeof(coll_shm_pair_t));
        }
        if (shm->from != NULL && shm->from[rank].shared != NULL) {
            munmap(shm->from[rank].shared, sizeof(coll_shm_pair_t));
        }
    }
}
