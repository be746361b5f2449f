#include "cpu/memory.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastrnn::cpu {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHugeFrom = size_t{4} << 20;

// Sits in the kAlign bytes before the memory handed out.
struct Block {
  size_t capacity;
};

// The cache is a row of slots, each taken and filled with one atomic exchange:
// no lock that a fork could leave held, none that threads could wait for.
constexpr int kSlots = 16;
std::atomic<Block*> slots[kSlots];
std::atomic<size_t> cached_bytes{0};
std::atomic<unsigned> next_victim{0};

void* memory_of(Block* block) { return reinterpret_cast<char*>(block) + kAlign; }
Block* block_of(void* memory) {
  return reinterpret_cast<Block*>(static_cast<char*>(memory) - kAlign);
}

Block* take(int slot) {
  Block* block = slots[slot].exchange(nullptr, std::memory_order_acq_rel);
  if (block) cached_bytes.fetch_sub(block->capacity, std::memory_order_relaxed);
  return block;
}

void put(Block* block) noexcept {
  if (block->capacity > kCacheBytes) return std::free(block);
  cached_bytes.fetch_add(block->capacity, std::memory_order_relaxed);
  bool stored = false;
  for (int i = 0; i < kSlots && !stored; ++i) {
    Block* empty = nullptr;
    stored = slots[i].compare_exchange_strong(empty, block, std::memory_order_acq_rel);
  }
  // Full, in slots or in bytes: the oldest go.
  for (int i = 0; i < kSlots && (!stored || cached_bytes.load() > kCacheBytes); ++i) {
    const int victim = static_cast<int>(next_victim.fetch_add(1) % kSlots);
    if (slots[victim].load(std::memory_order_relaxed) == block) continue;
    if (Block* old = take(victim)) std::free(old);
    if (!stored) {
      Block* empty = nullptr;
      stored = slots[victim].compare_exchange_strong(empty, block, std::memory_order_acq_rel);
    }
  }
  if (!stored) {
    cached_bytes.fetch_sub(block->capacity, std::memory_order_relaxed);
    std::free(block);
  }
}

}  // namespace

void advise_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  if (bytes < kHugeFrom) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(kHugePage - 1);
  // A refusal costs speed only.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void* acquire_memory(size_t bytes) {
  // A cached block serves when it is not wastefully large.
  for (int i = 0; i < kSlots; ++i) {
    if (!slots[i].load(std::memory_order_relaxed)) continue;
    Block* block = take(i);
    if (!block) continue;
    if (block->capacity >= bytes && block->capacity / 2 <= bytes + (size_t{64} << 10)) {
      return memory_of(block);
    }
    put(block);
  }
  const bool huge = bytes + kAlign >= kHugeFrom;
  const size_t unit = huge ? kHugePage : kAlign;
  const size_t total = (bytes + kAlign + unit - 1) / unit * unit;
  void* raw = std::aligned_alloc(unit, total);
  if (!raw) throw std::bad_alloc();
  if (huge) advise_huge_pages(raw, total);
  Block* block = new (raw) Block{total - kAlign};
  return memory_of(block);
}

void release_memory(void* memory) noexcept {
  if (memory) put(block_of(memory));
}

void release_cached_memory() noexcept {
  for (int i = 0; i < kSlots; ++i) {
    if (Block* block = take(i)) std::free(block);
  }
}

}  // namespace fastrnn::cpu
