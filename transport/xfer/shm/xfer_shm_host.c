/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/xfer/shm/xfer_shm_priv.h"

#define NAME_PREFIX "weft-shm-"

static int hex_value(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "3f2a09c1-…": 32 hex digits between dashes. */
static bool parse_uuid(const char *text, size_t length, uint8_t *uuid_out)
{
    size_t digits = 0;
    for (size_t i = 0; i < length && digits < 32; i++) {
        const int value = hex_value(text[i]);
        if (value >= 0) {
            uuid_out[digits / 2] = (uint8_t)(uuid_out[digits / 2] << 4 | value);
            digits++;
        }
    }
    return digits == 32;
}

static bool read_boot(uint8_t *boot_out)
{
    char text[64];
    const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    const ssize_t n = read(fd, text, sizeof(text));
    close(fd);
    return n > 0 && parse_uuid(text, (size_t)n, boot_out);
}

weft_status_t xfer_shm_host_address(xfer_shm_address_t *address_out)
{
    xfer_shm_address_t address = {.magic = XFER_SHM_MAGIC, .version = XFER_SHM_VERSION};
    struct stat namespace;
    if (!read_boot(address.boot) || stat("/proc/thread-self/ns/net", &namespace) != 0) {
        return WEFT_ERR_UNSUPPORTED;
    }
    address.network_namespace = namespace.st_ino;
    if (getrandom(address.socket, sizeof(address.socket), 0) != (ssize_t)sizeof(address.socket)) {
        return WEFT_ERR_IO;
    }
    *address_out = address;
    return WEFT_OK;
}

bool xfer_shm_host_is_shared(const xfer_shm_address_t *ours, const xfer_shm_address_t *theirs)
{
    return memcmp(ours->boot, theirs->boot, sizeof(ours->boot)) == 0 &&
           ours->network_namespace == theirs->network_namespace;
}

socklen_t xfer_shm_host_name(const xfer_shm_address_t *address, struct sockaddr_un *name_out)
{
    *name_out = (struct sockaddr_un){.sun_family = AF_UNIX};
    /* A name that begins with NUL is in no folder: nothing to clean up after a kill. */
    char *text = name_out->sun_path + 1;
    size_t length = strlen(NAME_PREFIX);
    memcpy(text, NAME_PREFIX, length);
    for (size_t i = 0; i < sizeof(address->socket); i++, length += 2) {
        text[length] = "0123456789abcdef"[address->socket[i] >> 4];
        text[length + 1] = "0123456789abcdef"[address->socket[i] & 15];
    }
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

weft_status_t xfer_shm_host_check(int fd, pid_t *pid_out)
{
    struct ucred who;
    socklen_t bytes = sizeof(who);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &bytes) != 0 || bytes != sizeof(who)) {
        return WEFT_ERR_IO;
    }
    if (who.uid != geteuid() && who.uid != 0) {
        return WEFT_ERR_DENIED;
    }
    *pid_out = who.pid;
    return WEFT_OK;
}
