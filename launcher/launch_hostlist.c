/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_hostlist.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

/* "[007-009,012]": the digits up to the first '-', ',' or ']'. Returns what is behind the brackets. */
static const char *first_of_brackets(const char *at, const char **digits_out, size_t *n_out)
{
    const char *end = strchr(at, ']');
    const size_t n = strspn(at + 1, "0123456789");
    if (end == NULL || n == 0 || strchr("-,]", at[1 + n]) == NULL) {
        return NULL;
    }
    for (const char *c = at + 1; c < end; c++) {
        if (!isdigit((unsigned char)*c) && *c != '-' && *c != ',') {
            return NULL;
        }
    }
    *digits_out = at + 1;
    *n_out = n;
    return end + 1;
}

static bool append(char *host, size_t size, size_t *length, const char *text, size_t n)
{
    if (*length + n >= size) {
        return false;
    }
    memcpy(host + *length, text, n);
    *length += n;
    host[*length] = '\0';
    return true;
}

static bool read_first(const char *list, char *host, size_t size)
{
    size_t length = 0;
    const char *at = list;
    while (*at != '\0' && *at != ',') {
        const char *text = at;
        size_t n = 1;
        if (*at == '[') {
            at = first_of_brackets(at, &text, &n);
        } else {
            const bool is_of_name = isalnum((unsigned char)*at) || strchr(".-_", *at) != NULL;
            at = is_of_name ? at + 1 : NULL;
        }
        if (at == NULL || !append(host, size, &length, text, n)) {
            return false;
        }
    }
    return length > 0;
}

weft_status_t launch_hostlist_first(const char *list, weft_diag_t *diag, char *host_out,
                                    size_t size)
{
    char host[256];
    if (!read_first(list, host, size < sizeof(host) ? size : sizeof(host))) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s: no list of hosts", list);
    }
    strcpy(host_out, host);
    return WEFT_OK;
}
