/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_routes.h"

#include <stdio.h>
#include <string.h>

#include "services/api/api_answers.h"
#include "services/api/api_transfer.h"
#include "services/api/generation_run.h"

static const api_route_t routes[] = {
#define ROUTE(method, path, prepare, answer, flags) {method, path, prepare, answer, flags},
#include "services/api/routes.def"
#undef ROUTE
};

static bool path_matches(const api_route_t *route, const char *path)
{
    size_t length = strlen(route->path);

    if ((route->flags & ROUTE_PREFIX) != 0) {
        return strncmp(path, route->path, length) == 0 &&
               (path[length] == '\0' || path[length] == '/');
    }
    return strcmp(path, route->path) == 0;
}

/* Why a route is not served here, for who meant it. */
static const char *reason_absent(uint32_t flags)
{
    static const struct {
        uint32_t flag;
        const char *text;
    } reasons[] = {
        {ROUTE_DEV, "Not Found: served with --server-dev-mode."},
        {ROUTE_ADAPTERS, "Not Found: served with --enable-lora and "
                         "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."},
        {ROUTE_EMBED, "Not Found: this model answers; with --runner pooling it gives embeddings."},
        {ROUTE_GENERATE, "Not Found: this model gives embeddings; with --runner generate it "
                         "answers."},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(reasons); i++) {
        if ((flags & reasons[i].flag) != 0) {
            return reasons[i].text;
        }
    }
    return "Not Found";
}

const api_route_t *api_routes_find(const char *method, const char *path, uint32_t absent,
                                   api_error_t *error)
{
    bool is_known_path = false;
    const char *no_route = "Not Found";

    for (size_t i = 0; i < WEFT_ARRAY_LEN(routes); i++) {
        const api_route_t *route = &routes[i];
        if (!path_matches(route, path)) {
            continue;
        }
        if ((route->flags & absent) != 0) {
            no_route = reason_absent(route->flags & absent);
            continue;
        }
        if (strcmp(route->method, method) == 0) {
            return route;
        }
        is_known_path = true;
    }
    if (is_known_path) {
        api_error_set(error, API_ERROR_METHOD, NULL, "Method Not Allowed");
    } else {
        api_error_set(error, API_ERROR_NO_ROUTE, NULL, "%s", no_route);
    }
    return NULL;
}

void api_routes_methods(const char *path, uint32_t absent, char list_out[API_ROUTES_METHODS])
{
    size_t length = 0;

    list_out[0] = '\0';
    for (size_t i = 0; i < WEFT_ARRAY_LEN(routes) && length < API_ROUTES_METHODS; i++) {
        const api_route_t *route = &routes[i];
        if ((route->flags & absent) == 0 && path_matches(route, path)) {
            length += (size_t)snprintf(list_out + length, API_ROUTES_METHODS - length, "%s%s",
                                       length > 0 ? ", " : "", route->method);
        }
    }
}

bool api_routes_is_guarded(const char *path)
{
    static const char *const prefixes[] = {"/v1", "/v2", "/inference", "/cohere"};

    for (size_t i = 0; i < WEFT_ARRAY_LEN(prefixes); i++) {
        if (strncmp(path, prefixes[i], strlen(prefixes[i])) == 0) {
            return true;
        }
    }
    return false;
}
