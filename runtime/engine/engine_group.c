/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "engine"
#include "runtime/engine/engine_group.h"

#include <assert.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/alloc.h"
#include "base/log.h"
#include "runtime/executor/executor.h"

/* Messages ahead of the slowest follower: plans in flight, one read, one written, and orders before each
 * (engine_kv.c sends no more with steps in flight). A leader that waited for space here could be who the
 * last stage waits for. */
#define FEED_DEPTH (2 * (EXECUTOR_MAX_DEPTH + 2))

/* ---- gathering ----------------------------------------------------------------------------- */

/* What a rank says of itself at each meeting. */
typedef struct word {
    int32_t status;
    char why[252];
    union {
        struct {
            uint64_t host;
            uint64_t device; /* of this host: ranks with the same one share its memory */
            uint64_t cores;
            uint64_t is_loaded; /* 0 or 1 */
        } place;
        uint64_t n_bytes; /* that will be shared */
        engine_terms_t terms;
    };
} word_t;

static_assert(sizeof(word_t) == 808, "every rank sends the same");

/* The first rank that failed is everybody's reason; who has one, maybe of an earlier gathering, keeps it. */
static weft_status_t find_failure(const engine_group_t *group, const word_t *words,
                                  weft_diag_t *diag)
{
    if (words[group->rank].status < 0) {
        return (weft_status_t)words[group->rank].status; /* diag has it already */
    }
    for (uint32_t i = 0; i < group->size; i++) {
        if (words[i].status >= 0) {
            continue;
        }
        const weft_status_t status = (weft_status_t)words[i].status;
        weft_log_error("rank=%u has failed: %.*s", i, (int)sizeof(words[i].why), words[i].why);
        return weft_diag(diag, status, "rank %u: %.*s", i, (int)sizeof(words[i].why), words[i].why);
    }
    return WEFT_OK;
}

/* Every rank's word to every rank; words_out [size] is the caller's to free. */
static weft_status_t gather(engine_group_t *group, weft_status_t status, word_t *mine,
                            weft_diag_t *diag, word_t **words_out)
{
    const coll_exchange_t *exchange = &group->links.exchange;
    word_t *words = weft_calloc(group->size, sizeof(*words), "engine.words");
    if (words == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory to meet the other ranks");
    }
    mine->status = status;
    if (status < 0) {
        snprintf(mine->why, sizeof(mine->why), "%.251s",
                 diag != NULL && diag->text[0] != '\0' ? diag->text : weft_strerror(status));
    }
    weft_diag_t trouble = {0};
    const weft_status_t met =
        exchange->all_gather(exchange->user, mine, sizeof(*mine), words, &trouble);
    if (met < 0 && status >= 0) { /* else diag says why already */
        status = weft_diag(diag, met, "%s", trouble.text);
    } else if (met >= 0) {
        status = find_failure(group, words, diag);
    }
    if (status < 0) {
        weft_free(words);
        return status;
    }
    *words_out = words;
    return WEFT_OK;
}

/* ---- forming ------------------------------------------------------------------------------- */

/* Of this boot of this host: containers on it have the same. */
static uint64_t host_id(void)
{
    char text[64] = {0};
    const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text));
    if (fd >= 0) {
        close(fd);
    }
    if (n <= 0) {
        n = gethostname(text, sizeof(text) - 1) == 0 ? (ssize_t)strlen(text) : 0;
    }
    return XXH3_64bits(text, (size_t)n);
}

static uint64_t cores_id(void)
{
    cpu_set_t cores;
    CPU_ZERO(&cores);
    (void)sched_getaffinity(0, sizeof(cores), &cores); /* one too large for the set reads as none */
    return XXH3_64bits(&cores, sizeof(cores));
}

static void count_neighbours(engine_group_t *group, const word_t *words)
{
    const word_t *mine = &words[group->rank];
    group->on_device = group->on_cores = 0;
    for (uint32_t i = 0; i < group->size; i++) {
        const bool is_here = words[i].place.host == mine->place.host;
        const bool shares_memory = is_here && words[i].place.device == mine->place.device;
        group->on_device += shares_memory && words[i].place.is_loaded == 0;
        group->on_cores += is_here && words[i].place.cores == mine->place.cores;
    }
}

static void set_groups(const engine_links_t *links, model_shard_t *shard)
{
    const bool has_stages = shard->stages > 1;
    const bool is_host = links->stages == NULL;
    shard->tensor = links->tensor;
    shard->world = !has_stages ? NULL : is_host ? links->world : links->stages;
    shard->results = has_stages && !is_host ? links->world : NULL;
}

weft_status_t engine_group_form(engine_group_t *group, weft_device_t *device, bool is_loaded,
                                weft_diag_t *diag)
{
    word_t *words = NULL;
    weft_status_t status = group->ranks.form(group->ranks.user, device, diag, &group->links);
    if (status < 0) {
        return status;
    }
    set_groups(&group->links, &group->ranks.shard);
    group->rank = coll_rank(group->links.world);
    group->size = coll_size(group->links.world);
    word_t mine = {.place = {.host = host_id(),
                             .device = device->ops->id == NULL ? 0 : device->ops->id(device),
                             .cores = cores_id(),
                             .is_loaded = is_loaded}};
    status = gather(group, WEFT_OK, &mine, diag, &words);
    if (status >= 0) {
        count_neighbours(group, words);
    }
    weft_free(words);
    return status;
}

