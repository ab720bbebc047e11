/* SPDX-License-Identifier: Apache-2.0 */
/*
 * text: between text and token ids. Tokenizers, chat templates, output parsing and constrained
 * decoding, in Rust over the crates the field uses (tokenizers, minijinja, llguidance), behind this
 * one header.
 *
 * Threads   a tokenizer, template, grammar and stops is immutable and shared; a stream, output and
 *           matcher belongs to one thread at a time
 * Ownership text_bytes_t and text_ids_t results are freed with their _free; NULL is fine everywhere
 *           a destroy or free takes a pointer
 * Errors    WEFT_ERR_MALFORMED / _INVALID / _TOO_LARGE / _UNSUPPORTED with one line in diag. A Rust
 *           panic never crosses: it is caught and becomes WEFT_ERR_INTERNAL
 * Bounds    ids, sizes, template fuel and grammar steps are checked before memory is taken
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

typedef struct text_bytes {
    char *data; /* [length] UTF-8 unless said otherwise, not terminated */
    size_t length;
} text_bytes_t;

typedef struct text_ids {
    int32_t *data; /* [length] */
    size_t length;
} text_ids_t;

void text_bytes_free(text_bytes_t bytes);
void text_ids_free(text_ids_t ids);

/* ---- tokenizer ----------------------------------------------------------------------------- */

typedef struct text_tokenizer text_tokenizer_t;

/* The vocabulary as a GGUF file keeps it; all borrowed during the call. */
typedef struct text_gguf_vocab {
    const char *model;         /* tokenizer.ggml.model: "gpt2" (byte-level BPE) or "llama" (SPM) */
    const char *pre;           /* tokenizer.ggml.pre, NULL when absent */
    const char *const *tokens; /* [n_tokens], with lengths: tokens may hold any byte */
    const size_t *token_lengths;
    const float *scores;  /* [n_tokens] or NULL */
    const int32_t *types; /* [n_tokens] or NULL: the values of tokenizer.ggml.token_type */
    size_t n_tokens;
    const char *const *merges; /* [n_merges] */
    const size_t *merge_lengths;
    size_t n_merges;
    int32_t bos; /* -1: none, so for each */
    int32_t eos;
    int32_t unknown;
    int8_t add_bos; /* 1 or 0; -1: the file does not say, so for each */
    int8_t add_eos;
    int8_t add_space_prefix;
} text_gguf_vocab_t;

/*
 * json: the bytes of tokenizer.json. config_json: tokenizer_config.json or NULL (bos_token,
 * eos_token, added tokens). max_id: ids at or above it are refused (the model's embedding rows).
 */
weft_status_t text_tokenizer_from_json(const char *json, size_t json_length,
                                       const char *config_json, size_t config_length,
                                       uint32_t max_id, weft_diag_t *diag,
                                       text_tokenizer_t **tokenizer_out);
weft_status_t text_tokenizer_from_gguf(const text_gguf_vocab_t *vocab, weft_diag_t *diag,
                                       text_tokenizer_t **tokenizer_out);
void text_tokenizer_destroy(text_tokenizer_t *tokenizer);

/* How it was built, for `weft model inspect`: "byte-level BPE (smollm), 49152 tokens". */
const char *text_tokenizer_describe(const text_tokenizer_t *tokenizer);
uint32_t text_tokenizer_size(const text_tokenizer_t *tokenizer); /* highest id + 1 */
int32_t text_tokenizer_bos(const text_tokenizer_t *tokenizer);   /* -1: none */
int32_t text_tokenizer_eos(const text_tokenizer_t *tokenizer);   /* -1: none */
bool text_tokenizer_is_special(const text_tokenizer_t *tokenizer, int32_t id);
int32_t text_tokenizer_find(const text_tokenizer_t *tokenizer, const char *token); /* -1: none */

/*
 * The most bytes of a text that one of its tokens stands for: a text of n bytes has at least n /
 * extent tokens, whatever the normalizer and the fallback for unknown characters do. SIZE_MAX: no
 * bound, since this tokenizer drops or joins parts of a text.
 */
size_t text_tokenizer_extent(const text_tokenizer_t *tokenizer);

/*
 * add_special: bos/eos as the tokenizer's own rule says. parse_special: special tokens written in
 * text become their ids; else they are plain text. Invalid UTF-8 is WEFT_ERR_MALFORMED.
 */
