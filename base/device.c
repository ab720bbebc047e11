/* SPDX-License-Identifier: Apache-2.0 */
#include "base/device.h"

#include <stdio.h>
#include <string.h>

#include "base/compiler.h"

#define DEVICE(name) extern const weft_device_ops_t weft_device_##name WEFT_WEAK;
#include "base/device.def"
#undef DEVICE

static const weft_device_ops_t *const devices[] = {
#define DEVICE(name) &weft_device_##name,
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

weft_status_t weft_device_open(const char *name, int index, weft_diag_t *diag,
                               weft_device_t **device_out)
{
    const bool is_auto = strcmp(name, "auto") == 0;
    weft_status_t status = WEFT_ERR_NOT_FOUND;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(devices); i++) {
        if (devices[i] == NULL || (!is_auto && strcmp(name, devices[i]->name) != 0)) {
            continue;
        }
        status = devices[i]->open(index, diag, device_out);
        if (!is_auto || status >= 0) {
            return status;
        }
    }
    return is_auto ? status : report_unknown(name, diag);
}

void weft_device_close(weft_device_t *device)
{
    if (device != NULL) {
        device->ops->close(device);
    }
}
