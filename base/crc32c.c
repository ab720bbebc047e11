/* SPDX-License-Identifier: Apache-2.0 */
#include "base/crc32c.h"

#include <pthread.h>

#include "base/crc32c_priv.h"

#define POLYNOMIAL UINT32_C(0x82f63b78) /* 0x1EDC6F41, bits reversed */

#if !defined(__x86_64__) && !defined(__aarch64__)
size_t weft_crc32c_machine_ways(weft_crc32c_way_t ways_out[WEFT_CRC32C_MACHINE_WAYS])
{
    (void)ways_out;
    return 0;
}
#endif

static uint32_t table[256];
static weft_crc32c_way_t ways[WEFT_CRC32C_MACHINE_WAYS + 2];
static pthread_once_t is_ready = PTHREAD_ONCE_INIT;

static void prepare(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t sum = byte;
        for (int bit = 0; bit < 8; bit++) {
            sum = sum >> 1 ^ (POLYNOMIAL & -(sum & 1));
        }
        table[byte] = sum;
    }
    ways[weft_crc32c_machine_ways(ways)] = (weft_crc32c_way_t){"table", weft_crc32c_table};
}

const weft_crc32c_way_t *weft_crc32c_ways(void)
{
    pthread_once(&is_ready, prepare);
    return ways;
}

uint32_t weft_crc32c_table(uint32_t state, const uint8_t *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        state = state >> 8 ^ table[(state ^ data[i]) & 0xff];
    }
    return state;
}

uint32_t weft_crc32c(uint32_t sum, const void *data, size_t bytes)
{
    return ~weft_crc32c_ways()[0].update(~sum, data, bytes);
}
