/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/cuda_emu/emu_shadow.h"

#include "tests/cuda_emu/emu_machine.h"

namespace emu
{
void shadow_begin_block(Block &)
{
}
void shadow_join(const std::vector<Thread *> &)
{
}
void shadow_release(const void *)
{
}
void shadow_acquire(const void *)
{
}
void shadow_release_global(const void *)
{
}
void shadow_acquire_global(const void *)
{
}
void shadow_fence_async(void)
{
}
void shadow_access(const void *, size_t, Access, const char *)
{
}
void shadow_async_begin(const void *, size_t, Access, const char *)
{
}
void shadow_async_end(const void *, size_t, Access, const Thread *)
{
}
void shadow_async_read(const void *, size_t, const char *)
{
}
} // namespace emu
