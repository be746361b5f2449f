// One call of a CUDA operator after its checks, ready for a regime to run. Inputs
// are contiguous; results are allocated, and a regime writes every element of
// them.
#pragma once
#include <ATen/ops/empty.h>

#include <string>

#include "cuda/launchers.h"
#include "cuda/plan.h"
#include "host/operators.h"

namespace fastrnn::cuda {

using at::Tensor;
using host::OptionalTensor;

using host::BackwardCall;
using host::ForwardCall;  // here with its input contiguous, [N, I]

// What the recurrence of a cell runs on: [D, N, H], every step's c, or h where there is none.
inline const Tensor& saved_state(const host::Layer& layer) {
  return layer.has_c() ? *layer.cells : *layer.hidden;
}

void forward_by_steps(const ForwardCall& call, Stream stream);
void backward_by_steps(const BackwardCall& call, Stream stream);

// Regimes single, cluster and grid. False, and nothing done, where the device refuses the grid.
bool forward_persistent(const ForwardCall& call, const Plan& plan, Stream stream);
bool backward_persistent(const BackwardCall& call, const Plan& plan, Stream stream);

// Of a plan for cluster or grid: how many clusters, or blocks of a grid, of its kernel the device
// holds.
int64_t team_capacity(const host::Layer& layer, Pass pass, const Plan& plan);

// The steps with device pointers; `memory` keeps them alive. Copies nothing when every step has
// the same rows, and never waits for the device.
struct DeviceSteps {
  Steps steps;
  Tensor memory;
};
DeviceSteps upload_steps(const host::Layer& layer, Stream stream);

// What to say of a failure besides: which kernel's blocks waited for each other in vain, if any
// did. That ends the kernel itself; the error comes from whichever call of the process is next.
std::string said_of_waits();

inline void check_launch(const char* op, const char* error) {
  TORCH_CHECK(error == nullptr, op, ": a CUDA kernel failed or could not be started: ", error,
              said_of_waits());
}

// What the state of a recurrence is kept in: float unless the layer is double.
inline at::ScalarType state_type(const host::Layer& layer) {
  return layer.shape.dtype == DType::kDouble ? at::kDouble : at::kFloat;
}

// Element i of a tensor's data, as a pointer.
inline const void* at_element(const Tensor& t, int64_t i) {
  return static_cast<const char*>(t.const_data_ptr()) + i * t.element_size();
}
inline const void* at_element(const OptionalTensor& t, int64_t i) {
  return t ? at_element(*t, i) : nullptr;
}
inline void* at_element_mutable(const Tensor& t, int64_t i) {
  return static_cast<char*>(t.mutable_data_ptr()) + i * t.element_size();
}

}  // namespace fastrnn::cuda
