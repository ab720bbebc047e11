/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_template: any bytes as a chat template; one that compiles renders a chat. */
#include <stdint.h>
#include <string.h>

#include "text/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char request[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\","
        "\"content\":null,\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":1}}}]"
        "}],\"tools\":[{\"type\":\"function\"}],\"add_generation_prompt\":true}";
    weft_diag_t diag;
    text_template_t *chat_template = NULL;
    text_bytes_t text = {0};
    if (text_template_create((const char *)data, size, "<s>", "</s>", &diag, &chat_template) < 0) {
        return 0;
    }
    text_template_render(chat_template, request, strlen(request), &diag, &text);
    text_bytes_free(text);
    text_template_destroy(chat_template);
    return 0;
}
