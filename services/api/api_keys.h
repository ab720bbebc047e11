/* SPDX-License-Identifier: Apache-2.0 */
/* api_keys: who may call. */
#pragma once

#include <stdbool.h>

#include "base/option.h"

/*
 * Whether authorization ("Bearer <key>", NULL: none sent) holds one of keys. Always so when there
 * are none. Takes the same time whichever key, and however much of one, matches.
 */
bool api_keys_accept(const weft_list_t *keys, const char *authorization);
