// The device and the stream that an operator works on, and the device's limits.
// The tests replace this file with one for the CPU.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <cstring>
#include <mutex>

#include "cuda/launch.h"
#include "cuda/plan.h"

namespace fastrnn::cuda {

inline constexpr const char* kDeviceName = "cuda";

inline bool is_ours(const at::Tensor& t) { return t.is_cuda(); }

// Makes the tensor's device the current one for a scope.
using DeviceGuard = c10::cuda::CUDAGuard;

inline Stream current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// Of the current device, asked for once.
inline const DeviceLimits& device_limits() {
  constexpr int kMaxDevices = 64;
  static std::array<std::once_flag, kMaxDevices> once;
  static std::array<DeviceLimits, kMaxDevices> limits;
  const int device = c10::cuda::current_device();
  TORCH_CHECK(device < kMaxDevices, "fastrnn: expected fewer than ", kMaxDevices, " devices");
  const size_t i = static_cast<size_t>(device);
  std::call_once(once[i], [&] {
    const auto attribute = [device](cudaDeviceAttr name) {
      int value = 0;
      C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
      return value;
    };
    // How much of a whole device this may be (MIG, MPS), and what each kernel needs, the driver
    // says when a kernel is asked about (launch.h, capacity); these are the most there can be.
    const int64_t multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
    const bool clusters = attribute(cudaDevAttrClusterLaunch) != 0;
    limits[i] = {10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                     attribute(cudaDevAttrComputeCapabilityMinor),
                 static_cast<int>(multiprocessors),
                 static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)),
                 attribute(cudaDevAttrCooperativeLaunch) != 0 ? multiprocessors : 0,
                 {clusters ? multiprocessors / 8 : 0, clusters ? multiprocessors / 16 : 0}};
  });
  return limits[i];
}

// The word where kernels leave which of them waited in vain (params.h, Team): in the host's memory,
// so that it outlives what the trap does to the device. One address serves all devices, which share
// the host's address space.
inline uint32_t* wait_note() {
  static uint32_t* const note = []() -> uint32_t* {
    // While a graph is captured on this thread, memory is allocated beside it.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    C10_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
    void* memory = nullptr;
    const cudaError_t status =
        cudaHostAlloc(&memory, sizeof(uint32_t), cudaHostAllocPortable | cudaHostAllocMapped);
    C10_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
    C10_CUDA_CHECK(status);
    return static_cast<uint32_t*>(std::memset(memory, 0, sizeof(uint32_t)));
  }();
  return note;
}

}  // namespace fastrnn::cuda
