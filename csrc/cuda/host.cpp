// The CUDA operators: checks, allocation, the plan. A call guards the device,
// takes the current stream, chooses a regime and runs it; nothing here or below
// waits for the device.
#include "cuda/host.h"

#include <ATen/Context.h>
#include <torch/version.h>

#include "cuda/calls.h"
#include "cuda/device.h"

namespace fastrnn::cuda {
namespace {

// What torch.backends.cuda.matmul says, whichever of its two switches said it. The older one's
// reader raises once the newer one, or one that it inherits from, was used.
bool products_are_tf32() {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 11
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
#else
  return at::globalContext().allowTF32CuBLAS();
#endif
}

// The limits that the plan starts from are of the device; what a kernel's blocks leave of them the
// driver is asked before the plan is followed, and then it is made anew.
Plan plan_of(const host::Layer& layer, Pass pass) {
  const LayerShape& s = layer.shape;
  const bool tf32 = s.dtype == DType::kFloat && products_are_tf32();
  const Problem problem{s.cell,        pass,         s.dtype,     tf32,           s.hidden_size,
                        s.steps.batch, s.directions, s.projected, s.steps.seq_len};
  DeviceLimits limits = device_limits();
  if (cooperative_ruled_out()) limits.cooperative_blocks = 0;
  for (;;) {
    const Plan plan = make_plan(problem, limits, forced_regime());
    if (plan.regime != Regime::kCluster && plan.regime != Regime::kGrid) return plan;
    int64_t& assumed =
        plan.regime == Regime::kGrid ? limits.cooperative_blocks : clusters_of(limits, plan.blocks);
    const int64_t held = team_capacity(layer, pass, plan);
    if (held >= assumed) return plan;
    assumed = held;
  }
}

// Runs a plan; a grid for which there is no room just now goes by steps, unless it was asked for.
template <class Persistent, class BySteps>
void follow(const char* op, const Plan& plan, Persistent persistent, BySteps by_steps) {
  if (plan.regime != Regime::kSteps && persistent()) return;
  TORCH_CHECK(plan.regime == Regime::kSteps || !forced_regime(), op,
              ": FASTRNN_CUDA_REGIME=", name_of(plan.regime), " is impossible here: ", kDoesNotFit);
  by_steps();
}

}  // namespace

host::ForwardResult forward(const char* op, CellKind cell, const Tensor& input,
                            const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                            const OptionalTensor& c0, at::TensorList params, bool has_biases,
                            bool bidirectional, bool save, const host::Resets& resets) {
  const int64_t dim = batch_sizes ? 2 : 3;
  TORCH_CHECK(is_ours(input) && input.dim() == dim, op, ": expected input with ", dim,
              " dimensions on ", kDeviceName, ", got ", input.sizes(), " on ", input.device());
  const DeviceGuard device(input.device());
  const at::AutoDispatchBelowADInplaceOrView below;
  host::Layer layer(op, input, cell, bidirectional ? 2 : 1, has_biases);
  LayerShape& shape = layer.shape;
  layer.set_params(params, input.size(-1));
  if (batch_sizes) {
    layer.set_packed(*batch_sizes, input.size(0));
  } else {
    TORCH_CHECK(input.size(0) > 0, op, ": expected input with at least one step, got shape ",
                input.sizes());
    shape.steps = {input.size(0), input.size(1), input.size(0) * input.size(1), nullptr, nullptr};
  }
  layer.set_resets(resets);
  const int64_t D = layer.directions(), N = layer.rows(), B = layer.batch(), H = shape.hidden_size,
                P = shape.proj_size;
  const auto empty = [&](at::IntArrayRef size) { return at::empty(size, layer.options); };
  host::ForwardResult r;
  r.output = batch_sizes ? empty({N, D * P}) : empty({input.size(0), B, D * P});
  r.h_n = empty({D, B, P});
  if (layer.has_c()) r.c_n = empty({D, B, H});
  if (layer.saves_gates()) r.gates = save ? empty({D, N, layer.columns() * H}) : empty({0});
  r.hidden = save ? empty({D, N, P}) : empty({0});
  if (layer.has_c()) r.cells = save ? empty({D, N, H}) : empty({0});
  const ForwardCall call{layer,
                         input.contiguous().view({N, shape.input_size}),
                         layer.contiguous(h0, "h0", {D, B, P}),
                         layer.contiguous(c0, "c0", {D, B, H}),
                         save,
                         r};
  if (N == 0) return r;
  const Plan plan = plan_of(layer, Pass::kForward);
  const Stream stream = current_stream();
  follow(
      op, plan, [&] { return forward_persistent(call, plan, stream); },
      [&] { forward_by_steps(call, stream); });
  return r;
}

host::BackwardResult backward(const char* op, CellKind cell, const OptionalTensor& d_output,
                              const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
                              const OptionalTensor& d_cells, const OptionalTensor& batch_sizes,
                              const OptionalTensor& h0, const OptionalTensor& c0,
                              const OptionalTensor& gates, const Tensor& saved,
                              at::TensorList params, bool has_biases, bool bidirectional,
                              const host::Resets& resets) {
  TORCH_CHECK(is_ours(saved), op, ": expected saved tensors on ", kDeviceName, ", got ",
              saved.device());
  const DeviceGuard device(saved.device());
  const at::AutoDispatchBelowADInplaceOrView below;
  host::Layer layer(op, saved, cell, bidirectional ? 2 : 1, has_biases);
  layer.set_params(params, -1);
  layer.set_backward_steps(saved, batch_sizes, d_output, d_h_n, d_c_n);
  layer.set_resets(resets);
  const LayerShape& shape = layer.shape;
  const int64_t D = layer.directions(), N = layer.rows(), B = layer.batch(), H = shape.hidden_size,
                P = shape.proj_size;
  layer.check(saved, layer.has_c() ? "cells" : "hidden", {D, N, H});
  const auto empty = [&](at::IntArrayRef size) { return at::empty(size, layer.options); };
  host::BackwardResult r;
  r.d_gates = empty({D, N, layer.columns() * H});
  r.d_h0 = empty({D, B, P});
  if (layer.has_c()) r.d_c0 = empty({D, B, H});
  if (layer.has_c()) r.d_hidden = shape.projected ? empty({D, N, P}) : empty({0});
  const BackwardCall call{layer,
                          layer.contiguous_d_output(d_output),
                          layer.contiguous(d_h_n, "d_h_n", {D, B, P}),
                          layer.contiguous(d_c_n, "d_c_n", {D, B, H}),
                          layer.contiguous(d_cells, "d_cells", {D, N, H}),
                          layer.contiguous(h0, "h0", {D, B, P}),
                          layer.contiguous(c0, "c0", {D, B, H}),
                          layer.contiguous(gates, "gates", {D, N, layer.columns() * H}),
                          saved.contiguous(),
                          r};
  if (N == 0) {  // no step: the gradients of the final states are those of the initial ones
    call.d_h_n ? r.d_h0.copy_(*call.d_h_n) : r.d_h0.zero_();
    if (layer.has_c()) call.d_c_n ? r.d_c0.copy_(*call.d_c_n) : r.d_c0.zero_();
    return r;
  }
  const Stream stream = current_stream();
  if (d_cells) {  // only the steps regime has a place for them; it reads what the others saved
    backward_by_steps(call, stream);
    return r;
  }
  const Plan plan = plan_of(layer, Pass::kBackward);
  follow(
      op, plan, [&] { return backward_persistent(call, plan, stream); },
      [&] { backward_by_steps(call, stream); });
  return r;
}

}  // namespace fastrnn::cuda
