/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/alloc.h"
#include "transport/xfer/ucx/xfer_ucx_priv.h"

#define WEFT_LOG_MODULE "xfer.ucx"
#include "base/log.h"

/*
 * NIXL sends a notification as UCP active message 0 without header; its body is
 *     nixlSerDes|  name <u64 length> <the sender's name> |  msg <u64 length> <bytes> |
 */
#define NOTIFICATION_ID 0
#define MAGIC           "nixlSerDes|"
#define FIELD_END       '|'

/* ---- to the peer ----------------------------------------------------------------------------- */

static void fill_letter(ucx_letter_t *letter, const ucx_port_t *port, const void *data,
                        size_t bytes)
{
    static char field_end = FIELD_END;

    /* UCX reads only, though its type says otherwise. */
    letter->bytes = bytes;
    letter->parts[0] = (ucp_dt_iov_t){port->opening.data, port->opening.length};
    letter->parts[1] = (ucp_dt_iov_t){&letter->bytes, sizeof(letter->bytes)};
    letter->parts[2] = (ucp_dt_iov_t){(void *)(uintptr_t)data, bytes};
    letter->parts[3] = (ucp_dt_iov_t){&field_end, 1};
}

static ucs_status_ptr_t send_letter(ucx_link_t *link, ucx_letter_t *letter,
                                    ucp_send_nbx_callback_t on_sent)
{
    const ucp_request_param_t params = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_DATATYPE |
                        UCP_OP_ATTR_FIELD_MEMORY_TYPE | UCP_OP_ATTR_FIELD_CALLBACK |
                        UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = UCP_AM_SEND_FLAG_EAGER,
        .datatype = ucp_dt_make_iov(),
        .memory_type = UCS_MEMORY_TYPE_HOST,
        .cb.send = on_sent,
        .user_data = letter,
    };
    return ucx_port_of(link)->ucx->ucp_am_send_nbx(link->endpoint, NOTIFICATION_ID, NULL, 0,
                                                   letter->parts, WEFT_ARRAY_LEN(letter->parts),
                                                   &params);
}

static void put_back_letter(ucx_letter_t *letter)
{
    ucx_link_t *link = (ucx_link_t *)letter->op->link;
    letter->next = link->free_letters;
    link->free_letters = letter;
}

static void on_letter_sent(void *request, ucs_status_t status, void *user)
{
    ucx_letter_t *letter = user;
    xfer_op_t *op = letter->op;

    put_back_letter(letter);
    ucx_port_of((ucx_link_t *)op->link)->ucx->ucp_request_free(request);
    xfer_ucx_op_ended(op, status);
}

bool xfer_ucx_send_notification(ucx_link_t *link, xfer_op_t *op)
{
    ucx_letter_t *letter = link->free_letters;

    if (letter == NULL) {
        return false;
    }
    link->free_letters = letter->next;
    letter->op = op;
    fill_letter(letter, ucx_port_of(link), op->notification, op->notification_bytes);
    if (!xfer_ucx_op_note_request(op, send_letter(link, letter, on_letter_sent))) {
        put_back_letter(letter);
    }
    return true;
}

/* ---- by itself ------------------------------------------------------------------------------- */

static void free_notice(ucx_notice_t *notice)
{
    notice->port->notices--;
    weft_free(notice);
}

static void on_notice_sent(void *request, ucs_status_t status, void *user)
{
    ucx_notice_t *notice = WEFT_CONTAINER(user, ucx_notice_t, letter);
    (void)status; /* a lost link is told by its error handler */
    notice->port->ucx->ucp_request_free(request);
    free_notice(notice);
}

