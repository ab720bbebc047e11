/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/sched/step_plan_wire.h"

#include <assert.h>
#include <string.h>

#include "base/compiler.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "parts are sent as they lie in memory");
static_assert(sizeof(step_wire_header_t) == 48, "on the wire");
static_assert(sizeof(step_sampling_t) == 48, "on the wire");
static_assert(sizeof(step_bind_t) == 80, "on the wire");
static_assert(sizeof(step_row_t) == 32, "on the wire");
static_assert(sizeof(step_bias_t) == 8, "on the wire");
static_assert(sizeof(step_block_t) == 12, "on the wire");

/* Bytes of the parts that a header counts; a size_t holds them whatever it says. */
static size_t body_bytes(const step_wire_header_t *h)
{
    static_assert(sizeof(size_t) == 8, "products of two 32-bit counts fit");
    return h->n_binds * sizeof(step_bind_t) + h->n_rows * sizeof(step_row_t) +
           h->n_biases * sizeof(step_bias_t) + h->n_blocks * sizeof(step_block_t) +
           h->n_tokens * sizeof(int32_t) + (size_t)h->n_masks * h->mask_words * sizeof(uint32_t);
}

size_t step_wire_max_bytes(const step_wire_bounds_t *bounds)
{
    const step_limits_t *limits = &bounds->limits;
    const step_wire_header_t most = {
        .n_binds = limits->max_slots,
        .n_rows = limits->max_slots,
        .n_biases = limits->max_biases,
        .n_blocks = limits->max_blocks,
        .n_tokens = limits->max_bind_tokens,
        .n_masks = limits->max_slots,
        .mask_words = step_wire_mask_words(bounds->vocab),
    };
    return sizeof(most) + body_bytes(&most);
}

/* ---- encoding ------------------------------------------------------------------------------ */

static char *put(char *at, const void *data, size_t bytes)
{
    if (bytes > 0) { /* memcpy takes no NULL, not even for nothing */
        memcpy(at, data, bytes);
    }
    return at + bytes;
}

static uint32_t put_masks(char *at, const step_plan_t *plan, const uint32_t *masks,
                          uint32_t mask_words)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        if ((plan->rows[i].flags & STEP_ROW_MASKED) != 0) {
            at = put(at, masks + (size_t)plan->rows[i].slot * mask_words,
                     mask_words * sizeof(uint32_t));
            n++;
        }
    }
    return n;
}

size_t step_wire_encode(const step_plan_t *plan, const uint32_t *masks, uint32_t vocab, void *out)
{
    const uint32_t mask_words = step_wire_mask_words(vocab);
    step_wire_header_t *header = out;
    *header = (step_wire_header_t){
        .magic = STEP_WIRE_MAGIC,
        .version = (uint16_t)plan->version,
        .kind = STEP_WIRE_PLAN,
        .step = plan->step,
        .n_binds = plan->n_binds,
        .n_rows = plan->n_rows,
        .n_biases = plan->n_biases,
        .n_blocks = plan->n_blocks,
        .n_tokens = plan->n_tokens,
        .mask_words = mask_words,
    };
    char *at = (char *)(header + 1);
    at = put(at, plan->binds, plan->n_binds * sizeof(step_bind_t));
    at = put(at, plan->rows, plan->n_rows * sizeof(step_row_t));
    at = put(at, plan->biases, plan->n_biases * sizeof(step_bias_t));
    at = put(at, plan->blocks, plan->n_blocks * sizeof(step_block_t));
    at = put(at, plan->tokens, plan->n_tokens * sizeof(int32_t));
    header->n_masks = put_masks(at, plan, masks, mask_words);
    return sizeof(*header) + body_bytes(header);
}

size_t step_wire_encode_stop(void *out)
{
    const step_wire_header_t header = {
        .magic = STEP_WIRE_MAGIC, .version = STEP_PLAN_VERSION, .kind = STEP_WIRE_STOP};
    memcpy(out, &header, sizeof(header));
    return sizeof(header);
}

