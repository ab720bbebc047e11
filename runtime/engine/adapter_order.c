/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/adapter_order.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "sent as it lies in memory");

/* Both texts follow, each with its zero. */
typedef struct head {
    uint32_t verb;
    uint32_t place;
    uint64_t serial;
    uint32_t name_bytes;
    uint32_t path_bytes;
} head_t;

static_assert(sizeof(head_t) == 24, "on the wire");

size_t adapter_order_encode(const adapter_order_t *order, void *out)
{
    const size_t name_bytes = strlen(order->name) + 1;
    const size_t path_bytes = strlen(order->path) + 1;
    const size_t room = ADAPTER_ORDER_MAX_BYTES - sizeof(head_t);
    if (name_bytes > room || path_bytes > room - name_bytes) {
        return 0;
    }
    const head_t head = {order->verb, order->place, order->serial, (uint32_t)name_bytes,
                         (uint32_t)path_bytes};
    char *at = out;
    memcpy(at, &head, sizeof(head));
    memcpy(at + sizeof(head), order->name, name_bytes);
    memcpy(at + sizeof(head) + name_bytes, order->path, path_bytes);
    return sizeof(head) + name_bytes + path_bytes;
}

static bool is_text(const char *text, size_t bytes)
{
    return bytes > 0 && memchr(text, '\0', bytes) == text + bytes - 1;
}

weft_status_t adapter_order_decode(const void *bytes, size_t n, weft_diag_t *diag,
                                   adapter_order_t *order_out, size_t *used_out)
{
    head_t head;
    if (n < sizeof(head)) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "adapter order: %zu bytes", n);
    }
    memcpy(&head, bytes, sizeof(head));
    const char *name = (const char *)bytes + sizeof(head);
    const size_t texts = (size_t)head.name_bytes + head.path_bytes;
    if (head.verb < ADAPTER_ORDER_LOAD || head.verb > ADAPTER_ORDER_DROP) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "adapter order: verb %u", head.verb);
    }
    if (texts > n - sizeof(head) || !is_text(name, head.name_bytes) ||
        !is_text(name + head.name_bytes, head.path_bytes)) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "adapter order: texts of %u and %u bytes",
                         head.name_bytes, head.path_bytes);
    }
    *order_out = (adapter_order_t){(adapter_order_verb_t)head.verb, head.place, head.serial, name,
                                   name + head.name_bytes};
    *used_out = sizeof(head) + texts;
    return WEFT_OK;
}
