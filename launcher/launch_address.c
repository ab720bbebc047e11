/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_address.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/compiler.h"

#define SOME_PORT "9" /* nothing is sent there */

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

typedef struct network {
    uint8_t prefix[16]; /* of IPv6; IPv4 is ::ffff:a.b.c.d */
    uint8_t bits;
} network_t;

#define V4(a, b, n) {{[10] = 0xff, 0xff, a, b}, 96 + (n)}
static const network_t loopback_networks[] = {V4(127, 0, 8), {{[15] = 1}, 128}};
static const network_t private_networks[] = {
    V4(10, 0, 8),     V4(172, 16, 12),   V4(192, 168, 16),   V4(100, 64, 10),
    V4(169, 254, 16), {{0xfc, 0x00}, 7}, {{0xfe, 0x80}, 10},
};
#undef V4

static bool is_in(const uint8_t address[16], const network_t *network)
{
    const size_t whole = network->bits / 8;
    const uint8_t mask = (uint8_t)(0xff00 >> network->bits % 8);
    return memcmp(address, network->prefix, whole) == 0 &&
           (whole == 16 || ((address[whole] ^ network->prefix[whole]) & mask) == 0);
}

/* As 16 bytes of IPv6, without a zone (fe80::1%eth0). */
static bool parse_numeric(const char *text, uint8_t address_out[16])
{
    char bare[INET6_ADDRSTRLEN];
    const size_t n = strcspn(text, "%");
    if (n >= sizeof(bare)) {
        return false;
    }
    memcpy(bare, text, n);
    bare[n] = '\0';
    if (inet_pton(AF_INET6, bare, address_out) == 1) {
        return true;
    }
    memset(address_out, 0, 16);
    memset(address_out + 10, 0xff, 2);
    return inet_pton(AF_INET, bare, address_out + 12) == 1;
}

static bool is_in_any(const char *text, const network_t *networks, size_t n)
{
    uint8_t address[16];
    if (!parse_numeric(text, address)) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (is_in(address, &networks[i])) {
            return true;
        }
    }
    return false;
}

bool launch_address_is_loopback(const char *address)
{
    return is_in_any(address, loopback_networks, WEFT_ARRAY_LEN(loopback_networks));
}

bool launch_address_is_private(const char *address)
{
    return launch_address_is_loopback(address) ||
           is_in_any(address, private_networks, WEFT_ARRAY_LEN(private_networks));
}

bool launch_address_towards(const char *host, char *out, size_t size)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_DGRAM};
    struct addrinfo *list = NULL;
    struct sockaddr_storage mine;
    socklen_t length = sizeof(mine);
    bool is_found = false;
    if (getaddrinfo(host, SOME_PORT, &hints, &list) != 0) {
        return false;
    }
    const int fd = socket(list->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, list->ai_addr, list->ai_addrlen) == 0 &&
        getsockname(fd, (struct sockaddr *)&mine, &length) == 0) {
        is_found = getnameinfo((struct sockaddr *)&mine, length, out, (socklen_t)size, NULL, 0,
                               NI_NUMERICHOST) == 0;
    }
    if (fd >= 0) {
        close(fd);
    }
    freeaddrinfo(list);
    return is_found;
}