/* ---- agreeing ------------------------------------------------------------------------------ */

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static weft_status_t check_equal(const engine_group_t *group, const word_t *words,
                                 weft_diag_t *diag)
{
    for (uint32_t i = 1; i < group->size; i++) {
        const engine_terms_t *a = &words[0].terms;
        const engine_terms_t *b = &words[i].terms;
        const struct {
            const char *name;
            uint32_t leads;
            uint32_t follows;
        } pairs[] = {
            {"--max-num-seqs", a->max_slots, b->max_slots},
            {"--max-num-batched-tokens", a->max_tokens, b->max_tokens},
            {"--block-size", a->block_tokens, b->block_tokens},
            {"--kv-cache-dtype (by number)", a->kv_dtype, b->kv_dtype},
            {"the vocabulary", a->vocab, b->vocab},
        };
        for (size_t j = 0; j < WEFT_ARRAY_LEN(pairs); j++) {
            if (pairs[j].leads != pairs[j].follows) {
                return weft_diag(diag, WEFT_ERR_DENIED, "%s is %u on rank 0 but %u on rank %u",
                                 pairs[j].name, pairs[j].leads, pairs[j].follows, i);
            }
        }
    }
    return WEFT_OK;
}

/* Ranks that are settled were so together: with the same. */
static void settle(engine_terms_t *terms, const engine_terms_t *other)
{
    if (terms->is_settled != 0) {
        return;
    }
    if (other->is_settled != 0) {
        *terms = *other;
        return;
    }
    terms->n_blocks = least(terms->n_blocks, other->n_blocks);
    terms->max_context = least(terms->max_context, other->max_context);
}

weft_status_t engine_group_agree(engine_group_t *group, weft_status_t status, weft_diag_t *diag,
                                 engine_terms_t *terms)
{
    word_t *words = NULL;
    word_t mine = {.terms = *terms};
    status = gather(group, status, &mine, diag, &words);
    if (status < 0) {
        return status;
    }
    status = check_equal(group, words, diag);
    for (uint32_t i = 0; i < group->size; i++) {
        settle(terms, &words[i].terms);
    }
    memcpy(terms->engine_id, words[0].terms.engine_id, sizeof(terms->engine_id));
    terms->engine_id[sizeof(terms->engine_id) - 1] = '\0';
    weft_free(words);
    return status;
}

/* ---- sharing ------------------------------------------------------------------------------- */

/* Every rank gives as many bytes as the longest has. */
static weft_status_t gather_padded(engine_group_t *group, const weft_buffer_t *mine, size_t most,
                                   char **all_out, weft_diag_t *diag)
{
    const coll_exchange_t *exchange = &group->links.exchange;
    char *padded = weft_calloc(most, 1, "engine.shared");
    char *all = weft_calloc(group->size, most, "engine.shared");
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    if (padded != NULL && all != NULL) {
        if (mine->length > 0) { /* memcpy takes no NULL, not even for nothing */
            memcpy(padded, mine->data, mine->length);
        }
        status = exchange->all_gather(exchange->user, padded, most, all, diag);
    }
    weft_free(padded);
    if (status < 0) {
        weft_free(all);
        return status;
    }
    *all_out = all;
    return WEFT_OK;
}

static size_t longest(const engine_group_t *group, const word_t *words)
{
    size_t most = 0;
    for (uint32_t i = 0; i < group->size; i++) {
        most = words[i].n_bytes > most ? words[i].n_bytes : most;
    }
    return most;
}

static weft_status_t collect_shared(const engine_group_t *group, const word_t *words,
                                    const char *padded, size_t most, weft_buffer_t *all,
                                    size_t **offsets_out)
{
    size_t *offsets = weft_calloc(group->size + 1, sizeof(*offsets), "engine.shared");
    for (uint32_t i = 0; offsets != NULL && i < group->size; i++) {
        weft_buffer_append(all, padded + i * most, words[i].n_bytes);
        offsets[i + 1] = all->length;
    }
    if (offsets == NULL || all->is_failed) {
        weft_free(offsets);
        weft_buffer_free(all);
        return WEFT_ERR_NO_MEMORY;
    }
    *offsets_out = offsets;
    return WEFT_OK;
}

weft_status_t engine_group_share(engine_group_t *group, weft_status_t status, weft_diag_t *diag,
                                 const weft_buffer_t *mine, weft_buffer_t *all_out,
                                 size_t **offsets_out)
{
    word_t *words = NULL;
    char *padded = NULL;
    word_t word = {.n_bytes = mine->length};
    status = gather(group, status, &word, diag, &words);
    if (status < 0) {
        return status;
    }
    const size_t most = longest(group, words);
    if (most > 0) { /* or nobody says anything, which all know */
        status = gather_padded(group, mine, most, &padded, diag);
    }
    if (status >= 0) {
        status = collect_shared(group, words, padded, most, all_out, offsets_out);
    }
    weft_free(padded);
    weft_free(words);
    return status;
}

