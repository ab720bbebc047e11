/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_template: a chat template, and after a zero byte the request it is rendered with. */
#include <stdint.h>
#include <string.h>

#include "text/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char plain_request[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"add_generation_prompt\": "
        "true,"
        " \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]}";
    const char *source = (const char *)data;
    const char *zero = size > 0 ? memchr(source, '\0', size) : NULL;
    const size_t length = zero != NULL ? (size_t)(zero - source) : size;
    const char *request = zero != NULL ? zero + 1 : plain_request;
    const size_t request_length = zero != NULL ? size - length - 1 : strlen(plain_request);
    weft_diag_t diag = {0};
    text_template_t *chat_template = NULL;
    text_bytes_t text = {0};

    if (text_template_create(source, length, "<s>", "</s>", &diag, &chat_template) == WEFT_OK &&
        text_template_render(chat_template, request, request_length, &diag, &text) == WEFT_OK) {
        text_bytes_free(text);
    }
    text_template_destroy(chat_template);
    return 0;
}
