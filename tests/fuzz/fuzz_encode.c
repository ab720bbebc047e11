/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_encode: any text through a byte-level tokenizer: decoding gives the text back, and a stream
 * of the same tokens shows the same, in whole characters.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/utf8.h"
#include "text/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static text_tokenizer_t *load(void)
{
    static char json[1 << 20];
    weft_diag_t diag = {0};
    text_tokenizer_t *tokenizer = NULL;
    FILE *file = fopen(WEFT_TEST_VECTORS "/text/byte-level/tokenizer.json", "rb");
    if (file == NULL) {
        abort();
    }
    const size_t length = fread(json, 1, sizeof(json), file);
    fclose(file);
    if (text_tokenizer_from_json(json, length, NULL, 0, 1 << 20, &diag, &tokenizer) != WEFT_OK) {
        abort();
    }
    return tokenizer;
}

static void check_stream(const text_tokenizer_t *tokenizer, const text_ids_t *ids, const char *text,
                         size_t size)
{
    const text_stream_config_t config = {.starts_text = true};
    text_stream_t *stream = NULL;
    weft_buffer_t shown = {0};
    const char *part = NULL;
    size_t length = 0;
    int32_t stop = -1;

    if (text_stream_create(tokenizer, &config, &stream) != WEFT_OK) {
        abort();
    }
    for (size_t i = 0; i < ids->length; i++) {
        if (text_stream_push(stream, ids->data[i], &part, &length, &stop) != WEFT_OK ||
            !weft_utf8_valid(part, length)) {
            abort();
        }
        weft_buffer_append(&shown, part, length);
    }
    if (text_stream_finish(stream, &part, &length) != WEFT_OK) {
        abort();
    }
    weft_buffer_append(&shown, part, length);
    if (shown.length != size || (size > 0 && memcmp(shown.data, text, size) != 0)) {
        abort();
    }
    weft_buffer_free(&shown);
    text_stream_destroy(stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static text_tokenizer_t *tokenizer;
    const char *text = (const char *)data;
    weft_diag_t diag = {0};
    text_ids_t ids = {0};
    text_bytes_t again = {0};

    if (tokenizer == NULL) {
        tokenizer = load();
    }
    const weft_status_t status =
        text_tokenizer_encode(tokenizer, text, size, false, false, &diag, &ids);
    if ((status == WEFT_OK) != weft_utf8_valid(text, size)) {
        abort();
    }
    if (status != WEFT_OK) {
        return 0;
    }
    if (text_tokenizer_decode(tokenizer, ids.data, ids.length, false, &diag, &again) != WEFT_OK ||
        again.length != size || (size > 0 && memcmp(again.data, text, size) != 0)) {
        abort();
    }
    check_stream(tokenizer, &ids, text, size);
    text_bytes_free(again);
    text_ids_free(ids);
    return 0;
}
