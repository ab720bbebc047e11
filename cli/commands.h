/* SPDX-License-Identifier: Apache-2.0 */
/*
 * commands: the subcommands of weft, one file each.
 *
 * argv[0] is the subcommand's name. Exit codes: 0 done, 1 it failed, 2 the input was wrong (bad
 * flag, bad file); one line on stderr says what. 128 + N: signal N ended it before it was done: an
 * answer that was cut, a service that did not serve yet. One that served is done when a signal ends
 * it, and so is `weft events`.
 */
#pragma once

#include "base/diag.h"

#define CLI_EXIT_OK        0
#define CLI_EXIT_FAILED    1
#define CLI_EXIT_INVALID   2
#define CLI_EXIT_SIGNALLED 128 /* and the signal, as shells say it */

#define COMMAND(name, about) int cmd_##name(int argc, char **argv);
#include "cli/commands.def"
#undef COMMAND

#define BENCH(name, about) int bench_##name(int argc, char **argv);
#include "cli/bench/benches.def"
#undef BENCH

#define KV_COMMAND(name, about) int cmd_kv_##name(int argc, char **argv);
#include "cli/kv_commands.def"
#undef KV_COMMAND

/* Prints "weft: error: <diag>" and returns the exit code that goes with status. */
int cli_fail(weft_status_t status, const weft_diag_t *diag);

/* Runs the command that argv[0] names. */
int cli_dispatch(int argc, char **argv);
