// The engine that host/operators.h makes operators of.
#pragma once
#include <ATen/core/LegacyTypeDispatch.h>

#include "cuda/device.h"
#include "host/operators.h"

namespace fastrnn::cuda {

struct Engine {
  // What an operator computes is no part of any graph.
  struct Guard {
    explicit Guard(at::Device of) : device(of) {}
    DeviceGuard device;
    at::AutoDispatchBelowADInplaceOrView below;
  };
  static constexpr const char* kName = kDeviceName;
  static constexpr bool kTakesResets = true, kTakesInside = false, kHasSecondOrder = false,
                        kHasVjp = false;

  static bool is_ours(const at::Tensor& t) { return cuda::is_ours(t); }
  static at::Tensor empty(at::IntArrayRef size, const at::TensorOptions& options);
  static void forward(const host::ForwardCall& call);
  static void backward(const host::BackwardCall& call);
  static host::Products vjp(const host::BackwardCall& call, const host::OptionalTensor& input,
                            bool with_input, const c10::List<bool>& wanted);
  static host::Products products(const host::ProductsCall& call);
};

}  // namespace fastrnn::cuda
