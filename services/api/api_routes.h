/* SPDX-License-Identifier: Apache-2.0 */
/* api_routes: the table of what is served where. */
#pragma once

#include "services/api/api_call.h"

#define ROUTE_JSON           UINT32_C(1)    /* the body must be application/json */
#define ROUTE_LOAD           UINT32_C(2)    /* counts in /load */
#define ROUTE_QUIET          UINT32_C(4)    /* not in the HTTP metrics */
#define ROUTE_WHILE_DRAINING UINT32_C(8)    /* served after SIGTERM too */
#define ROUTE_PREFIX         UINT32_C(16)   /* and everything below it */
#define ROUTE_DEV            UINT32_C(32)   /* with --server-dev-mode alone */
#define ROUTE_ONE_RANK       UINT32_C(64)   /* a data-parallel rank is chosen to answer */
#define ROUTE_ALL_RANKS      UINT32_C(128)  /* every rank hears of it, unless one is named */
#define ROUTE_GENERATE       UINT32_C(256)  /* of models that answer */
#define ROUTE_EMBED          UINT32_C(512)  /* of models that give embeddings */
#define ROUTE_ADAPTERS       UINT32_C(1024) /* where adapters may come and go */

struct api_route {
    const char *method;
    const char *path;
    void (*prepare)(api_call_t *call);
    void (*answer)(api_call_t *call);
    uint32_t flags;
};

/* absent: flags of routes that are not served. NULL: the error says 404, and what turns the route on, or 405. */
const api_route_t *api_routes_find(const char *method, const char *path, uint32_t absent,
                                   api_error_t *error);

#define API_ROUTES_METHODS 32 /* bytes of a list of all methods */

/* Methods of the routes of path, as the header Allow lists them; "": there is no route. */
void api_routes_methods(const char *path, uint32_t absent, char list_out[API_ROUTES_METHODS]);

/* Whether path is one of those that API keys guard. */
bool api_routes_is_guarded(const char *path);
