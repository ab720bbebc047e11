/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_blob.h"

#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"

#define MAGIC        "nixlSerDes|"
#define END          '|'
#define REGION_BYTES ((size_t)24)
#define LENGTH_BYTES ((size_t)8)
/* The least a connection, a section and a region can take: counts beyond are not believed. */
#define CONN_BYTES_MIN    ((size_t)22)
#define SECTION_BYTES_MIN ((size_t)74)
#define ENTRY_BYTES_MIN   (LENGTH_BYTES + REGION_BYTES + 1)
/* No agent has more backends, nor more sections; each is compared with each. */
#define PARTS_MAX ((size_t)256)

static void put_u64(uint8_t *to, uint64_t value)
{
    for (size_t i = 0; i < 8; i++) {
        to[i] = (uint8_t)(value >> (8 * i));
    }
}

static uint64_t get_u64(const uint8_t *from)
{
    uint64_t value = 0;
    for (size_t i = 0; i < 8; i++) {
        value |= (uint64_t)from[i] << (8 * i);
    }
    return value;
}

/* ---- encode ---------------------------------------------------------------------------------- */

static void begin_field(weft_buffer_t *out, const char *tag, size_t n)
{
    uint8_t length[LENGTH_BYTES];
    put_u64(length, n);
    weft_buffer_puts(out, tag);
    weft_buffer_append(out, length, sizeof(length));
}

static void end_field(weft_buffer_t *out)
{
    const char end = END;
    weft_buffer_append(out, &end, 1);
}

static void put_field(weft_buffer_t *out, const char *tag, const void *data, size_t n)
{
    begin_field(out, tag, n);
    weft_buffer_append(out, data, n);
    end_field(out);
}

static void put_bytes(weft_buffer_t *out, const char *tag, xfer_bytes_t bytes)
{
    put_field(out, tag, bytes.data, bytes.n);
}

static void put_text(weft_buffer_t *out, const char *tag, const char *text)
{
    put_field(out, tag, text, strlen(text));
}

static void put_count(weft_buffer_t *out, const char *tag, uint64_t count)
{
    uint8_t bytes[8];
    put_u64(bytes, count);
    put_field(out, tag, bytes, sizeof(bytes));
}

static void put_region(weft_buffer_t *out, const xfer_blob_region_t *region)
{
    uint8_t bytes[REGION_BYTES];
    put_u64(bytes, region->addr);
    put_u64(bytes + 8, region->bytes);
    put_u64(bytes + 16, region->device);
    begin_field(out, "", sizeof(bytes) + region->key.n);
    weft_buffer_append(out, bytes, sizeof(bytes));
    weft_buffer_append(out, region->key.data, region->key.n);
    end_field(out);
}

static void put_section(weft_buffer_t *out, const xfer_blob_section_t *section)
{
    uint8_t bytes[8];
    put_u64(bytes, (uint32_t)section->space);
    put_bytes(out, "bknd", section->backend);
    put_text(out, "nixlDList", "nixlSDList");
    put_field(out, "t", bytes, 4);
    put_count(out, "n", section->n);
    for (size_t i = 0; i < section->n; i++) {
        put_region(out, &section->regions[i]);
    }
}

void xfer_blob_encode(const xfer_blob_t *blob, weft_buffer_t *out)
{
    weft_buffer_puts(out, MAGIC);
    put_bytes(out, "Agent", blob->agent);
    put_count(out, "Conns", blob->n_conns);
    for (size_t i = 0; i < blob->n_conns; i++) {
        put_bytes(out, "t", blob->conns[i].backend);
        put_bytes(out, "c", blob->conns[i].address);
    }
    put_text(out, "", "MemSection");
    put_count(out, "nixlSecElms", blob->n_sections);
    for (size_t i = 0; i < blob->n_sections; i++) {
        put_section(out, &blob->sections[i]);
    }
}

/* ---- decode ---------------------------------------------------------------------------------- */

