/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/fabric_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/loop_backend.h"

#define PROBE_BYTES ((size_t)4096) /* for an end that is opened to see whether it can be */

/* ThreadSanitizer does not see what orders memory through libraries that it did not compile. */
static bool is_seen_through(const char *name)
{
#ifdef __SANITIZE_THREAD__
    return strcmp(name, "ucx") != 0 && strcmp(name, "ofi") != 0;
#else
    return name != NULL;
#endif
}

static bool is_wanted(const char *name)
{
    const char *only = getenv("WEFT_TEST_BACKEND");
    return is_seen_through(name) && (only == NULL || strcmp(only, name) == 0);
}

static bool can_open(const fabric_config_t *config)
{
    fabric_end_t end;
    if (fabric_end_try_open(config, "probe", &end) < 0) {
        return false;
    }
    fabric_end_close(&end);
    return true;
}

/* Variants: driven by the caller or by a thread, in memory that can be mapped or that cannot. */
enum { WITH_THREAD = 1, IN_PRIVATE = 2, EVERY_VARIANT = 1, OPPOSITES = WITH_THREAD | IN_PRIVATE };

static void claim_for_backend(const xfer_backend_t *backend, const xfer_backend_t *const *table,
                              const char *params, int step, fabric_claim_fn *claim)
{
    fabric_case_t test = {.backend = backend};
    bool can_be_had = false;
    for (int variant = 0; variant <= (WITH_THREAD | IN_PRIVATE); variant += step) {
        test.config = (fabric_config_t){.table = table,
                                        .backends = backend->name,
                                        .params = params,
                                        .has_thread = (variant & WITH_THREAD) != 0,
                                        .is_private = (variant & IN_PRIVATE) != 0,
                                        .bytes = FABRIC_CASE_BYTES};
        can_be_had = can_be_had || can_open(&test.config);
        if (can_be_had) {
            print_message("backend=%s params=%s thread=%d private=%d\n", backend->name,
                          params == NULL ? "" : params, test.config.has_thread,
                          test.config.is_private);
            claim(&test);
        }
    }
}

/* tcp1 and so on: the code of tcp, whose row says it all. */
static bool is_rail_beside(const xfer_backend_t *row)
{
    return (row->caps & XFER_CAP_NAMED) != 0 && (row->caps & XFER_CAP_RAIL) != 0;
}

/* A backend that wraps others around each that it can; those are tested by themselves. */
static void claim_for_wrapper(const xfer_backend_t *wrapper, fabric_claim_fn *claim)
{
    const uint32_t needed = wrapper->caps & ~XFER_CAP_NAMED;
    for (size_t i = 0; xfer_backends[i] != NULL; i++) {
        const xfer_backend_t *row = xfer_backends[i];
        const fabric_config_t config = {.backends = row->name, .bytes = PROBE_BYTES};
        char params[64];
        if (row != wrapper && !is_rail_beside(row) && (row->caps & needed) == needed &&
            can_open(&config)) {
            snprintf(params, sizeof(params), "%s.under=%s", wrapper->name, row->name);
            claim_for_backend(wrapper, NULL, params, OPPOSITES, claim);
        }
    }
}

static const char *params_of(const xfer_backend_t *row)
{
    return strcmp(row->name, "ofi") == 0 ? FABRIC_OFI_PARAMS : NULL;
}

void fabric_claim_for_rows(uint32_t caps, fabric_claim_fn *claim)
{
    for (size_t i = 0; xfer_backends[i] != NULL; i++) {
        const xfer_backend_t *row = xfer_backends[i];
        if ((row->caps & caps) != caps || !is_wanted(row->name) || is_rail_beside(row)) {
            continue;
        }
        if ((row->caps & XFER_CAP_NAMED) != 0) {
            claim_for_wrapper(row, claim);
        } else {
            claim_for_backend(row, NULL, params_of(row), EVERY_VARIANT, claim);
        }
    }
}

void fabric_claim_for_all(uint32_t caps, fabric_claim_fn *claim)
{
    if ((loop_backend.caps & caps) == caps && is_wanted("loop")) {
        claim_for_backend(&loop_backend, loop_backends, NULL, EVERY_VARIANT, claim);
    }
    fabric_claim_for_rows(caps, claim);
}

/* ---- two agents in this process -------------------------------------------------------------- */

void fabric_pair_open(const fabric_case_t *test, fabric_pair_t *pair)
{
    fabric_end_open(&test->config, "a", &pair->a);
    fabric_end_open(&test->config, "b", &pair->b);
    pair->ends[0] = &pair->a;
    pair->ends[1] = &pair->b;
    pair->peer = fabric_introduce(&pair->a, &pair->b);
    fabric_fill(&pair->a, 1);
    fabric_fill(&pair->b, 2);
}

void fabric_pair_close(fabric_pair_t *pair)
{
    fabric_end_close(&pair->a);
    fabric_end_close(&pair->b);
}

xfer_request_t *fabric_pair_copy(fabric_pair_t *pair, xfer_direction_t direction, uint64_t at,
                                 uint64_t peer_at, uint64_t n)
{
    return fabric_copy(&pair->a, pair->peer, direction, at, fabric_addr(&pair->b, peer_at), n);
}

weft_status_t fabric_pair_run(fabric_pair_t *pair, xfer_request_t *request)
{
    return fabric_run(request, pair->ends, 2);
}
