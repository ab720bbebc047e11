/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/ref/ref_ops.h"

void k_ref_write_words(k_stream_t *stream, const k_write_words_args_t *args)
{
    (void)stream;
    for (uint32_t i = 0; i < args->n_words; i++) {
        *args->words[i].at = args->words[i].value;
    }
}