weft_status_t xfer_ucx_notify(xfer_link_t *base, const void *data, size_t bytes)
{
    ucx_link_t *link = (ucx_link_t *)base;
    ucx_port_t *port = ucx_port_of(link);

    if (link->is_lost) {
        return WEFT_ERR_PEER_GONE;
    }
    if (port->notices >= UCX_NOTICES_MAX) {
        return WEFT_ERR_QUEUE_FULL;
    }
    ucx_notice_t *notice = weft_zalloc(sizeof(*notice) + bytes, "xfer.ucx_notice");
    if (notice == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (bytes > 0) {
        memcpy(notice->data, data, bytes);
    }
    notice->port = port;
    port->notices++;
    fill_letter(&notice->letter, port, notice->data, bytes);
    const ucs_status_ptr_t request = send_letter(link, &notice->letter, on_notice_sent);
    if (UCS_PTR_IS_PTR(request)) {
        return WEFT_OK;
    }
    free_notice(notice);
    if (UCS_PTR_STATUS(request) != UCS_OK) {
        xfer_ucx_link_lose(link, UCS_PTR_STATUS(request));
        return WEFT_ERR_PEER_GONE;
    }
    return WEFT_OK;
}

/* ---- from peers ------------------------------------------------------------------------------ */

typedef struct reader {
    const char *at;
    size_t left;
} reader_t;

/* The next bytes are these. */
static bool read_text(reader_t *reader, const char *text)
{
    const size_t length = strlen(text);
    if (reader->left < length || memcmp(reader->at, text, length) != 0) {
        return false;
    }
    reader->at += length;
    reader->left -= length;
    return true;
}

static bool read_field(reader_t *reader, const char *tag, const char **value_out,
                       size_t *length_out)
{
    uint64_t length;

    if (!read_text(reader, tag) || reader->left < sizeof(length)) {
        return false;
    }
    memcpy(&length, reader->at, sizeof(length));
    reader->at += sizeof(length);
    reader->left -= sizeof(length);
    if (length >= reader->left || reader->at[length] != FIELD_END) {
        return false;
    }
    *value_out = reader->at;
    *length_out = (size_t)length;
    reader->at += length + 1;
    reader->left -= (size_t)length + 1;
    return true;
}

static ucs_status_t on_notification(void *arg, const void *header, size_t header_length, void *data,
                                    size_t length, const ucp_am_recv_param_t *param)
{
    ucx_port_t *port = arg;
    const xfer_port_config_t *config = &port->base.config;
    reader_t reader = {.at = data, .left = length};
    const char *name;
    const char *message;
    size_t name_length;
    size_t message_length;
    char peer[XFER_MAX_NAME + 1];

    (void)header;
    (void)header_length;
    if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0 || !read_text(&reader, MAGIC) ||
        !read_field(&reader, "name", &name, &name_length) ||
        !read_field(&reader, "msg", &message, &message_length) || name_length == 0 ||
        name_length > XFER_MAX_NAME || message_length > XFER_MAX_NOTIFICATION) {
        weft_log_debug("dropped a malformed notification of %zu bytes", length);
        return UCS_OK;
    }
    memcpy(peer, name, name_length);
    peer[name_length] = '\0';
    config->on_notification(config->user, peer, message, message_length);
    return UCS_OK;
}

/* What comes before the message's length in all letters of this port. */
static weft_status_t write_opening(ucx_port_t *port)
{
    const char *name = port->base.config.agent;
    const uint64_t length = strlen(name);

    weft_buffer_puts(&port->opening, MAGIC "name");
    weft_buffer_append(&port->opening, &length, sizeof(length));
    weft_buffer_puts(&port->opening, name);
    weft_buffer_puts(&port->opening, "|msg");
    return port->opening.is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

weft_status_t xfer_ucx_notify_open(ucx_port_t *port, weft_diag_t *diag)
{
    const ucp_am_handler_param_t params = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = NOTIFICATION_ID,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = on_notification,
        .arg = port,
    };
    const ucs_status_t status = port->ucx->ucp_worker_set_am_recv_handler(port->worker, &params);

    if (status != UCS_OK) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "ucx: no active messages: %s",
                         port->ucx->ucs_status_string(status));
    }
    return write_opening(port);
}
