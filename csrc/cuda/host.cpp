// The CUDA engine: a call takes the current stream, chooses a regime by the plan
// and runs it; nothing here or below waits for the device.
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

Tensor Engine::empty(at::IntArrayRef size, const at::TensorOptions& options) {
  return at::empty(size, options);
}

void Engine::forward(const host::ForwardCall& given) {
  const host::Layer& layer = given.layer;
  const Tensor input = given.input.contiguous().view({layer.rows(), layer.shape.input_size});
  const host::ForwardCall call{layer, input, given.save, given.result};
  const Plan plan = plan_of(layer, Pass::kForward);
  const Stream stream = current_stream();
  follow(
      layer.op, plan, [&] { return forward_persistent(call, plan, stream); },
      [&] { forward_by_steps(call, stream); });
}

void Engine::backward(const host::BackwardCall& call) {
  const Stream stream = current_stream();
  if (call.d_cells) {  // only the steps regime has a place for them; it reads what the others saved
    backward_by_steps(call, stream);
    return;
  }
  const Plan plan = plan_of(call.layer, Pass::kBackward);
  follow(
      call.layer.op, plan, [&] { return backward_persistent(call, plan, stream); },
      [&] { backward_by_steps(call, stream); });
}

host::Products Engine::vjp(const host::BackwardCall& call, const OptionalTensor& input,
                           bool with_input, const c10::List<bool>& wanted) {
  const host::Layer& layer = call.layer;
  if (layer.rows() > 0) backward(call);
  std::vector<Tensor> w_ih;
  for (int d = 0; d < layer.shape.directions && with_input; ++d) {
    w_ih.push_back(layer.params_of(d)[0]);
  }
  return host::products<Engine>(call.result.d_gates, layer.apart(), layer.batch_sizes,
                                layer.batch(), input, layer.hidden, layer.h0, w_ih, wanted,
                                layer.resets, layer.shape.steps.to_initial, std::nullopt);
}

}  // namespace fastrnn::cuda
