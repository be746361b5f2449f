// Tensors that operators return and keep.
#pragma once
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/empty.h>

#include "cpu/memory.h"

namespace fastrnn::cpu {

// Gives tensors blocks of the cache. An allocator, so that a storage of theirs can be resized.
class CachingAllocator final : public c10::Allocator {
 public:
  at::DataPtr allocate(size_t bytes) override {
    void* memory = bytes > 0 ? acquire_memory(bytes) : nullptr;
    return {memory, memory, release_memory, at::kCPU};
  }
  at::DeleterFnPtr raw_deleter() const override { return release_memory; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

// at::empty on the CPU, from the cache where malloc would ask the system for fresh pages at each
// call.
inline at::Tensor empty(at::IntArrayRef size, const at::TensorOptions& options) {
  constexpr size_t kCachedFrom = size_t{128} << 10;  // M_MMAP_THRESHOLD of glibc
  const size_t bytes =
      static_cast<size_t>(c10::multiply_integers(size)) * options.dtype().itemsize();
  if (bytes < kCachedFrom) return at::empty(size, options);
  static CachingAllocator allocator;
  at::Tensor t =
      at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                options.dtype().toScalarType(), std::nullopt);
  if (at::globalContext().deterministicAlgorithms() &&
      at::globalContext().deterministicFillUninitializedMemory()) {
    at::native::fill_empty_deterministic_(t);
  }
  return t;
}

}  // namespace fastrnn::cpu
