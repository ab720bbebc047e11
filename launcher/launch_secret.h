/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_secret: the keys of a group's CURVE, made of what is in its secret file.
 *
 * Both sides derive both pairs, so that each knows who the other must be: the leader's pair by
 * HKDF-SHA256 (RFC 5869) of the file's bytes, salt "weft rendezvous 1", info "leader"; the followers'
 * with info "follower". The 32 bytes are the X25519 secret key.
 */
#pragma once

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define LAUNCH_KEY_BYTES        32
#define LAUNCH_SECRET_MIN_BYTES 16
#define LAUNCH_SECRET_MAX_BYTES 65536

typedef struct launch_key_pair {
    uint8_t public_key[LAUNCH_KEY_BYTES];
    uint8_t secret_key[LAUNCH_KEY_BYTES];
} launch_key_pair_t;

typedef struct launch_secret {
    launch_key_pair_t leader;
    launch_key_pair_t follower;
} launch_secret_t;

/*
 * Reads the file. WEFT_ERR_DENIED: others than its owner may read it. WEFT_ERR_INVALID: too short or
 * too long, or no plain file.
 */
weft_status_t launch_secret_read(const char *path, weft_diag_t *diag, launch_secret_t *secret_out);
void launch_secret_wipe(launch_secret_t *secret);
