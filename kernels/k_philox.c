/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_philox.h"

void k_philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t words_out[4])
{
    uint32_t c0 = counter[0];
    uint32_t c1 = counter[1];
    uint32_t c2 = counter[2];
    uint32_t c3 = counter[3];
    uint32_t k0 = key[0];
    uint32_t k1 = key[1];

    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = (uint64_t)c0 * UINT32_C(0xD2511F53);
        const uint64_t product1 = (uint64_t)c2 * UINT32_C(0xCD9E8D57);
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += UINT32_C(0x9E3779B9);
        k1 += UINT32_C(0xBB67AE85);
    }
    words_out[0] = c0;
    words_out[1] = c1;
    words_out[2] = c2;
    words_out[3] = c3;
}
