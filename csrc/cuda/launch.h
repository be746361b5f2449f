// How a kernel is started. The tests replace this file as they do primitives.h.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace fastrnn::cuda {

using Stream = cudaStream_t;

struct Grid {
  int64_t x;
  int y;
  int threads;
  size_t shared_bytes;
};

// Null, or what went wrong. The parameters are copied into the launch, as a graph capture needs.
template <class Params>
const char* launch(void (*kernel)(Params), const Grid& grid, Stream stream, const Params& params) {
  if (grid.shared_bytes > 48 * 1024) {
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(grid.shared_bytes));
    if (status != cudaSuccess) return cudaGetErrorString(status);
  }
  void* arguments[] = {const_cast<Params*>(&params)};
  const cudaError_t status = cudaLaunchKernel(
      reinterpret_cast<const void*>(kernel),
      dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y)),
      dim3(static_cast<unsigned>(grid.threads)), arguments, grid.shared_bytes, stream);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace fastrnn::cuda