size_t step_wire_encode_orders(step_wire_kind_t kind, const void *orders, size_t bytes, void *out)
{
    const step_wire_header_t header = {
        .magic = STEP_WIRE_MAGIC, .version = STEP_PLAN_VERSION, .kind = (uint16_t)kind};
    assert(bytes <= STEP_WIRE_ORDER_BYTES);
    memcpy(out, &header, sizeof(header));
    memcpy((char *)out + sizeof(header), orders, bytes);
    return sizeof(header) + bytes;
}

/* ---- decoding ------------------------------------------------------------------------------ */

static weft_status_t malformed(weft_diag_t *diag, const char *what, uint32_t value, uint32_t wanted)
{
    return weft_diag(diag, WEFT_ERR_MALFORMED, "step message: %s %u, not %u", what, value, wanted);
}

static weft_status_t read_header(const void *message, size_t bytes, weft_diag_t *diag,
                                 step_wire_header_t *h)
{
    if (bytes < sizeof(*h)) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "step message: %zu bytes", bytes);
    }
    memcpy(h, message, sizeof(*h));
    if (h->magic != STEP_WIRE_MAGIC) {
        return malformed(diag, "begins with", h->magic, STEP_WIRE_MAGIC);
    }
    if (h->version != STEP_PLAN_VERSION) {
        return malformed(diag, "version", h->version, STEP_PLAN_VERSION);
    }
    if (h->kind != STEP_WIRE_PLAN && h->kind != STEP_WIRE_STOP) {
        return malformed(diag, "kind", h->kind, STEP_WIRE_PLAN);
    }
    return WEFT_OK;
}

/* Every count is within its limit, and together they are the message, no more and no less. */
static weft_status_t check_counts(const step_wire_header_t *h, size_t bytes,
                                  const step_wire_bounds_t *bounds, weft_diag_t *diag)
{
    const step_limits_t *limits = &bounds->limits;
    const uint32_t mask_words = h->kind == STEP_WIRE_STOP ? 0 : step_wire_mask_words(bounds->vocab);
    const struct {
        const char *name;
        uint32_t n;
        uint32_t max;
    } counts[] = {
        {"binds", h->n_binds, limits->max_slots},
        {"rows", h->n_rows, limits->max_slots},
        {"biases", h->n_biases, limits->max_biases},
        {"blocks", h->n_blocks, limits->max_blocks},
        {"tokens", h->n_tokens, limits->max_bind_tokens},
        {"masks", h->n_masks, h->n_rows},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(counts); i++) {
        if (counts[i].n > counts[i].max) {
            return weft_diag(diag, WEFT_ERR_MALFORMED, "step message: %u %s, at most %u",
                             counts[i].n, counts[i].name, counts[i].max);
        }
    }
    if (h->mask_words != mask_words) {
        return malformed(diag, "words of a mask", h->mask_words, mask_words);
    }
    if (bytes != sizeof(*h) + body_bytes(h) || (h->kind == STEP_WIRE_STOP && bytes > sizeof(*h))) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "step message: %zu bytes, its parts have %zu",
                         bytes, sizeof(*h) + body_bytes(h));
    }
    return WEFT_OK;
}

static const char *take(const char *at, void *to, size_t bytes)
{
    if (bytes > 0) {
        memcpy(to, at, bytes);
    }
    return at + bytes;
}

static const char *take_parts(const char *at, const step_wire_header_t *h, step_plan_t *plan)
{
    step_plan_clear(plan, h->step);
    plan->n_binds = h->n_binds;
    plan->n_rows = h->n_rows;
    plan->n_biases = h->n_biases;
    plan->n_blocks = h->n_blocks;
    plan->n_tokens = h->n_tokens;
    at = take(at, plan->binds, h->n_binds * sizeof(step_bind_t));
    at = take(at, plan->rows, h->n_rows * sizeof(step_row_t));
    at = take(at, plan->biases, h->n_biases * sizeof(step_bias_t));
    at = take(at, plan->blocks, h->n_blocks * sizeof(step_block_t));
    return take(at, plan->tokens, h->n_tokens * sizeof(int32_t));
}

