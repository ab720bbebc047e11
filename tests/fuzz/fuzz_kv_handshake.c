/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_kv_handshake: what the side channel brings, a request or a payload. What is accepted takes
 * memory in proportion, has regions and numbers that can be, and says the same after it was written
 * and read again.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "kvstore/transfer/kv_compat.h"
#include "kvstore/transfer/kv_handshake.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool claim)
{
    if (!claim) {
        abort();
    }
}

static void check_request(const uint8_t *data, size_t size)
{
    kv_meta_request_t request;
    kv_meta_request_t again;
    weft_buffer_t out = {0};
    double seconds;
    kv_clock_decode(data, size, &seconds);
    if (kv_meta_request_decode(data, size, &request) == WEFT_OK) {
        kv_meta_request_encode(request, &out);
        require(kv_meta_request_decode(out.data, out.length, &again) == WEFT_OK);
        require(again.pp_rank == request.pp_rank && again.tp_rank == request.tp_rank);
        weft_buffer_free(&out);
    }
}

static void check_regions(const kv_agent_meta_t *agent)
{
    const uint32_t n = agent->kv_caches_base_addr.n;
    require(n > 0 && agent->block_lens.n == n && agent->block_strides.n == n);
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t bytes = agent->block_strides.items[i] * agent->num_blocks;
        require(bytes / agent->num_blocks == agent->block_strides.items[i]);
        require(agent->kv_caches_base_addr.items[i] + bytes >= bytes);
    }
}

static void encode(const kv_handshake_t *handshake, weft_buffer_t *out)
{
    weft_buffer_t agent = {0};
    char *hash = strndup(handshake->compatibility_hash.data, handshake->compatibility_hash.length);
    require(hash != NULL);
    kv_agent_meta_encode(&handshake->agent, &agent);
    kv_payload_encode(hash, agent.data, agent.length, out);
    weft_buffer_free(&agent);
    free(hash);
}

static void check_round_trip(const kv_handshake_t *handshake)
{
    weft_buffer_t once = {0};
    weft_buffer_t twice = {0};
    kv_handshake_t again;
    encode(handshake, &once);
    require(kv_handshake_decode(once.data, once.length, NULL, &again) == WEFT_OK);
    encode(&again, &twice);
    require(once.length == twice.length && memcmp(once.data, twice.data, once.length) == 0);
    kv_handshake_fini(&again);
    weft_buffer_free(&once);
    weft_buffer_free(&twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const size_t before = weft_alloc_live_bytes();
    weft_diag_t diag = {0};
    kv_handshake_t handshake;
    check_request(data, size);
    const weft_status_t status = kv_handshake_decode(data, size, &diag, &handshake);
    require(status == WEFT_OK || (status < 0 && diag.text[0] != '\0'));
    if (status == WEFT_OK) {
        require(weft_alloc_live_bytes() - before <= 64 * size + 65536);
        check_regions(&handshake.agent);
        if (handshake.is_weft) {
            kv_compat_check(&handshake.weft, &handshake.weft, &diag);
        }
        check_round_trip(&handshake);
        kv_handshake_fini(&handshake);
    }
    require(weft_alloc_live_bytes() == before);
    return 0;
}
