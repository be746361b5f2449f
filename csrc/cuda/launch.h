// How a kernel is started. The tests replace this file as they do primitives.h.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <tuple>

namespace fastrnn::cuda {

using Stream = cudaStream_t;

struct Grid {
  int64_t x;
  int y;
  int threads;
  size_t shared_bytes;
  int cluster = 1;           // blocks of a cluster, neighbours in x
  bool cooperative = false;  // refused unless all blocks fit on the device at once
};

// What launch() answers where the device, as it is shared just now, cannot hold the grid.
inline constexpr char kDoesNotFit[] = "the grid does not fit on the device";

// The most that a launch of ours asks for.
inline constexpr int kMaxAttributes = 2;

// What a kernel must be allowed before it may be launched so: shared memory beyond 48 KB, clusters
// of more than 8. Once for each kernel and device, and then as much as the device has: a limit that
// followed each launch would be lowered by one thread between another's two calls.
inline cudaError_t allow(const void* kernel, const Grid& grid) {
  const bool shared = grid.shared_bytes > 48 * 1024, cluster = grid.cluster > 8;
  if (!shared && !cluster) return cudaSuccess;
  static std::mutex mutex;
  static std::set<std::tuple<int, const void*, bool>> allowed;
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const bool is_cluster : {false, true}) {
    const std::tuple<int, const void*, bool> entry{device, kernel, is_cluster};
    if (!(is_cluster ? cluster : shared) || allowed.count(entry) != 0) continue;
    int value = 1;
    if (!is_cluster) {
      cudaFuncAttributes of_kernel{};
      status = cudaFuncGetAttributes(&of_kernel, kernel);
      if (status != cudaSuccess) return status;
      status = cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
      if (status != cudaSuccess) return status;
      value -= static_cast<int>(of_kernel.sharedSizeBytes);
    }
    status = cudaFuncSetAttribute(kernel,
                                  is_cluster ? cudaFuncAttributeNonPortableClusterSizeAllowed
                                             : cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  value);
    if (status != cudaSuccess) return status;
    allowed.insert(entry);
  }
  return cudaSuccess;
}

// Whether a kernel has a body on the current device: one with clusters has none where it was
// compiled from PTX of an older architecture than has clusters (primitives.h, has_clusters).
inline bool is_compiled(const void* kernel, const Grid& grid) {
  if (grid.cluster == 1) return true;
  cudaFuncAttributes of_kernel{};
  return cudaFuncGetAttributes(&of_kernel, kernel) == cudaSuccess && of_kernel.ptxVersion >= 90;
}

inline cudaLaunchConfig_t configuration(const Grid& grid, Stream stream,
                                        cudaLaunchAttribute (&attributes)[kMaxAttributes]) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (grid.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(grid.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (grid.cooperative) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  return config;
}

// Null, or what went wrong. The parameters are copied into the launch, as a graph capture needs.
template <class Params>
const char* launch(void (*kernel)(Params), const Grid& grid, Stream stream, const Params& params) {
  const void* const function = reinterpret_cast<const void*>(kernel);
  cudaError_t status = allow(function, grid);
  if (status == cudaSuccess) {
    cudaLaunchAttribute attributes[kMaxAttributes];
    const cudaLaunchConfig_t config = configuration(grid, stream, attributes);
    void* arguments[] = {const_cast<Params*>(&params)};
    status = cudaLaunchKernelExC(&config, function, arguments);
  }
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();  // reported here, it must not meet the next one who asks
  return status == cudaErrorCooperativeLaunchTooLarge ? kDoesNotFit : cudaGetErrorString(status);
}

// How many blocks (of a cooperative grid) or clusters of a kernel the device holds at once, as the
// driver counts them; 0 where it cannot run at all. Asked for once.
template <class Params>
int64_t capacity(void (*kernel)(Params), const Grid& grid) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, size_t, int>, int64_t> known;
  const void* const function = reinterpret_cast<const void*>(kernel);
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] =
      known.try_emplace({device, function, grid.shared_bytes, grid.cluster}, 0);
  if (!is_new) return entry->second;
  int count = 0, multiprocessors = 1;
  cudaError_t status =
      is_compiled(function, grid) ? allow(function, grid) : cudaErrorNoKernelImageForDevice;
  if (status == cudaSuccess && grid.cluster > 1) {
    cudaLaunchAttribute attributes[kMaxAttributes];
    const cudaLaunchConfig_t config = configuration(grid, nullptr, attributes);
    status = cudaOccupancyMaxActiveClusters(&count, function, &config);
  } else if (status == cudaSuccess) {
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, function, grid.threads,
                                                           grid.shared_bytes);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (status == cudaSuccess) {
    entry->second = static_cast<int64_t>(count) * multiprocessors;
  } else {
    cudaGetLastError();
  }
  return entry->second;
}

}  // namespace fastrnn::cuda
