/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>

#include "base/option_priv.h"

#define MAX_FILE_BYTES ((off_t)1 << 20)

typedef struct reader {
    weft_option_set_t *set;
    yaml_parser_t parser;
    yaml_event_t event; /* the current one; owned */
    weft_diag_t *diag;
} reader_t;

static size_t line_of(const reader_t *reader)
{
    return reader->event.start_mark.line + 1;
}

static weft_status_t advance(reader_t *reader)
{
    yaml_event_delete(&reader->event);
    memset(&reader->event, 0, sizeof(reader->event));
    if (yaml_parser_parse(&reader->parser, &reader->event) == 0) {
        const yaml_parser_t *parser = &reader->parser;
        if (parser->error == YAML_MEMORY_ERROR) {
            return weft_diag(reader->diag, WEFT_ERR_NO_MEMORY, "out of memory");
        }
        return weft_diag(reader->diag, WEFT_ERR_MALFORMED, "line %zu: %s",
                         parser->problem_mark.line + 1,
                         parser->problem == NULL ? "not YAML" : parser->problem);
    }
    return WEFT_OK;
}

/* Goes past the node that starts at the current event, to its last event. */
static weft_status_t skip_node(reader_t *reader)
{
    weft_status_t status = WEFT_OK;
    for (size_t depth = 0; status >= 0;) {
        const yaml_event_type_t type = reader->event.type;
        if (type == YAML_MAPPING_START_EVENT || type == YAML_SEQUENCE_START_EVENT) {
            depth++;
        } else if (type == YAML_MAPPING_END_EVENT || type == YAML_SEQUENCE_END_EVENT) {
            depth--;
        }
        if (depth == 0) {
            break;
        }
        status = advance(reader);
    }
    return status;
}

static bool is_null(const yaml_event_t *event)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(nulls); i++) {
        if (event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
            strcmp((const char *)event->data.scalar.value, nulls[i]) == 0) {
            return true;
        }
    }
    return false;
}

static weft_status_t read_scalar(reader_t *reader, option_cell_t *cell)
{
    const yaml_event_t *event = &reader->event;
    char where[96];
    snprintf(where, sizeof(where), "line %zu: %s", line_of(reader), cell->row->flag);
    if (event->type != YAML_SCALAR_EVENT) {
        return weft_diag(reader->diag, WEFT_ERR_INVALID, "%s: %s", where,
                         cell->row->type == WEFT_OPTION_LIST ? "takes a value or a list of values"
                                                             : "takes one value");
    }
    const char *value = (const char *)event->data.scalar.value;
    if (strlen(value) != event->data.scalar.length) {
        return weft_diag(reader->diag, WEFT_ERR_INVALID, "%s: holds a zero byte", where);
    }
    return is_null(event)
               ? WEFT_OK
               : option_assign(reader->set, cell, OPTION_FROM_FILE, value, where, reader->diag);
}

static weft_status_t read_value(reader_t *reader, option_cell_t *cell)
{
    if (cell->row->type != WEFT_OPTION_LIST || reader->event.type != YAML_SEQUENCE_START_EVENT) {
        return read_scalar(reader, cell);
    }
    weft_status_t status = advance(reader);
    while (status >= 0 && reader->event.type != YAML_SEQUENCE_END_EVENT) {
        status = read_scalar(reader, cell);
        if (status >= 0) {
            status = advance(reader);
        }
    }
    return status;
}

/* The current event is a key; leaves the last event of its value current. */
static weft_status_t read_entry(reader_t *reader)
{
    if (reader->event.type != YAML_SCALAR_EVENT) {
        return weft_diag(reader->diag, WEFT_ERR_INVALID, "line %zu: a key must be an option's name",
                         line_of(reader));
    }
    char name[128];
    char shown[192];
    snprintf(name, sizeof(name), "%s", (const char *)reader->event.data.scalar.value);
    snprintf(shown, sizeof(shown), "line %zu: %s", line_of(reader), name);
    option_cell_t *cell = option_find(reader->set, name, strlen(name));
    const weft_option_ignored_t *ignored = option_find_ignored(reader->set, name, strlen(name));
    if (cell == NULL && ignored == NULL) {
        return option_report_unknown(reader->set, shown, name, strlen(name), reader->diag);
    }
    const weft_status_t status = advance(reader);
    if (status < 0 || cell != NULL) {
        return status < 0 ? status : read_value(reader, cell);
    }
    option_log_ignored(reader->set, ignored);
    return skip_node(reader);
}

static weft_status_t read_document(reader_t *reader)
{
    weft_status_t status = advance(reader); /* the stream's start */
    if (status >= 0) {
        status = advance(reader);
    }
    if (status >= 0 && reader->event.type == YAML_DOCUMENT_START_EVENT) {
        status = advance(reader);
    }
    if (status < 0 || reader->event.type == YAML_STREAM_END_EVENT ||
        (reader->event.type == YAML_SCALAR_EVENT && is_null(&reader->event))) {
        return status; /* an empty file gives nothing */
    }
    if (reader->event.type != YAML_MAPPING_START_EVENT) {
        return weft_diag(reader->diag, WEFT_ERR_INVALID,
                         "line %zu: must be a list of `flag: value`", line_of(reader));
    }
    status = advance(reader);
    while (status >= 0 && reader->event.type != YAML_MAPPING_END_EVENT) {
        status = read_entry(reader);
        if (status >= 0) {
            status = advance(reader);
        }
    }
    return status;
}

static weft_status_t report_file(const char *path, int error, weft_diag_t *diag)
{
    const weft_status_t status = error == ENOENT || error == ENOTDIR ? WEFT_ERR_NOT_FOUND
                                 : error == EACCES                   ? WEFT_ERR_DENIED
                                                                     : WEFT_ERR_INVALID;
    return weft_diag(diag, status, "%s: %s", path, strerror(error));
}

weft_status_t option_read_yaml(weft_option_set_t *set, const char *path, weft_diag_t *diag)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hold us up */
    struct stat info;
    FILE *file = NULL;
    if (fd < 0 || fstat(fd, &info) != 0) {
        const int error = errno;
        if (fd >= 0) {
            close(fd);
        }
        return report_file(path, error, diag);
    }
    if (!S_ISREG(info.st_mode) || info.st_size > MAX_FILE_BYTES ||
        (file = fdopen(fd, "r")) == NULL) {
        close(fd);
        return weft_diag(diag, WEFT_ERR_INVALID, "%s: not a file of at most 1 MiB", path);
    }
    reader_t reader = {.set = set, .diag = diag};
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    if (yaml_parser_initialize(&reader.parser) != 0) {
        yaml_parser_set_input_file(&reader.parser, file);
        status = read_document(&reader);
        yaml_event_delete(&reader.event);
        yaml_parser_delete(&reader.parser);
    }
    fclose(file);
    if (status < 0) {
        weft_diag_prefix(diag, "%s", path);
    }
    return status;
}
