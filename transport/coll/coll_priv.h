/* SPDX-License-Identifier: Apache-2.0 */
/* coll_priv: what coll.c's siblings share. */
#pragma once

#include "transport/coll/coll_backend.h"

/*
 * Collective. The backend that the ranks use together: the one they name, or the first that every
 * rank can use. All ranks come to the same answer; diag says why, of each row.
 */
weft_status_t coll_choose_backend(const coll_config_t *config, weft_diag_t *diag,
                                  const coll_backend_t **backend_out);