typedef struct reader {
    const uint8_t *data;
    size_t n;
    size_t at;
    weft_diag_t *diag;
    weft_status_t status; /* the first failure; what is read after it is empty */
} reader_t;

static void fail(reader_t *reader, weft_status_t status, const char *what, const char *tag)
{
    if (reader->status == WEFT_OK) {
        reader->status =
            weft_diag(reader->diag, status, "blob at byte %zu: %s \"%s\"", reader->at, what, tag);
    }
    reader->at = reader->n;
}

static size_t bytes_left(const reader_t *reader)
{
    return reader->n - reader->at;
}

static xfer_bytes_t get_field(reader_t *reader, const char *tag)
{
    const size_t tag_bytes = strlen(tag);
    if (bytes_left(reader) < tag_bytes + LENGTH_BYTES ||
        memcmp(reader->data + reader->at, tag, tag_bytes) != 0) {
        fail(reader, WEFT_ERR_MALFORMED, "there is no field", tag);
        return (xfer_bytes_t){NULL, 0};
    }
    const size_t begin = reader->at + tag_bytes + LENGTH_BYTES;
    const uint64_t length = get_u64(reader->data + begin - LENGTH_BYTES);
    if (length == 0 || length >= reader->n - begin || reader->data[begin + length] != END) {
        fail(reader, WEFT_ERR_MALFORMED, "a wrong length of field", tag);
        return (xfer_bytes_t){NULL, 0};
    }
    reader->at = begin + (size_t)length + 1;
    return (xfer_bytes_t){reader->data + begin, (size_t)length};
}

static void expect_text(reader_t *reader, const char *tag, const char *text)
{
    const xfer_bytes_t field = get_field(reader, tag);
    if (reader->status == WEFT_OK &&
        (field.n != strlen(text) || memcmp(field.data, text, field.n) != 0)) {
        fail(reader, WEFT_ERR_MALFORMED, "this is not", text);
    }
}

/* A number of things of which each takes bytes_min and more. */
static size_t get_count(reader_t *reader, const char *tag, size_t bytes_min, size_t max)
{
    const xfer_bytes_t field = get_field(reader, tag);
    if (reader->status < 0) {
        return 0;
    }
    const uint64_t count = field.n == 8 ? get_u64(field.data) : UINT64_MAX;
    if (count > bytes_left(reader) / bytes_min || count > max) {
        fail(reader, WEFT_ERR_MALFORMED, "a wrong count in field", tag);
        return 0;
    }
    return (size_t)count;
}

static int32_t get_space(reader_t *reader)
{
    const xfer_bytes_t field = get_field(reader, "t");
    if (reader->status < 0 || field.n != 4) {
        fail(reader, WEFT_ERR_MALFORMED, "a wrong length of field", "t");
        return -1;
    }
    const uint8_t *bytes = field.data;
    const uint32_t value =
        bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    return (int32_t)value;
}

static void *get_array(reader_t *reader, size_t count, size_t item_bytes)
{
    if (count == 0) {
        return NULL;
    }
    void *items = weft_calloc(count, item_bytes, "xfer.blob");
    if (items == NULL) {
        fail(reader, WEFT_ERR_NO_MEMORY, "no memory for", "it");
    }
    return items;
}

static bool is_same(xfer_bytes_t a, xfer_bytes_t b)
{
    return a.n == b.n && memcmp(a.data, b.data, a.n) == 0;
}

static void get_conns(reader_t *reader, xfer_blob_t *blob)
{
    const size_t count = get_count(reader, "Conns", CONN_BYTES_MIN, PARTS_MAX);
    blob->conns = get_array(reader, count, sizeof(*blob->conns));
    while (reader->status == WEFT_OK && blob->n_conns < count) {
        xfer_blob_conn_t *conn = &blob->conns[blob->n_conns];
        conn->backend = get_field(reader, "t");
        conn->address = get_field(reader, "c");
        for (size_t i = 0; reader->status == WEFT_OK && i < blob->n_conns; i++) {
            if (is_same(blob->conns[i].backend, conn->backend)) {
                fail(reader, WEFT_ERR_MALFORMED, "a second connection", "c");
            }
        }
        blob->n_conns++;
    }
}

