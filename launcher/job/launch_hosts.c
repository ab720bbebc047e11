/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_hosts.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "base/compiler.h"

#define MAX_FILE_BYTES ((size_t)16 << 20)

/* A walk over text; line and column are those of `at`. */
typedef struct cursor {
    const char *at;
    const char *end;
    const char *line_start;
    uint32_t line;
    const char *name; /* of the file; NULL: of a list, which has columns alone */
    weft_diag_t *diag;
} cursor_t;

static weft_status_t complain(const cursor_t *c, const char *at, const char *what)
{
    const unsigned column = (unsigned)(at - c->line_start) + 1;
    return c->name != NULL ? weft_diag(c->diag, WEFT_ERR_MALFORMED, "%s:%u:%u: %s", c->name,
                                       c->line, column, what)
                           : weft_diag(c->diag, WEFT_ERR_MALFORMED, "column %u: %s", column, what);
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static void skip_blanks(cursor_t *c)
{
    while (c->at < c->end && is_blank(*c->at)) {
        c->at++;
    }
}

static bool is_at_end(const cursor_t *c)
{
    return c->at == c->end || *c->at == '\n' || *c->at == '#';
}

/* ---- parts of a line ------------------------------------------------------------------------- */

static weft_status_t read_number(cursor_t *c, const char *what, uint32_t *number_out)
{
    const char *start = c->at;
    char why[96];
    uint64_t value = 0;
    while (c->at < c->end && isdigit((unsigned char)*c->at) && value <= LAUNCH_MAX_RANKS) {
        value = value * 10 + (uint64_t)(*c->at++ - '0');
    }
    if (c->at == start || value < 1 || value > LAUNCH_MAX_RANKS) {
        snprintf(why, sizeof(why), "%s takes a number from 1 to %d", what, LAUNCH_MAX_RANKS);
        return complain(c, start, why);
    }
    *number_out = (uint32_t)value;
    return WEFT_OK;
}

/* What ssh could take for an option of its own is no name. */
static bool is_name_char(char c, bool is_first)
{
    return isalnum((unsigned char)c) || (!is_first && c != '\0' && strchr("-._@%+", c) != NULL) ||
           c == '_';
}

/* "[::1]" */
static weft_status_t read_v6(cursor_t *c, launch_seats_t *seats)
{
    const char *start = c->at++;
    while (c->at < c->end && (isxdigit((unsigned char)*c->at) || *c->at == ':' || *c->at == '.')) {
        c->at++;
    }
    const size_t length = (size_t)(c->at - start) - 1;
    if (c->at == c->end || *c->at != ']') {
        return complain(c, start, "a '[' without its ']'");
    }
    c->at++;
    struct in6_addr address;
    if (length < sizeof(seats->name)) {
        memcpy(seats->name, start + 1, length);
        seats->name[length] = '\0';
    }
    if (length >= sizeof(seats->name) || inet_pton(AF_INET6, seats->name, &address) != 1) {
        return complain(c, start, "not an IPv6 address");
    }
    return WEFT_OK;
}

static weft_status_t read_name(cursor_t *c, launch_seats_t *seats)
{
    const char *start = c->at;
    if (c->at < c->end && *c->at == '[') {
        return read_v6(c, seats);
    }
    while (c->at < c->end && is_name_char(*c->at, c->at == start)) {
        c->at++;
    }
    const size_t length = (size_t)(c->at - start);
    if (length == 0) {
        return complain(c, start, "a host's name must be here");
    }
    if (length >= sizeof(seats->name)) {
        return complain(c, start, "a host's name has at most 255 characters");
    }
    memcpy(seats->name, start, length);
    seats->name[length] = '\0';
    return WEFT_OK;
}

/* name or name:4 */
static weft_status_t read_host(cursor_t *c, launch_seats_t *seats)
{
    weft_status_t status = read_name(c, seats);
    if (status >= 0 && c->at < c->end && *c->at == ':') {
        c->at++;
        status = read_number(c, "':'", &seats->slots);
    }
    return status;
}

/* slots = 4 */
static weft_status_t read_setting(cursor_t *c, launch_seats_t *seats)
{
    static const struct {
        const char *key;
        bool is_max;
    } keys[] = {{"slots", false}, {"max_slots", true}, {"max-slots", true}};
    const char *start = c->at;
    while (c->at < c->end && (isalpha((unsigned char)*c->at) || *c->at == '_' || *c->at == '-')) {
        c->at++;
    }
    const size_t length = (size_t)(c->at - start);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(keys); i++) {
        if (strlen(keys[i].key) != length || strncmp(keys[i].key, start, length) != 0) {
            continue;
        }
        skip_blanks(c);
        if (c->at == c->end || *c->at != '=') {
            return complain(c, c->at, "'=' must be here");
        }
        c->at++;
        skip_blanks(c);
        return read_number(c, keys[i].key, keys[i].is_max ? &seats->max_slots : &seats->slots);
    }
    return complain(c, start, "only slots=N and max_slots=N are known behind a host");
}

