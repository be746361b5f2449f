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
constexpr size_t kLentFrom = size_t{16} << 20;

// Sits in the kAlign bytes before the memory handed out.
struct Block {
  size_t capacity;
};

void* memory_of(Block* block) { return reinterpret_cast<char*>(block) + kAlign; }
Block* block_of(void* memory) {
  return reinterpret_cast<Block*>(static_cast<char*>(memory) - kAlign);
}

// Calls f(first byte, bytes) for the huge pages that lie in a block of memory, if any.
template <class F>
bool with_huge_pages(void* memory, size_t bytes, F f) {
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(kHugePage - 1);
  return begin < end && f(reinterpret_cast<void*>(begin), end - begin);
}

// Allows the system to take the pages of a block, all but the one with its header.
bool lend(Block* block) {
#if defined(__linux__) && defined(MADV_FREE)
  return with_huge_pages(memory_of(block), block->capacity, [](void* begin, size_t bytes) {
    return madvise(begin, bytes, MADV_FREE) == 0;
  });
#else
  (void)block;
  return false;
#endif
}

// A row of slots, each taken and filled with one atomic exchange: no lock that a fork could
// leave held, none that threads could wait for.
class Shelf {
 public:
  explicit constexpr Shelf(size_t limit) : limit_(limit) {}

  // A block of at least `bytes` that is not wastefully large, or null.
  Block* find(size_t bytes) {
    for (int i = 0; i < kSlots; ++i) {
      if (!slots_[i].load(std::memory_order_relaxed)) continue;
      Block* block = take(i);
      if (!block) continue;
      if (block->capacity >= bytes && block->capacity / 2 <= bytes + (size_t{64} << 10)) {
        return block;
      }
      put(block);
    }
    return nullptr;
  }

  void put(Block* block) noexcept {
    if (block->capacity > limit_) return std::free(block);
    bytes_.fetch_add(block->capacity, std::memory_order_relaxed);
    bool stored = false;
    for (int i = 0; i < kSlots && !stored; ++i) {
      Block* empty = nullptr;
      stored = slots_[i].compare_exchange_strong(empty, block, std::memory_order_acq_rel);
    }
    // Full, in slots or in bytes: the oldest go.
    for (int i = 0; i < kSlots && (!stored || bytes_.load() > limit_); ++i) {
      const int victim = static_cast<int>(next_victim_.fetch_add(1) % kSlots);
      if (slots_[victim].load(std::memory_order_relaxed) == block) continue;
      if (Block* old = take(victim)) std::free(old);
      if (!stored) {
        Block* empty = nullptr;
        stored = slots_[victim].compare_exchange_strong(empty, block, std::memory_order_acq_rel);
      }
    }
    if (!stored) {
      bytes_.fetch_sub(block->capacity, std::memory_order_relaxed);
      std::free(block);
    }
  }

  void clear() noexcept {
    for (int i = 0; i < kSlots; ++i) {
      if (Block* block = take(i)) std::free(block);
    }
  }

 private:
  static constexpr int kSlots = 16;

  Block* take(int slot) {
    Block* block = slots_[slot].exchange(nullptr, std::memory_order_acq_rel);
    if (block) bytes_.fetch_sub(block->capacity, std::memory_order_relaxed);
    return block;
  }

  const size_t limit_;
  std::atomic<Block*> slots_[kSlots] = {};
  std::atomic<size_t> bytes_{0};
  std::atomic<unsigned> next_victim_{0};
};

Shelf kept(kKeptBytes), lent(kLentBytes);

}  // namespace

void advise_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  if (bytes < kHugeFrom) return;
  // A refusal costs speed only.
  with_huge_pages(memory, bytes, [](void* begin, size_t count) {
    return madvise(begin, count, MADV_HUGEPAGE) == 0;
  });
#endif
}

void* acquire_memory(size_t bytes) {
  if (Block* block = kept.find(bytes)) return memory_of(block);
  if (Block* block = lent.find(bytes)) return memory_of(block);
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
  if (!memory) return;
  Block* block = block_of(memory);
  if (block->capacity < kLentFrom) return kept.put(block);
  lend(block) ? lent.put(block) : std::free(block);
}

void release_cached_memory() noexcept {
  kept.clear();
  lent.clear();
}

}  // namespace fastrnn::cpu
