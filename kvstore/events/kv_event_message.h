/* SPDX-License-Identifier: Apache-2.0 */
/* kv_event_message: a batch as the payload frame of a ZeroMQ message. */
#pragma once

#include <zmq.h>

#include "kvstore/events/kv_event_codec.h"

/* events: n encoded ones. payload_out: initialized, for zmq_msg_send or zmq_msg_close. */
weft_status_t kv_event_message(double ts, const weft_buffer_t *events, uint32_t n,
                               kv_event_int_t rank, zmq_msg_t *payload_out);

/* The sequence frame: 8 bytes, big-endian. */
void kv_event_sequence_encode(uint64_t sequence, uint8_t bytes_out[8]);
uint64_t kv_event_sequence_decode(const uint8_t bytes[8]);
