/* SPDX-License-Identifier: Apache-2.0 */
/*
 * zmq_tsan: for a test program with sockets: libzmq is not compiled for ThreadSanitizer, which cannot
 * see how its threads take turns, nor the libraries that fill its messages and read them. Defines a function: included once a program.
 */
#pragma once

#ifdef __SANITIZE_THREAD__
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "called_from_lib:libzmq.so\n"
           "called_from_lib:libsodium.so\n"
           "called_from_lib:libpgm-5.3.so\n"
           "called_from_lib:libprotobuf-c.so";
}
#endif