static weft_status_t add(const cursor_t *c, const char *start, launch_hosts_t *hosts,
                         const launch_seats_t *seats)
{
    const weft_status_t status = launch_hosts_add(hosts, seats);
    return status == WEFT_ERR_NO_MEMORY ? weft_diag(c->diag, status, "hosts: out of memory")
           : status < 0                 ? complain(c, start, "too many hosts or slots")
                                        : WEFT_OK;
}

static weft_status_t read_line(cursor_t *c, launch_hosts_t *hosts)
{
    launch_seats_t seats = {.slots = 1};
    skip_blanks(c);
    if (is_at_end(c)) {
        return WEFT_OK;
    }
    const char *start = c->at;
    weft_status_t status = read_host(c, &seats);
    while (status >= 0 && !is_at_end(c)) {
        const char *before = c->at;
        skip_blanks(c);
        if (c->at == before) {
            return complain(c, c->at, "no host's name has this character");
        }
        status = is_at_end(c) ? WEFT_OK : read_setting(c, &seats);
    }
    if (status < 0) {
        return status;
    }
    if (seats.max_slots > 0 && seats.max_slots < seats.slots) {
        return complain(c, start, "more slots than max_slots");
    }
    return add(c, start, hosts, &seats);
}

/* ---- whole texts ----------------------------------------------------------------------------- */

weft_status_t launch_hosts_parse(launch_hosts_t *hosts, const char *text, size_t length,
                                 const char *name, weft_diag_t *diag)
{
    cursor_t c = {text, text + length, text, 1, name, diag};
    for (;;) {
        const weft_status_t status = read_line(&c, hosts);
        if (status < 0) {
            return status;
        }
        const char *newline = memchr(c.at, '\n', (size_t)(c.end - c.at));
        if (newline == NULL) {
            return WEFT_OK;
        }
        c.at = c.line_start = newline + 1;
        c.line++;
    }
}

static weft_status_t read_file(const char *path, weft_buffer_t *text, weft_diag_t *diag)
{
    char bytes[4096];
    ssize_t n;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "%s: %s", path, strerror(errno));
    }
    while ((n = read(fd, bytes, sizeof(bytes))) > 0 && text->length <= MAX_FILE_BYTES) {
        weft_buffer_append(text, bytes, (size_t)n);
    }
    const int error = errno;
    close(fd);
    if (n < 0) {
        return weft_diag(diag, WEFT_ERR_IO, "%s: %s", path, strerror(error));
    }
    if (text->is_failed) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "%s: out of memory", path);
    }
    return n == 0 ? WEFT_OK
                  : weft_diag(diag, WEFT_ERR_TOO_LARGE, "%s: no hostfile is that large", path);
}

