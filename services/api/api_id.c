/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_id.h"

#include <stdint.h>
#include <stdio.h>
#include <sys/random.h>

#include "base/clock.h"

void api_id_random(char *out)
{
    uint64_t words[2];

    /* getrandom does not fail for 16 bytes once the kernel is up; early on, the clock will do. */
    if (getrandom(words, sizeof(words), GRND_NONBLOCK) != (ssize_t)sizeof(words)) {
        words[0] = weft_clock_ns();
        words[1] = weft_wallclock_ns();
    }
    snprintf(out, API_ID_LENGTH + 1, "%016llx%016llx", (unsigned long long)words[0],
             (unsigned long long)words[1]);
}

bool api_id_is_usable(const char *id)
{
    for (size_t i = 0; id[i] != '\0'; i++) {
        unsigned char byte = (unsigned char)id[i];
        if (i >= API_ID_MAX_BYTES || byte < 0x20 || byte == 0x7f) {
            return false;
        }
    }
    return true;
}
