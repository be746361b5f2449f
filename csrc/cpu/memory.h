// Memory for scratch and tensors. A first touch of fresh memory costs a page
// fault, up to 2 us for 4 KiB on a virtual machine: more than computing what goes
// there. So blocks are kept for the next call, up to kKeptBytes in all. Large ones
// ask for huge pages, and are lent to the system meanwhile, which takes their pages
// when memory runs short, and only then: they do not count against kKeptBytes, but
// for the addresses there is a limit too.
#pragma once
#include <cstddef>

namespace fastrnn::cpu {

constexpr size_t kKeptBytes = size_t{64} << 20;
constexpr size_t kLentBytes = size_t{512} << 20;

// Uninitialised memory, 64-byte aligned. Never null: throws std::runtime_error.
void* acquire_memory(size_t bytes);
void release_memory(void* memory) noexcept;

}  // namespace fastrnn::cpu