weft_status_t text_tokenizer_encode(const text_tokenizer_t *tokenizer, const char *text,
                                    size_t length, bool add_special, bool parse_special,
                                    weft_diag_t *diag, text_ids_t *ids_out);

/* Unknown ids are WEFT_ERR_INVALID. Broken UTF-8 becomes U+FFFD. */
weft_status_t text_tokenizer_decode(const text_tokenizer_t *tokenizer, const int32_t *ids, size_t n,
                                    bool skip_special, weft_diag_t *diag, text_bytes_t *text_out);

/* The bytes one token stands for (any bytes, perhaps half a character). */
weft_status_t text_tokenizer_token_bytes(const text_tokenizer_t *tokenizer, int32_t id,
                                         text_bytes_t *bytes_out);

/* The token as the vocabulary writes it ("Ġthe"). */
weft_status_t text_tokenizer_token_string(const text_tokenizer_t *tokenizer, int32_t id,
                                          text_bytes_t *text_out);

/* ---- incremental detokenization ------------------------------------------------------------- */

typedef struct text_stops text_stops_t; /* strings that end a text wherever token borders fall */
typedef struct text_stream text_stream_t;

/*
 * stops: [n], borrowed during the call. Their table is large (up to 200 bytes for each of theirs):
 * made once for all streams that end alike, which hold it for as long as they live, whatever becomes
 * of the maker's. WEFT_ERR_INVALID: one is empty; WEFT_ERR_TOO_LARGE: more than 64 KiB in all.
 */
weft_status_t text_stops_create(const char *const *stops, size_t n, weft_diag_t *diag,
                                text_stops_t **stops_out);
void text_stops_destroy(text_stops_t *stops);

typedef struct text_stream_config {
    bool skip_special;
    bool include_stop;         /* keep the stop string in the text */
    bool starts_text;          /* no prompt came before: an SPM decoder drops the first space */
    const text_stops_t *stops; /* NULL: none */
    uint32_t min_tokens;       /* a stop string counts only in a token after this many */
} text_stream_config_t;

weft_status_t text_stream_create(const text_tokenizer_t *tokenizer,
                                 const text_stream_config_t *config, text_stream_t **stream_out);
void text_stream_destroy(text_stream_t *stream);

/*
 * Takes one token. *text_out (borrowed until the next call) is what may be shown now: whole UTF-8
 * characters only, nothing that could be the beginning of a stop string. *stop_out is the index of
 * the stop string that was found, else -1; after one, no more tokens are taken.
 */
weft_status_t text_stream_push(text_stream_t *stream, int32_t id, const char **text_out,
                               size_t *length_out, int32_t *stop_out);

/* What was held back, at the end of generation. */
weft_status_t text_stream_finish(text_stream_t *stream, const char **text_out, size_t *length_out);

/* ---- chat templates -------------------------------------------------------------------------- */

/*
 * A template is a program. Its steps, depth, and the text it makes are bounded, with one gap: a list
 * that holds itself many times over, joined to a string with ~, is written out whole. Take templates
 * from the model's files or the operator, not from requests.
 */

typedef struct text_template text_template_t;

/* bos, eos: token texts that templates print, "" when none. */
weft_status_t text_template_create(const char *source, size_t length, const char *bos,
                                   const char *eos, weft_diag_t *diag,
                                   text_template_t **template_out);
void text_template_destroy(text_template_t *chat_template);

/*
 * request: a JSON object whose members are the template's variables: messages, tools, documents,
 * add_generation_prompt, continue_final_message, and whatever chat_template_kwargs held.
 * WEFT_ERR_INVALID: the template raised an exception (its text in diag) or ran out of fuel.
 */
weft_status_t text_template_render(const text_template_t *chat_template, const char *request,
                                   size_t length, weft_diag_t *diag, text_bytes_t *text_out);

/* ---- what the model said: reasoning, content, tool calls ------------------------------------- */

typedef struct text_output text_output_t;

typedef enum text_delta_kind {
    TEXT_DELTA_CONTENT,
    TEXT_DELTA_REASONING,
    TEXT_DELTA_TOOL_BEGIN,     /* text is the function's name */
    TEXT_DELTA_TOOL_ARGUMENTS, /* text is a piece of the arguments, JSON unless the model erred */
} text_delta_kind_t;

