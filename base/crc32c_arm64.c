/* SPDX-License-Identifier: Apache-2.0 */
#if defined(__aarch64__)
#include <string.h>
#include <sys/auxv.h>

#include <arm_acle.h>
#include <arm_neon.h>
#include <asm/hwcap.h>

#include "base/compiler.h"
#include "base/crc32c_priv.h"

#define STREAMS WEFT_TARGET("+crc+crypto")

static uint64_t load_u64(const uint8_t *data)
{
    uint64_t word;
    memcpy(&word, data, sizeof(word));
    return word;
}

STREAMS static uint32_t update_one(uint32_t state, const uint8_t *data, size_t bytes)
{
    for (; bytes >= 8; data += 8, bytes -= 8) {
        state = __crc32cd(state, load_u64(data));
    }
    for (; bytes > 0; data++, bytes--) {
        state = __crc32cb(state, *data);
    }
    return state;
}

STREAMS static uint32_t shift(uint32_t state, uint32_t by)
{
    const poly128_t product = vmull_p64((poly64_t)state, (poly64_t)by);
    return __crc32cd(0, (uint64_t)product);
}

/* Of three streams of n bytes (a multiple of 8), one behind the other. */
STREAMS static uint32_t update_three(uint32_t state, const uint8_t *data, size_t n, uint32_t once,
                                     uint32_t twice)
{
    uint32_t b = 0;
    uint32_t c = 0;
    for (const uint8_t *end = data + n; data < end; data += 8) {
        state = __crc32cd(state, load_u64(data));
        b = __crc32cd(b, load_u64(data + n));
        c = __crc32cd(c, load_u64(data + 2 * n));
    }
    return shift(state, twice) ^ shift(b, once) ^ c;
}

STREAMS static uint32_t update_streams(uint32_t state, const uint8_t *data, size_t bytes)
{
    for (; bytes >= 3 * WEFT_CRC32C_LONG;
         data += 3 * WEFT_CRC32C_LONG, bytes -= 3 * WEFT_CRC32C_LONG) {
        state = update_three(state, data, WEFT_CRC32C_LONG, WEFT_CRC32C_SHIFT_LONG,
                             WEFT_CRC32C_SHIFT_LONG2);
    }
    for (; bytes >= 3 * WEFT_CRC32C_SHORT;
         data += 3 * WEFT_CRC32C_SHORT, bytes -= 3 * WEFT_CRC32C_SHORT) {
        state = update_three(state, data, WEFT_CRC32C_SHORT, WEFT_CRC32C_SHIFT_SHORT,
                             WEFT_CRC32C_SHIFT_SHORT2);
    }
    return update_one(state, data, bytes);
}

size_t weft_crc32c_machine_ways(weft_crc32c_way_t ways_out[WEFT_CRC32C_MACHINE_WAYS])
{
    const unsigned long needed = HWCAP_CRC32 | HWCAP_PMULL;
    if ((getauxval(AT_HWCAP) & needed) != needed) {
        return 0;
    }
    ways_out[0] = (weft_crc32c_way_t){"streams", update_streams};
    return 1;
}
#else
typedef int crc32c_arm64_is_empty; /* ISO C wants a declaration */
#endif
