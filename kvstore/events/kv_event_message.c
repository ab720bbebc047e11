/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_event_message.h"

#include <string.h>

weft_status_t kv_event_message(double ts, const weft_buffer_t *events, uint32_t n,
                               kv_event_int_t rank, zmq_msg_t *payload_out)
{
    weft_buffer_t begin = {0};
    weft_buffer_t end = {0};
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    kv_event_batch_begin(&begin, ts, n);
    kv_event_batch_end(&end, rank);
    if (!begin.is_failed && !end.is_failed && !events->is_failed &&
        zmq_msg_init_size(payload_out, begin.length + events->length + end.length) == 0) {
        char *data = zmq_msg_data(payload_out);
        memcpy(data, begin.data, begin.length);
        if (events->length > 0) {
            memcpy(data + begin.length, events->data, events->length);
        }
        memcpy(data + begin.length + events->length, end.data, end.length);
        status = WEFT_OK;
    }
    weft_buffer_free(&begin);
    weft_buffer_free(&end);
    return status;
}

void kv_event_sequence_encode(uint64_t sequence, uint8_t bytes_out[8])
{
    for (unsigned i = 0; i < 8; i++) {
        bytes_out[i] = (uint8_t)(sequence >> (56 - 8 * i));
    }
}

uint64_t kv_event_sequence_decode(const uint8_t bytes[8])
{
    uint64_t sequence = 0;
    for (unsigned i = 0; i < 8; i++) {
        sequence = sequence << 8 | bytes[i];
    }
    return sequence;
}
