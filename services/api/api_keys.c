/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <string.h>
#include <strings.h>

static void digest(const char *text, unsigned char out[SHA256_DIGEST_LENGTH])
{
    SHA256((const unsigned char *)text, strlen(text), out);
}

bool api_keys_accept(const weft_list_t *keys, const char *authorization)
{
    static const char scheme[] = "Bearer ";
    unsigned char given[SHA256_DIGEST_LENGTH];
    unsigned char known[SHA256_DIGEST_LENGTH];
    bool is_accepted = false;

    if (keys->count == 0) {
        return true;
    }
    if (authorization == NULL || strncasecmp(authorization, scheme, sizeof(scheme) - 1) != 0) {
        return false;
    }
    digest(authorization + sizeof(scheme) - 1, given);
    for (uint32_t i = 0; i < keys->count; i++) {
        digest(keys->items[i], known);
        is_accepted |= CRYPTO_memcmp(given, known, sizeof(given)) == 0;
    }
    return is_accepted;
}
