#include "cpu/memory.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fastrnn::cpu {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = size_t{4} << 20;

// Sits in the kAlign bytes before the memory handed out.
struct Block {
  size_t capacity;
  void* allocation;
};

void* memory_of(Block* block) { return reinterpret_cast<char*>(block) + kAlign; }
Block* block_of(void* memory) {
  return reinterpret_cast<Block*>(static_cast<char*>(memory) - kAlign);
}

// Large blocks begin with a huge page, small ones with a line.
Block* allocate(size_t bytes) {
  const size_t unit = bytes >= kLarge ? kHugePage : kAlign;
  void* raw = nullptr;
  if (bytes > SIZE_MAX / 2 || posix_memalign(&raw, unit, unit + bytes) != 0) {
    throw std::runtime_error("fastrnn: cannot allocate " + std::to_string(bytes) + " bytes");
  }
  Block* block = new (block_of(static_cast<char*>(raw) + unit)) Block{bytes, raw};
#if defined(__linux__)
  // A refusal costs speed only.
  if (bytes >= kLarge) madvise(memory_of(block), bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return block;
}

void deallocate(Block* block) noexcept { std::free(block->allocation); }

// Allows the system to take the pages of a large block, all but the one with its header.
bool lend(Block* block) noexcept {
#if defined(__linux__) && defined(MADV_FREE)
  static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return madvise(memory_of(block), block->capacity / page * page, MADV_FREE) == 0;
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

  // The smallest block of at least `bytes`, if it is not wastefully large; or null.
  Block* find(size_t bytes) {
    const size_t most = 2 * (bytes + (size_t{64} << 10));
    // Another thread may be faster, or a capacity not be what stands in the slot.
    constexpr int kTries = 4;
    for (int n = 0; n < kTries; ++n) {
      int best = -1;
      size_t smallest = most + 1;
      for (int i = 0; i < kSlots; ++i) {
        if (!slots_[i].block.load(std::memory_order_relaxed)) continue;
        const size_t capacity = slots_[i].capacity.load(std::memory_order_relaxed);
        if (capacity < bytes || capacity >= smallest) continue;
        best = i;
        smallest = capacity;
      }
      if (best < 0) return nullptr;
      Block* block = take(best);
      if (!block) continue;
      if (block->capacity >= bytes && block->capacity <= most) return block;
      put(block);
    }
    return nullptr;
  }

  void put(Block* block) noexcept {
    if (block->capacity > limit_) return deallocate(block);
    bytes_.fetch_add(block->capacity, std::memory_order_relaxed);
    bool stored = false;
    for (int i = 0; i < kSlots && !stored; ++i) stored = fill(i, block);
    // Full, in slots or in bytes: the oldest go.
    for (int i = 0; i < kSlots && (!stored || bytes_.load() > limit_); ++i) {
      const int victim = static_cast<int>(next_victim_.fetch_add(1) % kSlots);
      if (slots_[victim].block.load(std::memory_order_relaxed) == block) continue;
      if (Block* old = take(victim)) deallocate(old);
      if (!stored) stored = fill(victim, block);
    }
    if (!stored) {
      bytes_.fetch_sub(block->capacity, std::memory_order_relaxed);
      deallocate(block);
    }
  }

 private:
  static constexpr int kSlots = 64;
  struct Slot {
    std::atomic<Block*> block{nullptr};
    std::atomic<size_t> capacity{0};  // of the block, unless threads have just exchanged it
  };

  bool fill(int slot, Block* block) {
    const size_t capacity = block->capacity;
    Block* empty = nullptr;
    if (!slots_[slot].block.compare_exchange_strong(empty, block, std::memory_order_acq_rel)) {
      return false;
    }
    slots_[slot].capacity.store(capacity, std::memory_order_relaxed);
    return true;
  }

  Block* take(int slot) {
    Block* block = slots_[slot].block.exchange(nullptr, std::memory_order_acq_rel);
    if (block) bytes_.fetch_sub(block->capacity, std::memory_order_relaxed);
    return block;
  }

  const size_t limit_;
  Slot slots_[kSlots];
  std::atomic<size_t> bytes_{0};
  std::atomic<unsigned> next_victim_{0};
};

Shelf kept(kKeptBytes), lent(kLentBytes);

}  // namespace

void* acquire_memory(size_t bytes) {
  if (Block* block = kept.find(bytes)) return memory_of(block);
  if (Block* block = lent.find(bytes)) return memory_of(block);
  return memory_of(allocate(bytes));
}

void release_memory(void* memory) noexcept {
  if (!memory) return;
  Block* block = block_of(memory);
  if (block->capacity < kLarge) return kept.put(block);
  lend(block) ? lent.put(block) : deallocate(block);
}

}  // namespace fastrnn::cpu
