#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# campaign.sh PROGRAM CORPUS WORK: fuzzes for WEFT_TEST_FUZZ_SECONDS from the seed WEFT_TEST_SEED. New inputs
# gather in WORK/corpus; one that fails is left in WORK as crash-*, to be mended and kept in CORPUS.
set -eu
program=$1 corpus=$2 work=$3
mkdir -p "$work/corpus" "$corpus"
exec "$program" -max_total_time="${WEFT_TEST_FUZZ_SECONDS:-10}" -seed="${WEFT_TEST_SEED:-1}" \
    -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="$work/" \
    "$work/corpus" "$corpus"
