/* SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"

const char *weft_strerror(weft_status_t status)
{
    switch (status) {
#define STATUS(name, value, text)                                                                  \
    case WEFT_##name:                                                                              \
        return text;
#include "base/status.def"
#undef STATUS
    }
    return "unknown status";
}

const char *weft_status_name(weft_status_t status)
{
    switch (status) {
#define STATUS(name, value, text)                                                                  \
    case WEFT_##name:                                                                              \
        return #name;
#include "base/status.def"
#undef STATUS
    }
    return "UNKNOWN";
}
