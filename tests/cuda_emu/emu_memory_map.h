/* SPDX-License-Identifier: Apache-2.0 */
/* emu_memory_map: bad addresses become faults of the thread that used them. Internal. */
#pragma once

#include <signal.h>

namespace emu
{

/*
 * While it lives, a SIGSEGV inside a kernel is reported and ends the grid. The handlers of others,
 * such as a test framework's, are put back.
 */
class BadAccessCatcher
{
  public:
    BadAccessCatcher();
    ~BadAccessCatcher();

  private:
    struct sigaction former_[2];
};

} // namespace emu
