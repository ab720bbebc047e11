/* SPDX-License-Identifier: Apache-2.0 */
#include "base/device.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/compiler.h"

#define DEVICE(name, weak) extern const weft_device_ops_t weft_device_##name weak;
#include "base/device.def"
#undef DEVICE

static const weft_device_ops_t *const devices[] = {
#define DEVICE(name, weak) &weft_device_##name,
#include "base/device.def"
#undef DEVICE
};

static const char *const names[] = {
#define DEVICE(name, weak) #name,
#include "base/device.def"
#undef DEVICE
};

static weft_status_t report_unknown(const char *name, weft_diag_t *diag)
{
    char known[256] = "auto";
    size_t length = strlen(known);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(devices) && length < sizeof(known); i++) {
        if (devices[i] != NULL) {
            length +=
                (size_t)snprintf(known + length, sizeof(known) - length, ", %s", devices[i]->name);
        }
    }
    return weft_diag(diag, WEFT_ERR_NOT_FOUND, "device \"%s\" is unknown; known: %s", name, known);
}

/* A row that this program is not linked with. */
static weft_status_t report_left_out(const char *name, weft_diag_t *diag)
{
    return weft_diag(diag, WEFT_ERR_NOT_FOUND,
                     "device %s: this program is built without it, see docs/%s.md", name, name);
}

/* The name without ":index", which goes to index_out where there is one, else -1. */
static weft_status_t split_name(const char *text, char *name, size_t bytes, int *index_out)
{
    *index_out = -1;
    const char *colon = strchr(text, ':');
    const size_t length = colon == NULL ? strlen(text) : (size_t)(colon - text);
    if (length >= bytes) {
        return WEFT_ERR_NOT_FOUND;
    }
    memcpy(name, text, length);
    name[length] = '\0';
    if (colon == NULL) {
        return WEFT_OK;
    }
    char *end;
    const long index = strtol(colon + 1, &end, 10);
    if (end == colon + 1 || *end != '\0' || index < 0 || index > INT_MAX) {
        return WEFT_ERR_NOT_FOUND;
    }
    *index_out = (int)index;
    return WEFT_OK;
}

static int wrap_index(const weft_device_ops_t *ops, int index)
{
    const int count = ops->count == NULL ? 1 : ops->count();
    return count > 0 ? index % count : index; /* there are none: open says why */
}

weft_status_t weft_device_open(const char *text, int index, weft_diag_t *diag,
                               weft_device_t **device_out)
{
    char name[32];
    int named;
    weft_status_t status = split_name(text, name, sizeof(name), &named);
    if (status < 0) {
        return report_unknown(text, diag);
    }
    const bool is_auto = strcmp(name, "auto") == 0;
    status = WEFT_ERR_NOT_FOUND;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(devices); i++) {
        if (!is_auto && strcmp(name, names[i]) != 0) {
            continue;
        }
        if (devices[i] == NULL && !is_auto) {
            return report_left_out(name, diag);
        }
        if (devices[i] != NULL) {
            const int at = named >= 0 ? named : wrap_index(devices[i], index);
            status = devices[i]->open(at, diag, device_out);
        }
        if (status >= 0 && diag != NULL) {
            diag->text[0] = '\0'; /* why the one before it did not open */
        }
        if (!is_auto || status >= 0) {
            return status;
        }
    }
    return is_auto ? status : report_unknown(text, diag);
}

void weft_device_close(weft_device_t *device)
{
    if (device != NULL) {
        device->ops->close(device);
    }
}
