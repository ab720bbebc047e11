/* SPDX-License-Identifier: Apache-2.0 */
/*
 * synth_vocab: a byte-level BPE vocabulary of any size: some special tokens, every byte, then pairs
 * and triples of bytes, each made by one merge. Bytes are spelled as GPT-2 spells them.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SYNTH_SPECIALS  5
#define SYNTH_MIN_VOCAB (SYNTH_SPECIALS + 256)
#define SYNTH_BOS       1
#define SYNTH_EOS       2
#define SYNTH_TURN_END  4
#define SYNTH_TEXT_SIZE 16 /* of a token or a merge, with its NUL */

extern const char *const synth_specials[SYNTH_SPECIALS];

/* In ChatML's form, which these special tokens follow. */
extern const char synth_chat_template[];

/* id ≥ SYNTH_SPECIALS */
void synth_vocab_token(uint32_t id, char text_out[SYNTH_TEXT_SIZE]);

/* The two halves that make token id ≥ SYNTH_MIN_VOCAB, with a space between. */
void synth_vocab_merge(uint32_t id, char text_out[SYNTH_TEXT_SIZE]);
