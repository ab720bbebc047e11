/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "cli/bench/bench_serve.h"

/* Frequent English words: about a token each in every vocabulary trained on it. */
static const char *const words[] = {
    "about",   "after",  "again",   "all",   "also",  "and",   "any",    "are",   "back",
    "because", "been",   "before",  "but",   "can",   "come",  "could",  "day",   "did",
    "down",    "each",   "even",    "every", "first", "for",   "found",  "from",  "get",
    "give",    "good",   "great",   "had",   "has",   "have",  "here",   "him",   "home",
    "house",   "how",    "into",    "just",  "know",  "large", "last",   "left",  "life",
    "like",    "little", "long",    "look",  "made",  "make",  "man",    "many",  "may",
    "more",    "most",   "much",    "must",  "name",  "never", "new",    "night", "not",
    "now",     "number", "off",     "old",   "only",  "other", "our",    "out",   "over",
    "part",    "people", "place",   "right", "said",  "same",  "school", "see",   "she",
    "should",  "small",  "some",    "state", "still", "such",  "take",   "than",  "that",
    "the",     "their",  "them",    "then",  "there", "these", "they",   "thing", "think",
    "this",    "three",  "through", "time",  "too",   "two",   "under",  "until", "use",
    "very",    "was",    "water",   "way",   "well",  "were",  "what",   "when",  "where",
    "which",   "while",  "who",     "will",  "with",  "word",  "work",   "world", "would",
    "write",   "year",   "you",     "young",
};

#define WORD_BYTES 8 /* the longest, and a space */

static char *append_words(char *at, bench_random_t *random, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const char *word = words[bench_random_next(random) % WEFT_ARRAY_LEN(words)];
        const size_t length = strlen(word);
        memcpy(at, word, length);
        at[length] = ' ';
        at += length + 1;
    }
    return at;
}

char *bench_prompt_create(uint64_t seed, uint64_t index, uint32_t shared, uint32_t n_words)
{
    char *text = weft_calloc((size_t)n_words + 1, WORD_BYTES, "bench.prompt");
    if (text == NULL) {
        return NULL;
    }
    bench_random_t common = {.state = seed};
    bench_random_t own = {.state = seed};
    own.state = bench_random_next(&own) + index; /* another stream than that of the common part */
    char *end = append_words(text, &common, shared);
    end = append_words(end, &own, n_words - shared);
    if (end > text) {
        end[-1] = '\0'; /* no space at the end: it would be a token of its own */
    }
    return text;
}
