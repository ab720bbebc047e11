/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "base/option_priv.h"

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Appends the quoted part that starts at text to word; what follows it, or NULL if it never ends. */
static const char *read_quoted(const char *text, weft_buffer_t *word)
{
    const char quote = *text++;
    for (; *text != quote; text++) {
        if (*text == '\0') {
            return NULL;
        }
        if (quote == '"' && *text == '\\' && (text[1] == '"' || text[1] == '\\')) {
            text++;
        }
        weft_buffer_append(word, text, 1);
    }
    return text + 1;
}

/* The same for one word, up to the next blank. */
static const char *read_word(const char *text, weft_buffer_t *word)
{
    while (text != NULL && *text != '\0' && !is_blank(*text)) {
        if (*text == '\'' || *text == '"') {
            text = read_quoted(text, word);
            continue;
        }
        if (*text == '\\' && *++text == '\0') {
            return NULL;
        }
        weft_buffer_append(word, text++, 1);
    }
    return text;
}

weft_status_t option_split_words(weft_option_set_t *set, const char *text, weft_list_t *words_out,
                                 weft_diag_t *diag)
{
    for (;;) {
        while (is_blank(*text)) {
            text++;
        }
        if (*text == '\0') {
            return WEFT_OK;
        }
        weft_buffer_t word = {0};
        text = read_word(text, &word);
        char *copy = weft_buffer_take(&word, NULL);
        const weft_status_t status = text == NULL   ? WEFT_ERR_INVALID
                                     : copy == NULL ? WEFT_ERR_NO_MEMORY
                                                    : option_list_append(set, words_out, copy);
        weft_free(copy);
        if (status < 0) {
            return weft_diag(diag, status, "%s",
                             text == NULL ? "a quote or backslash has no end"
                                          : weft_strerror(status));
        }
    }
}
