/* SPDX-License-Identifier: Apache-2.0 */
/*
 * generation: one request's prompts, their samples, and how its answer is written.
 *
 * A worker fills the plan (prompts, sampling, what to show). The loop starts it: submits a request
 * per prompt to the engine, takes their tokens as they come, turns them into text and writes the
 * answer, whole or as server-sent events.
 *
 * Threads  a worker until generation_start, the loop from then on
 * Memory   plan and choices live in the call's arena
 */
#pragma once

#include "base/arena.h"
#include "base/buffer.h"
#include "base/json_writer.h"
#include "runtime/engine/engine.h"
#include "services/api/api_model.h"
#include "services/api/chat_tools.h"
#include "services/api/forced_calls.h"
#include "services/api/sampling_params.h"

typedef struct generation generation_t;
typedef struct generation_choice generation_choice_t;

typedef struct generation_prompt {
    generation_t *generation;
    const int32_t *ids; /* [n_ids] */
    uint32_t n_ids;
    uint32_t max_tokens;
    const char *text; /* shown by echo; NULL: decode the ids */
    size_t text_length;
    engine_request_t *request; /* NULL before submit and after release */
    bool is_counted;           /* its prompt tokens are in the metrics */
    uint32_t cached_tokens;
    engine_timings_t timings; /* once its request is released */
} generation_prompt_t;

typedef struct generation_call {
    char *id;   /* "chatcmpl-tool-…", arena */
    char *name; /* arena */
    weft_buffer_t arguments;
    size_t n_sent; /* bytes of the arguments */
    bool is_begin_sent;
} generation_call_t;

/* One sample of one prompt. Text is kept whole; n_*_sent says what chunks carried already. */
struct generation_choice {
    generation_t *generation;
    generation_prompt_t *prompt;
    uint32_t sample;       /* of the engine's request */
    uint32_t index;        /* of the answer */
    text_stream_t *stream; /* NULL: tokens only */
    text_output_t *output; /* NULL: everything is content */
    forced_calls_t forced;
    uint32_t n_tokens;      /* taken from the engine */
    uint32_t n_tokens_sent; /* that chunks told about */
    weft_buffer_t text;
    size_t n_text_sent;
    weft_buffer_t reasoning;
    size_t n_reasoning_sent;
    uint32_t n_reasoning_tokens;
    bool in_reasoning;
    generation_call_t *calls; /* [n_calls], weft_alloc */
    uint32_t n_calls;
    size_t text_offset;        /* characters before the next token of the log-probabilities */
    const char *finish_reason; /* NULL while it runs; static */
    int32_t stop_string;       /* index of the stop string that ended it, -1: none */
    int32_t stop_token;        /* stop token id that ended it, -1: none */
    bool is_begun;             /* its first chunk is out */
    bool is_ended;             /* its last chunk is out */
    uint64_t last_token_ns;
};

/* How answers of one endpoint look. */
typedef struct generation_format {
    const char *id_prefix;
    /* The whole answer. */
    void (*write_answer)(const generation_t *generation, weft_json_t *json);
    /* What is new in choice, as the "choices" array of a chunk and what stands beside it. */
    void (*write_chunk)(generation_choice_t *choice, weft_json_t *json);
    /* The chunk before the first; NULL: none. */
    void (*write_first)(generation_choice_t *choice, weft_json_t *json);
    /* The chunk that carries usage alone. */
    void (*write_usage)(const generation_t *generation, weft_json_t *json);
} generation_format_t;

extern const generation_format_t completion_format;
extern const generation_format_t chat_format;
extern const generation_format_t generate_format;
extern const generation_format_t embedding_format;

struct generation {
    struct api_call *call; /* whose answer this is; loop only */
    const generation_format_t *format;
    const api_model_t *model;
    weft_arena_t *arena; /* the call's */
    const char *id;      /* with its prefix */
    const char *request_id;
    uint64_t created;

    generation_prompt_t *prompts; /* [n_prompts] */
    uint32_t n_prompts;
    uint32_t n; /* samples a prompt */
    engine_sampling_t sampling;
    sampling_stops_t stops;
    text_stops_t *stop_table; /* of stops, for all choices; NULL: none, or no text is made */
    text_grammar_t *grammar;
    const char *grammar_field; /* of the request, that brought it; static */
    int64_t priority;
    const char *cache_salt;
    engine_adapter_t *adapter; /* NULL: the model alone */
    bool pins_prompt;          /* its full blocks stay on the device, up to --kv-pin-quota */

    bool is_stream;
    bool includes_usage;
    bool has_continuous_usage;
    bool details_usage; /* prompt_tokens_details is filled */
    bool echoes;
    bool skips_special;
    bool includes_stop;
    bool wants_logprobs;
    bool returns_token_ids;
    bool tokens_as_ids;
    bool detokenizes;
    /* embeddings */
    bool embeds;
    bool normalizes;
    bool is_base64;
    uint32_t dimensions;
    /* chat */
    chat_tools_t tools;
    const char *tool_parser; /* NULL: calls are not looked for */
    const char *reasoning_parser;
    bool starts_in_reasoning;
    bool includes_reasoning;
    bool returns_prompt_text;

    generation_choice_t *choices; /* [n_prompts * n], prompt-major */
    uint32_t n_choices;
    uint32_t n_finished; /* choices */
};

/* What the answer calls its model. */
const char *generation_model_name(const generation_t *generation);

/* ---- the worker's half ---- */

/* One prompt of ids, copied; checks its length and sets its max_tokens. */
weft_status_t generation_add_prompt(generation_t *generation, const int32_t *ids, uint32_t n_ids,
                                    int64_t max_tokens, int64_t default_max_tokens,
                                    api_error_t *error);

/* Choices with their streams and parsers; the last step of a plan. */
weft_status_t generation_make_choices(generation_t *generation, api_error_t *error);

/* Streams, parsers, buffers, stop table, grammar. Engine requests must be released. NULL is fine. */
void generation_fini(generation_t *generation);

/* ---- the loop's half ---- */

/*
 * Takes what the engine has new for choice, turns it to text. Returns how many tokens were new.
 * *error is set when the engine failed, or what constrains the answer let no token follow.
 */
uint32_t generation_take(generation_choice_t *choice, api_error_t *error);

/* Whether write_chunk would say something. */
bool generation_has_news(const generation_choice_t *choice);

/* Marks all that write_chunk wrote as sent. */
void generation_mark_sent(generation_choice_t *choice);

typedef struct generation_usage {
    uint32_t prompt_tokens;
    uint32_t completion_tokens;
    uint32_t cached_tokens;
    uint32_t reasoning_tokens;
} generation_usage_t;

generation_usage_t generation_usage(const generation_t *generation);