typedef void (*text_delta_fn)(void *user, text_delta_kind_t kind, uint32_t tool_index,
                              const char *text, size_t length);

/*
 * tool_parser, reasoning_parser: row names ("hermes", "llama3_json", "mistral", "deepseek_r1",
 * "qwen3", …) or NULL. starts_in_reasoning: the prompt already opened the thinking block.
 * WEFT_ERR_NOT_FOUND: diag lists the known names.
 */
weft_status_t text_output_create(const char *tool_parser, const char *reasoning_parser,
                                 bool starts_in_reasoning, weft_diag_t *diag,
                                 text_output_t **output_out);
void text_output_destroy(text_output_t *output);

/*
 * Calls on_delta for everything that text (a piece of the stream) settles. is_last: flush. What comes
 * of a stream, joined, does not depend on its pieces. A call that is written as JSON comes out once
 * its arguments begin, and these as they are written; one that is malformed before that is content.
 */
weft_status_t text_output_push(text_output_t *output, const char *text, size_t length, bool is_last,
                               text_delta_fn on_delta, void *user);

/* Guesses from the chat template which parsers fit; NULL when none does. Static strings. */
const char *text_output_guess_tool_parser(const char *chat_template, size_t length);
const char *text_output_guess_reasoning_parser(const char *chat_template, size_t length);

/* ---- constrained decoding -------------------------------------------------------------------- */

typedef struct text_grammar_factory text_grammar_factory_t; /* a tokenizer, prepared when needed */
typedef struct text_grammar text_grammar_t;
typedef struct text_matcher text_matcher_t;

typedef enum text_grammar_kind {
    TEXT_GRAMMAR_JSON_SCHEMA, /* a JSON schema */
    TEXT_GRAMMAR_JSON_OBJECT, /* any JSON object; source ignored */
    TEXT_GRAMMAR_REGEX,
    TEXT_GRAMMAR_CHOICE, /* a JSON array of strings */
    TEXT_GRAMMAR_LARK,   /* llguidance's Lark dialect; GBNF/EBNF is translated */
} text_grammar_kind_t;

/* eos: [n_eos] ids that end an answer; allowed once the grammar may stop. vocab: mask width. */
weft_status_t text_grammar_factory_create(const text_tokenizer_t *tokenizer, uint32_t vocab,
                                          const int32_t *eos, size_t n_eos, weft_diag_t *diag,
                                          text_grammar_factory_t **factory_out);
void text_grammar_factory_destroy(text_grammar_factory_t *factory);

/* How the JSON kinds are read; nothing to the others. Zeroed: as the schema says, blanks between. */
typedef struct text_grammar_options {
    bool disable_any_whitespace;        /* no blanks between the parts of the JSON */
    bool disable_additional_properties; /* of objects that list theirs and do not say */
    const char *whitespace_pattern;     /* regex of the blanks, whatever the first says; or NULL */
} text_grammar_options_t;

/*
 * Compiling can take a tenth of a second, and the first of a factory as long again, in which it prepares
 * the vocabulary: not on the engine thread. options: NULL for none.
 * WEFT_ERR_INVALID, _TOO_LARGE; _NO_MEMORY: no thread for it now.
 */
weft_status_t text_grammar_create(const text_grammar_factory_t *factory, text_grammar_kind_t kind,
                                  const char *source, size_t length,
                                  const text_grammar_options_t *options, weft_diag_t *diag,
                                  text_grammar_t **grammar_out);
void text_grammar_destroy(text_grammar_t *grammar);

weft_status_t text_matcher_create(const text_grammar_t *grammar, text_matcher_t **matcher_out);
void text_matcher_destroy(text_matcher_t *matcher);

/* mask [(vocab + 31) / 32]: bit id%32 of word id/32 set when id may come next. */
weft_status_t text_matcher_mask(text_matcher_t *matcher, uint32_t *mask, size_t words,
                                weft_diag_t *diag);

/* Takes the token that was sampled. WEFT_ERR_INVALID: the grammar does not allow it. */
weft_status_t text_matcher_advance(text_matcher_t *matcher, int32_t id, weft_diag_t *diag);
bool text_matcher_is_finished(const text_matcher_t *matcher);