weft_status_t engine_group_tell(engine_group_t *group, weft_status_t status, weft_diag_t *diag)
{
    word_t *words = NULL;
    word_t mine = {0};
    status = gather(group, status, &mine, diag, &words);
    weft_free(words);
    return status;
}

weft_status_t engine_group_open(engine_group_t *group, weft_status_t status,
                                const step_wire_bounds_t *bounds, weft_diag_t *diag)
{
    status = engine_group_tell(group, status, diag);
    if (status < 0) {
        return status;
    }
    group->bounds = *bounds;
    const size_t plan = step_wire_max_bytes(bounds);
    const size_t orders = sizeof(step_wire_header_t) + STEP_WIRE_ORDER_BYTES;
    return coll_feed_create(group->links.world, plan > orders ? plan : orders, FEED_DEPTH, diag,
                            &group->feed);
}

void engine_group_part(engine_group_t *group)
{
    coll_feed_destroy(group->feed);
    group->feed = NULL;
    if (engine_group_is_formed(group)) {
        group->ranks.part(group->ranks.user);
    }
    group->links = (engine_links_t){0};
}

/* ---- together ------------------------------------------------------------------------------ */

weft_status_t engine_group_state(const engine_group_t *group, uint32_t *rank_out)
{
    weft_status_t status = coll_status(group->links.world, rank_out);
    if (status >= 0 && group->links.stages != NULL) {
        status = coll_status(group->links.stages, rank_out);
    }
    if (status < 0 || group->links.tensor == NULL) {
        return status;
    }
    /* Its ranks are numbered by themselves: those of a stage follow one another in the world. */
    const model_shard_t *shard = &group->ranks.shard;
    const weft_status_t tensor = coll_status(group->links.tensor, rank_out);
    if (tensor < 0 && *rank_out != COLL_NO_RANK) {
        *rank_out += shard->stage * shard->tensor_size;
    }
    return tensor;
}

/* Who hangs is found by the collective that waited for it; who went, by the first connection to end. */
weft_status_t engine_group_cause(const engine_group_t *group, uint32_t *rank_out)
{
    const engine_ranks_t *ranks = &group->ranks;
    const weft_status_t status = engine_group_state(group, rank_out);
    if (status == WEFT_ERR_PEER_GONE && ranks->find_cause != NULL) {
        *rank_out = ranks->find_cause(ranks->user, *rank_out);
    }
    return status;
}

weft_status_t engine_group_send(engine_group_t *group, const step_plan_t *plan,
                                const uint32_t *masks)
{
    void *message = coll_feed_begin(group->feed);
    if (message == NULL) {
        return WEFT_ERR_PEER_GONE;
    }
    return coll_feed_send(group->feed, step_wire_encode(plan, masks, group->bounds.vocab, message));
}

weft_status_t engine_group_send_orders(engine_group_t *group, step_wire_kind_t kind,
                                       const void *orders, size_t bytes)
{
    void *message = coll_feed_begin(group->feed);
    if (message == NULL) {
        return WEFT_ERR_PEER_GONE;
    }
    return coll_feed_send(group->feed, step_wire_encode_orders(kind, orders, bytes, message));
}

void engine_group_stop(engine_group_t *group, k_stream_t *stream)
{
    (void)k_stream_sync(stream); /* the others need what it still sends */
    if (group->rank == 0) {
        void *message = coll_feed_begin(group->feed);
        if (message == NULL || coll_feed_send(group->feed, step_wire_encode_stop(message)) < 0) {
            return;
        }
    }
    /* What carries the message may go with its writer: not before the last reader has it. */
    coll_barrier(group->links.world, stream->queue);
}

static bool find_orders(const void *message, size_t bytes, step_wire_kind_t *kind_out,
                        const void **orders_out, size_t *bytes_out)
{
    *kind_out = STEP_WIRE_ORDERS;
    if (step_wire_has_orders(STEP_WIRE_ORDERS, message, bytes, orders_out, bytes_out)) {
        return true;
    }
    *kind_out = STEP_WIRE_ADAPTER;
    return step_wire_has_orders(STEP_WIRE_ADAPTER, message, bytes, orders_out, bytes_out);
}

weft_status_t engine_group_receive(engine_group_t *group, int timeout_ms, weft_diag_t *diag,
                                   step_plan_t *plan, uint32_t *masks, bool *is_stop_out,
                                   engine_obey_fn obey, void *user)
{
    const void *message = NULL;
    const void *orders;
    step_wire_kind_t kind;
    size_t bytes = 0;
    size_t n = 0;
    weft_status_t status = coll_feed_receive(group->feed, timeout_ms, &message, &bytes);
    while (status >= 0 && find_orders(message, bytes, &kind, &orders, &n)) {
        status = obey(user, kind, orders, n, diag);
        if (status >= 0) {
            status = coll_feed_receive(group->feed, timeout_ms, &message, &bytes);
        }
    }
    return status < 0
               ? status
               : step_wire_decode(message, bytes, &group->bounds, diag, plan, masks, is_stop_out);
}
