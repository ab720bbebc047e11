/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_address.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

/* Digits alone: strtoul would take signs and blanks. */
static bool parse_port(const char *text, uint16_t *port_out)
{
    uint32_t value = 0;
    size_t n = 0;
    for (; isdigit((unsigned char)text[n]) && n < 6; n++) {
        value = value * 10 + (uint32_t)(text[n] - '0');
    }
    if (n == 0 || text[n] != '\0' || value == 0 || value > UINT16_MAX) {
        return false;
    }
    *port_out = (uint16_t)value;
    return true;
}

/* Names, IPv4, and IPv6 with its zone (fe80::1%eth0). */
static bool is_host(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (!isalnum((unsigned char)text[i]) && strchr(".-_:%", text[i]) == NULL) {
            return false;
        }
    }
    return length > 0 && length < LAUNCH_HOST_BYTES;
}

/* The host's extent, and what follows it: "" or ":port". */
static bool split(const char *text, const char **host_out, size_t *length_out,
                  const char **rest_out)
{
    const char *first = strchr(text, ':');
    if (text[0] == '[') {
        const char *end = strchr(text, ']');
        if (end == NULL) {
            return false;
        }
        *host_out = text + 1;
        *length_out = (size_t)(end - text - 1);
        *rest_out = end + 1;
    } else {
        const bool is_v6 = first != NULL && strchr(first + 1, ':') != NULL;
        *host_out = text;
        *length_out = first == NULL || is_v6 ? strlen(text) : (size_t)(first - text);
        *rest_out = text + *length_out;
    }
    return true;
}

weft_status_t launch_address_parse(const char *text, weft_diag_t *diag,
                                   launch_address_t *address_out)
{
    launch_address_t address = {.port = 0};
    const char *host;
    const char *rest;
    size_t length;

    if (!split(text, &host, &length, &rest) || !is_host(host, length)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s: no host, host:port or [v6]:port", text);
    }
    if (rest[0] != '\0' && (rest[0] != ':' || !parse_port(rest + 1, &address.port))) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s: its port is none of 1 to 65535", text);
    }
    memcpy(address.host, host, length);
    *address_out = address;
    return WEFT_OK;
}