weft_status_t launch_hosts_read(launch_hosts_t *hosts, const char *path, weft_diag_t *diag)
{
    weft_buffer_t text = {0};
    weft_status_t status = read_file(path, &text, diag);
    if (status >= 0 && text.length > 0) {
        status = launch_hosts_parse(hosts, text.data, text.length, path, diag);
    }
    weft_buffer_free(&text);
    if (status >= 0 && hosts->n == 0) {
        status = weft_diag(diag, WEFT_ERR_MALFORMED, "%s: names no host", path);
    }
    return status;
}

weft_status_t launch_hosts_parse_list(launch_hosts_t *hosts, const char *list, weft_diag_t *diag)
{
    cursor_t c = {list, list + strlen(list), list, 1, NULL, diag};
    for (;;) {
        launch_seats_t seats = {.slots = 1};
        const char *start = c.at;
        weft_status_t status = read_host(&c, &seats);
        if (status < 0) {
            return status;
        }
        if (c.at < c.end && *c.at != ',') {
            return complain(&c, c.at, "no host's name has this character");
        }
        status = add(&c, start, hosts, &seats);
        if (status < 0 || c.at == c.end) {
            return status;
        }
        c.at++;
    }
}

static weft_status_t add_slots(launch_seats_t *known, const launch_seats_t *seats)
{
    if (known->slots + seats->slots > LAUNCH_MAX_RANKS) {
        return WEFT_ERR_TOO_LARGE;
    }
    known->slots += seats->slots;
    known->max_slots = seats->max_slots > 0 ? seats->max_slots : known->max_slots;
    if (known->max_slots > 0 && known->max_slots < known->slots) {
        known->max_slots = known->slots;
    }
    return WEFT_OK;
}

weft_status_t launch_hosts_add(launch_hosts_t *hosts, const launch_seats_t *seats)
{
    for (uint32_t i = 0; i < hosts->n; i++) {
        if (strcmp(hosts->all[i].name, seats->name) == 0) {
            return add_slots(&hosts->all[i], seats);
        }
    }
    if (hosts->n == LAUNCH_MAX_HOSTS) {
        return WEFT_ERR_TOO_LARGE;
    }
    if ((hosts->n & (hosts->n - 1)) == 0) { /* full at 0, 1, 2, 4, 8 … */
        const size_t capacity = hosts->n == 0 ? 1 : 2 * (size_t)hosts->n;
        launch_seats_t *all = weft_realloc(hosts->all, capacity * sizeof(*all), "launch.hosts");
        if (all == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
        hosts->all = all;
    }
    hosts->all[hosts->n++] = *seats;
    return WEFT_OK;
}

void launch_hosts_fini(launch_hosts_t *hosts)
{
    weft_free(hosts->all);
    *hosts = (launch_hosts_t){0};
}

/* ---- this machine ---------------------------------------------------------------------------- */

static bool is_own_name(const char *name)
{
    char own[LAUNCH_NAME_BYTES] = "";
    gethostname(own, sizeof(own) - 1);
    if (strcasecmp(name, "localhost") == 0 || strcasecmp(name, own) == 0) {
        return true;
    }
    const size_t length = strcspn(own, ".");
    return length > 0 && strncasecmp(name, own, length) == 0 && name[length] == '\0';
}

static bool is_address_of(const struct sockaddr *address, const char *text)
{
    char shown[INET6_ADDRSTRLEN] = "";
    if (address == NULL) {
        return false;
    }
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)address;
        inet_ntop(AF_INET, &v4->sin_addr, shown, sizeof(shown));
    } else if (address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const void *)address;
        inet_ntop(AF_INET6, &v6->sin6_addr, shown, sizeof(shown));
    }
    return strcmp(shown, text) == 0;
}

bool launch_hosts_is_here(const char *name)
{
    struct ifaddrs *all = NULL;
    bool is_here = is_own_name(name);
    if (is_here || getifaddrs(&all) != 0) {
        return is_here;
    }
    for (const struct ifaddrs *one = all; one != NULL && !is_here; one = one->ifa_next) {
        is_here = is_address_of(one->ifa_addr, name);
    }
    freeifaddrs(all);
    return is_here;
}
