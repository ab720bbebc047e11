/* SPDX-License-Identifier: Apache-2.0 */
/* coll_place: whether ranks run on one host and can meet there. */
#pragma once

#include "transport/coll/coll.h"

/*
 * Collective. WEFT_ERR_UNSUPPORTED, with a diag line: some rank is on another host than this one, or in
 * another network namespace, where sockets' names are others.
 */
weft_status_t coll_place_check(const coll_config_t *config, weft_diag_t *diag);