static void get_region(reader_t *reader, xfer_blob_region_t *region)
{
    const xfer_bytes_t field = get_field(reader, "");
    if (reader->status < 0) {
        return;
    }
    if (field.n < REGION_BYTES) {
        fail(reader, WEFT_ERR_MALFORMED, "a region is cut short in section", "n");
        return;
    }
    const uint8_t *bytes = field.data;
    region->addr = get_u64(bytes);
    region->bytes = get_u64(bytes + 8);
    region->device = get_u64(bytes + 16);
    region->key = (xfer_bytes_t){bytes + REGION_BYTES, field.n - REGION_BYTES};
    if (region->bytes == 0 || region->addr > UINT64_MAX - region->bytes) {
        fail(reader, WEFT_ERR_MALFORMED, "a region of impossible size in section", "n");
    }
}

static void get_section(reader_t *reader, xfer_blob_section_t *section)
{
    section->backend = get_field(reader, "bknd");
    expect_text(reader, "nixlDList", "nixlSDList");
    section->space = get_space(reader);
    const size_t count = get_count(reader, "n", ENTRY_BYTES_MIN, SIZE_MAX);
    if (count == 0) {
        fail(reader, WEFT_ERR_MALFORMED, "an empty section", "n");
    }
    section->regions = get_array(reader, count, sizeof(*section->regions));
    while (reader->status == WEFT_OK && section->n < count) {
        get_region(reader, &section->regions[section->n++]);
    }
}

static bool is_twice(const xfer_blob_t *blob, const xfer_blob_section_t *section)
{
    for (const xfer_blob_section_t *other = blob->sections; other < section; other++) {
        if (other->space == section->space && is_same(other->backend, section->backend)) {
            return true;
        }
    }
    return false;
}

static void get_sections(reader_t *reader, xfer_blob_t *blob)
{
    const size_t count = get_count(reader, "nixlSecElms", SECTION_BYTES_MIN, PARTS_MAX);
    blob->sections = get_array(reader, count, sizeof(*blob->sections));
    while (reader->status == WEFT_OK && blob->n_sections < count) {
        xfer_blob_section_t *section = &blob->sections[blob->n_sections++];
        get_section(reader, section);
        if (reader->status == WEFT_OK && is_twice(blob, section)) {
            fail(reader, WEFT_ERR_MALFORMED, "a second section of this kind", "bknd");
        }
    }
}

weft_status_t xfer_blob_decode(const void *data, size_t n, weft_diag_t *diag, xfer_blob_t *blob_out)
{
    reader_t reader = {.data = data, .n = n, .diag = diag};
    xfer_blob_t blob = {0};
    if (n < strlen(MAGIC) || memcmp(data, MAGIC, strlen(MAGIC)) != 0) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "blob does not begin with " MAGIC);
    }
    reader.at = strlen(MAGIC);
    blob.agent = get_field(&reader, "Agent");
    get_conns(&reader, &blob);
    expect_text(&reader, "", "MemSection");
    get_sections(&reader, &blob);
    if (reader.status == WEFT_OK && bytes_left(&reader) > 0) {
        fail(&reader, WEFT_ERR_MALFORMED, "more than its last field", "");
    }
    if (reader.status < 0) {
        xfer_blob_fini(&blob);
        return reader.status;
    }
    *blob_out = blob;
    return WEFT_OK;
}

void xfer_blob_fini(xfer_blob_t *blob)
{
    for (size_t i = 0; i < blob->n_sections; i++) {
        weft_free(blob->sections[i].regions);
    }
    weft_free(blob->sections);
    weft_free(blob->conns);
    *blob = (xfer_blob_t){0};
}
