/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/option_priv.h"

/* Largest number that a double holds exactly; only numbers with a fraction go through one. */
#define MAX_EXACT 9007199254740992.0

static weft_status_t parse_bool(const char *text, bool *value_out, weft_diag_t *diag)
{
    static const char *const words[][2] = {
        {"false", "true"}, {"0", "1"}, {"no", "yes"}, {"off", "on"}};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(words); i++) {
        for (int value = 0; value < 2; value++) {
            if (strcasecmp(text, words[i][value]) == 0) {
                *value_out = value == 1;
                return WEFT_OK;
            }
        }
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "\"%s\" is neither true nor false", text);
}

/* What the letters behind a number multiply it by; 0 if they mean nothing. */
static uint64_t unit_of(const char *suffix, bool is_bytes)
{
    static const char letters[] = "kmgt";
    const char *letter =
        suffix[0] == '\0' ? NULL : strchr(letters, tolower((unsigned char)suffix[0]));
    const char *rest = letter == NULL ? suffix : suffix + 1;
    bool is_binary = letter != NULL && isupper((unsigned char)suffix[0]);
    if (is_bytes && letter != NULL && rest[0] == 'i') {
        is_binary = true;
        rest++;
    } else if (is_bytes && letter != NULL && rest[0] == 'B') {
        is_binary = false;
    }
    if (is_bytes && rest[0] == 'B') {
        rest++;
    }
    if (rest[0] != '\0') {
        return 0;
    }
    uint64_t unit = 1;
    for (ptrdiff_t i = 0; letter != NULL && i <= letter - letters; i++) {
        unit *= is_binary ? 1024 : 1000;
    }
    return unit;
}

static weft_status_t report_number(weft_diag_t *diag, const char *text, bool is_bytes)
{
    return weft_diag(diag, WEFT_ERR_INVALID,
                     is_bytes ? "\"%s\" is not a size such as 4096, 64MiB or 2G"
                              : "\"%s\" is not a whole number",
                     text);
}

/* Digits with an optional fraction and unit, without a sign: 4096, 64MiB, 25.6k. */
static weft_status_t parse_magnitude(const char *digits, const char *text, bool is_bytes,
                                     uint64_t max, uint64_t *value_out, weft_diag_t *diag)
{
    const size_t n_whole = strspn(digits, "0123456789");
    const size_t n_fraction =
        digits[n_whole] == '.' ? 1 + strspn(digits + n_whole + 1, "0123456789") : 0;
    const uint64_t unit = unit_of(digits + n_whole + n_fraction, is_bytes);
    if (n_whole == 0 || n_fraction == 1 || unit == 0) {
        return report_number(diag, text, is_bytes);
    }
    errno = 0;
    const uint64_t whole = strtoull(digits, NULL, 10);
    bool is_over = errno == ERANGE || whole > max / unit;
    uint64_t value = is_over ? 0 : whole * unit;
    if (n_fraction > 0) {
        const double exact = strtod(digits, NULL) * (double)unit;
        is_over = is_over || exact > MAX_EXACT || exact > (double)max;
        if (!is_over && exact != floor(exact)) {
            return report_number(diag, text, is_bytes);
        }
        value = is_over ? 0 : (uint64_t)exact;
    }
    if (is_over || value > max) {
        return weft_diag(diag, WEFT_ERR_INVALID, "\"%s\" is over %" PRIu64, text, max);
    }
    *value_out = value;
    return WEFT_OK;
}

static weft_status_t parse_unsigned(const char *text, bool is_bytes, uint64_t max,
                                    uint64_t *value_out, weft_diag_t *diag)
{
    if (text[0] == '-' && isdigit((unsigned char)text[1])) {
        return weft_diag(diag, WEFT_ERR_INVALID, "\"%s\" is below 0", text);
    }
    return parse_magnitude(text + (text[0] == '+'), text, is_bytes, max, value_out, diag);
}

static weft_status_t parse_signed(const char *text, int64_t *value_out, weft_diag_t *diag)
{
    const bool is_negative = text[0] == '-';
    uint64_t size = 0;
    const weft_status_t status = parse_magnitude(text + (text[0] == '-' || text[0] == '+'), text,
                                                 false, (uint64_t)INT64_MAX, &size, diag);
    if (status >= 0) {
        *value_out = is_negative ? -(int64_t)size : (int64_t)size;
    }
    return status;
}

static weft_status_t parse_f64(const char *text, double *value_out, weft_diag_t *diag)
{
    char *end = NULL;
    const double value = strtod(text, &end);
    if (end == text || *end != '\0' || isspace((unsigned char)text[0]) || !isfinite(value)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "\"%s\" is not a number", text);
    }
    *value_out = value;
    return WEFT_OK;
}

static weft_status_t parse_u32(const char *text, uint32_t *value_out, weft_diag_t *diag)
{
    uint64_t number = 0;
    const weft_status_t status = parse_unsigned(text, false, UINT32_MAX, &number, diag);
    if (status >= 0) {
        *value_out = (uint32_t)number;
    }
    return status;
}

weft_status_t option_parse_value(weft_option_type_t type, const char *text, void *field,
                                 weft_diag_t *diag)
{
    switch (type) {
    case WEFT_OPTION_BOOL:
        return parse_bool(text, field, diag);
    case WEFT_OPTION_U32:
        return parse_u32(text, field, diag);
    case WEFT_OPTION_AUTO:
        return parse_u32(strcasecmp(text, "auto") == 0 || strcmp(text, "-1") == 0 ? "0" : text,
                         field, diag);
    case WEFT_OPTION_U64:
        return parse_unsigned(text, false, UINT64_MAX, field, diag);
    case WEFT_OPTION_BYTES:
        return parse_unsigned(text, true, UINT64_MAX, field, diag);
    case WEFT_OPTION_I64:
        return parse_signed(text, field, diag);
    case WEFT_OPTION_F64:
        return parse_f64(text, field, diag);
    case WEFT_OPTION_STR:
    case WEFT_OPTION_LIST:
        break; /* the set's: they own memory */
    }
    return WEFT_ERR_INTERNAL;
}
