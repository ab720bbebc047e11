/* SPDX-License-Identifier: Apache-2.0 */
/* kv_transfer: what a prefill worker remembers of those who read from it, and of what they read. */
#define WEFT_LOG_MODULE "kv-transfer"
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kvstore/transfer/kv_transfer_priv.h"

/* ---- transfers that were ---------------------------------------------------------------------- */

/* FNV-1a, never 0. Two ids of one hash: a reader that computes the prompt itself for nothing. */
static uint64_t hash_of(const char *id, size_t length)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ (uint8_t)id[i]) * UINT64_C(0x100000001b3);
    }
    return hash | 1;
}

void kv_gone_add(kv_transfer_t *transfer, const char *id)
{
    transfer->gone[transfer->next_gone] = hash_of(id, strlen(id));
    transfer->next_gone = (transfer->next_gone + 1) % KV_TRANSFER_MAX_GONE;
}

bool kv_gone_has(const kv_transfer_t *transfer, kv_msgpack_span_t id)
{
    const uint64_t hash = hash_of(id.data, id.length);
    for (size_t i = 0; i < KV_TRANSFER_MAX_GONE; i++) {
        if (transfer->gone[i] == hash) {
            return true;
        }
    }
    return false;
}

/* It begins again, under its old name. */
void kv_gone_remove(kv_transfer_t *transfer, const char *id)
{
    const uint64_t hash = hash_of(id, strlen(id));
    for (size_t i = 0; i < KV_TRANSFER_MAX_GONE; i++) {
        if (transfer->gone[i] == hash) {
            transfer->gone[i] = 0;
        }
    }
}

/* ---- readers --------------------------------------------------------------------------------- */

/* What the fabric knows of the reader goes too, unless we read from it. */
static void forget_reader(kv_transfer_t *transfer, kv_reader_t **at)
{
    kv_reader_t *reader = *at;
    xfer_peer_t *peer = xfer_find_peer(transfer->agent, reader->agent);
    if (peer != NULL && !kv_peers_use(transfer, NULL, peer)) {
        xfer_forget(transfer->agent, peer);
    }
    *at = reader->next;
    transfer->n_readers--;
    weft_free(reader->agent);
    weft_free(reader);
}

static void forget_most_silent(kv_transfer_t *transfer)
{
    kv_reader_t **silent = &transfer->readers;
    for (kv_reader_t **at = silent; *at != NULL; at = &(*at)->next) {
        silent = (*at)->heard_ns < (*silent)->heard_ns ? at : silent;
    }
    if (*silent != NULL) {
        forget_reader(transfer, silent);
    }
}

static bool is_reader(const kv_transfer_t *transfer, const char *agent)
{
    const kv_reader_t *reader = transfer->readers;
    while (reader != NULL && strcmp(reader->agent, agent) != 0) {
        reader = reader->next;
    }
    return reader != NULL;
}

static void hear_reader(kv_transfer_t *transfer, const char *agent, uint64_t now_ns)
{
    for (kv_reader_t *reader = transfer->readers; reader != NULL; reader = reader->next) {
        if (strcmp(reader->agent, agent) == 0) {
            reader->heard_ns = now_ns;
            return;
        }
    }
    if (transfer->n_readers >= KV_TRANSFER_MAX_READERS) {
        forget_most_silent(transfer);
    }
    kv_reader_t *reader = weft_zalloc(sizeof(*reader), "kv_transfer.reader");
    char *name = weft_strdup(agent, "kv_transfer.reader");
    if (reader == NULL || name == NULL) { /* then it is known for as long as we live */
        weft_free(reader);
        weft_free(name);
        return;
    }
    *reader = (kv_reader_t){transfer->readers, name, now_ns};
    transfer->readers = reader;
    transfer->n_readers++;
}

void kv_readers_expire(kv_transfer_t *transfer, uint64_t now_ns)
{
    kv_reader_t **at = &transfer->readers;
    while (*at != NULL) {
        const uint64_t silence = now_ns - (*at)->heard_ns;
        if ((double)silence > transfer->config.engine_ttl * (double)WEFT_NS_PER_SECOND) {
            forget_reader(transfer, at);
        } else {
            at = &(*at)->next;
        }
    }
}

/* The way back: what it said of itself, unless it is known. */
bool kv_readers_know(kv_transfer_t *transfer, const char *agent, kv_msgpack_span_t blob,
                     uint64_t now_ns)
{
    xfer_peer_t *peer = xfer_find_peer(transfer->agent, agent);
    const bool is_lost = peer != NULL && xfer_peer_status(peer) == WEFT_ERR_PEER_GONE;
    if (peer != NULL && (!is_lost || kv_peers_use(transfer, NULL, peer))) {
        hear_reader(transfer, agent, now_ns);
        return true;
    }
    if (is_lost) { /* and is there again */
        xfer_forget(transfer->agent, peer);
    }
    weft_diag_t diag = {0};
    const weft_status_t status = xfer_import(transfer->agent, blob.data, blob.length, &diag, &peer);
    if (status < 0) {
        weft_log_warn("a reader cannot be answered agent=%s: %s", agent, diag.text);
        return false;
    }
    if (strcmp(xfer_peer_name(peer), agent) != 0) {
        weft_log_warn("a reader cannot be answered agent=%s: it says it is %s", agent,
                      xfer_peer_name(peer));
        if (!kv_peers_use(transfer, NULL, peer) && !is_reader(transfer, xfer_peer_name(peer))) {
            xfer_forget(transfer->agent, peer);
        }
        return false;
    }
    hear_reader(transfer, agent, now_ns);
    return true;
}

void kv_readers_destroy(kv_transfer_t *transfer)
{
    while (transfer->readers != NULL) {
        forget_reader(transfer, &transfer->readers);
    }
}
