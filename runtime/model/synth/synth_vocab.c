/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/synth/synth_vocab.h"

#define PAIRS (256 * 256)

const char *const synth_specials[SYNTH_SPECIALS] = {"<pad>", "<bos>", "<eos>", "<|im_start|>",
                                                    "<|im_end|>"};

const char synth_chat_template[] =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/*
 * The code point that stands for the n-th byte of the vocabulary: first the bytes that are printed
 * as themselves, then the others in their order, from U+0100 on. Radford et al. 2019.
 */
static uint32_t code_point(uint32_t n)
{
    enum { ASCII = 94, LATIN = 12 };
    if (n < ASCII) {
        return '!' + n;
    }
    if (n < ASCII + LATIN) {
        return 0xa1 + (n - ASCII);
    }
    return n < 188 ? 0xae + (n - ASCII - LATIN) : 0x100 + (n - 188);
}

/* Every code point here is below U+0800: at most two bytes. Returns the end. */
static char *put_byte(char *text, uint32_t n)
{
    const uint32_t code = code_point(n);
    if (code < 0x80) {
        *text++ = (char)code;
    } else {
        *text++ = (char)(0xc0 | code >> 6);
        *text++ = (char)(0x80 | (code & 63));
    }
    return text;
}

static char *put_pair(char *text, uint32_t pair)
{
    return put_byte(put_byte(text, pair / 256), pair % 256);
}

static void put_merge(uint32_t id, const char *between, char *text)
{
    const uint32_t merge = id - SYNTH_MIN_VOCAB;
    if (merge < PAIRS) {
        text = put_byte(text, merge / 256);
    } else {
        text = put_pair(text, (merge - PAIRS) / 256);
    }
    while (*between != '\0') {
        *text++ = *between++;
    }
    text = put_byte(text, merge % 256);
    *text = '\0';
}

void synth_vocab_token(uint32_t id, char text_out[SYNTH_TEXT_SIZE])
{
    if (id < SYNTH_MIN_VOCAB) {
        *put_byte(text_out, id - SYNTH_SPECIALS) = '\0';
    } else {
        put_merge(id, "", text_out);
    }
}

void synth_vocab_merge(uint32_t id, char text_out[SYNTH_TEXT_SIZE])
{
    put_merge(id, " ", text_out);
}