/* Of a plan that has been checked: its rows name slots that there are. */
static weft_status_t take_masks(const char *at, const step_wire_header_t *h,
                                const step_plan_t *plan, weft_diag_t *diag, uint32_t *masks)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        if ((plan->rows[i].flags & STEP_ROW_MASKED) == 0) {
            continue;
        }
        if (++n > h->n_masks) {
            break;
        }
        at = take(at, masks + (size_t)plan->rows[i].slot * h->mask_words,
                  h->mask_words * sizeof(uint32_t));
    }
    return n == h->n_masks ? WEFT_OK : malformed(diag, "masks", h->n_masks, n);
}

static bool are_tokens(const int32_t *tokens, uint32_t n, uint32_t vocab)
{
    bool are = true;
    for (uint32_t i = 0; i < n; i++) {
        are &= (uint32_t)tokens[i] < vocab;
    }
    return are;
}

static bool are_biases(const step_bias_t *biases, uint32_t n, uint32_t vocab)
{
    bool are = true;
    for (uint32_t i = 0; i < n; i++) {
        are &= (uint32_t)biases[i].token < vocab;
    }
    return are;
}

static bool are_blocks(const step_block_t *blocks, uint32_t n, uint32_t n_blocks)
{
    bool are = true;
    for (uint32_t i = 0; i < n; i++) {
        are &= blocks[i].block < n_blocks;
    }
    return are;
}

/* What it says must be what this rank has: the kernels look at nothing again. */
static weft_status_t check_plan(const step_plan_t *plan, const step_wire_bounds_t *bounds,
                                weft_diag_t *diag)
{
    if (step_plan_check(plan, &bounds->limits, diag) < 0) {
        return WEFT_ERR_MALFORMED;
    }
    if (!are_tokens(plan->tokens, plan->n_tokens, bounds->vocab) ||
        !are_biases(plan->biases, plan->n_biases, bounds->vocab)) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "step message: a token that is not one of %u",
                         bounds->vocab);
    }
    if (!are_blocks(plan->blocks, plan->n_blocks, bounds->n_blocks)) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "step message: a block that is not one of %u",
                         bounds->n_blocks);
    }
    return WEFT_OK;
}

bool step_wire_has_orders(step_wire_kind_t kind, const void *message, size_t bytes,
                          const void **orders_out, size_t *bytes_out)
{
    const step_wire_header_t wanted = {
        .magic = STEP_WIRE_MAGIC, .version = STEP_PLAN_VERSION, .kind = (uint16_t)kind};
    if (bytes < sizeof(wanted) || memcmp(message, &wanted, sizeof(wanted)) != 0) {
        return false;
    }
    *orders_out = (const char *)message + sizeof(wanted);
    *bytes_out = bytes - sizeof(wanted);
    return true;
}

weft_status_t step_wire_decode(const void *message, size_t bytes, const step_wire_bounds_t *bounds,
                               weft_diag_t *diag, step_plan_t *plan, uint32_t *masks,
                               bool *is_stop_out)
{
    step_wire_header_t h;
    weft_status_t status = read_header(message, bytes, diag, &h);
    if (status >= 0) {
        status = check_counts(&h, bytes, bounds, diag);
    }
    if (status < 0) {
        return status;
    }
    const char *at = take_parts((const char *)message + sizeof(h), &h, plan);
    status = check_plan(plan, bounds, diag);
    if (status >= 0) {
        status = take_masks(at, &h, plan, diag, masks);
    }
    if (status < 0) {
        return status;
    }
    *is_stop_out = h.kind == STEP_WIRE_STOP;
    return WEFT_OK;
}
