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

/* The name without ":indices", which go to the set where there are some. */
static weft_status_t split_name(const char *text, char *name, size_t bytes,
                                weft_device_set_t *named)
{
    const size_t length = strcspn(text, ":");
    if (length >= bytes) {
        return WEFT_ERR_NOT_FOUND;
    }
    memcpy(name, text, length);
    name[length] = '\0';
    const char *at = text + length;
    while (*at != '\0') { /* the colon, or a comma */
        char *end;
        const long index = strtol(at + 1, &end, 10);
        if (end == at + 1 || (*end != '\0' && *end != ',') || index < 0 || index > INT_MAX ||
            named->n == WEFT_DEVICE_SET_MAX) {
            return WEFT_ERR_NOT_FOUND;
        }
        named->indices[named->n++] = (int)index;
        at = end;
    }
    return WEFT_OK;
}

static weft_status_t check_device(const weft_device_ops_t *ops, int index, weft_diag_t *diag)
{
    return ops->check == NULL ? WEFT_OK : ops->check(index, diag);
}

static weft_status_t check_named(const weft_device_ops_t *ops, const weft_device_set_t *named,
                                 weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; i < named->n && status >= 0; i++) {
        status = check_device(ops, named->indices[i], diag);
    }
    return status;
}

/* Those that work. None: what the first one lacks. */
static weft_status_t list_all(const weft_device_ops_t *ops, weft_diag_t *diag,
                              weft_device_set_t *set_out)
{
    const int count = ops->count == NULL ? 1 : ops->count();
    for (int i = 0; i < count && set_out->n < WEFT_DEVICE_SET_MAX; i++) {
        if (check_device(ops, i, NULL) >= 0) {
            set_out->indices[set_out->n++] = i;
        }
    }
    if (set_out->n > 0) {
        return WEFT_OK;
    }
    const weft_status_t status = check_device(ops, 0, diag);
    return status < 0 ? status : WEFT_ERR_NOT_FOUND;
}

static weft_status_t find_in(const weft_device_ops_t *ops, const weft_device_set_t *named,
                             weft_diag_t *diag, weft_device_set_t *set_out)
{
    weft_device_set_t set = *named;
    set.ops = ops;
    const weft_status_t status =
        named->n > 0 ? check_named(ops, named, diag) : list_all(ops, diag, &set);
    if (status >= 0) {
        *set_out = set;
    }
    return status;
}

typedef weft_status_t (*use_fn)(void *user, const weft_device_set_t *set, weft_diag_t *diag);

/* Rows that text may mean, until use is content with what one has. */
static weft_status_t try_rows(const char *text, weft_diag_t *diag, use_fn use, void *user)
{
    char name[32];
    weft_device_set_t named = {0};
    weft_status_t status = split_name(text, name, sizeof(name), &named);
    if (status < 0) {
        return report_unknown(text, diag);
    }
    const bool is_auto = strcmp(name, "auto") == 0;
    status = WEFT_ERR_NOT_FOUND;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(devices); i++) {
        weft_device_set_t set;
        if (!is_auto && strcmp(name, names[i]) != 0) {
            continue;
        }
        if (devices[i] == NULL && !is_auto) {
            return report_left_out(name, diag);
        }
        if (devices[i] != NULL) {
            status = find_in(devices[i], &named, diag, &set);
            status = status < 0 ? status : use(user, &set, diag);
        }
        if (status >= 0 && diag != NULL) {
            diag->text[0] = '\0'; /* why the one before it did not do */
        }
        if (!is_auto || status >= 0) {
            return status;
        }
    }
    return is_auto ? status : report_unknown(text, diag);
}

static weft_status_t keep_set(void *user, const weft_device_set_t *set, weft_diag_t *diag)
{
    (void)diag;
    *(weft_device_set_t *)user = *set;
    return WEFT_OK;
}

weft_status_t weft_device_find(const char *name, weft_diag_t *diag, weft_device_set_t *set_out)
{
    return try_rows(name, diag, keep_set, set_out);
}

typedef struct opening {
    uint32_t index;
    weft_device_t **device_out;
} opening_t;

static weft_status_t open_one(void *user, const weft_device_set_t *set, weft_diag_t *diag)
{
    const opening_t *opening = user;
    return set->ops->open(set->indices[opening->index % set->n], diag, opening->device_out);
}

weft_status_t weft_device_open(const char *name, int index, weft_diag_t *diag,
                               weft_device_t **device_out)
{
    opening_t opening = {.index = (uint32_t)index, .device_out = device_out};
    return try_rows(name, diag, open_one, &opening);
}

void weft_device_close(weft_device_t *device)
{
    if (device != NULL) {
        device->ops->close(device);
    }
}
