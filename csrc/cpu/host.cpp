// The CPU engine of host/operators.h: tensors turned into the params structs of the kernels.
#include "host/operators.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include "cpu/inference.h"
#include "cpu/layer.h"

namespace fastrnn::cpu {
namespace {

using host::Products;

// What an operator computes is no part of any graph.
struct Guard {
  explicit Guard(at::Device) {
    // Copies of ours and what comes between layers are torch's parallel loops.
    if (lost_its_threads()) at::set_num_threads(1);
  }
  at::AutoDispatchBelowADInplaceOrView below;
};

struct Engine {
  using Guard = cpu::Guard;
  static constexpr const char* kName = "cpu";
  static constexpr bool kTakesResets = false, kTakesInside = true, kHasSecondOrder = true,
                        kHasVjp = true;

  static bool is_ours(const Tensor& t) { return t.device().is_cpu(); }
  static Tensor empty(at::IntArrayRef size, const at::TensorOptions& options) {
    return cpu::empty(size, options);
  }
  static void forward(const host::ForwardCall& call);
  static void backward(const host::BackwardCall& call);
  static Products vjp(const host::BackwardCall& call, const OptionalTensor& input, bool with_input,
                      const c10::List<bool>& wanted);
  static Products products(const host::ProductsCall& call);
};

void Engine::forward(const host::ForwardCall& call) {
  const Layer& layer = call.layer;
  const host::ForwardResult& r = call.result;
  const Tensor x = with_contiguous_rows(call.input);
  ForwardParams p{};
  p.shape = layer.shape;
  fill(p.weights, layer);
  p.input = data(x);
  p.input_step_stride = layer.batch_sizes ? 0 : x.stride(0);
  p.input_row_stride = x.stride(-2);
  p.h0 = data(layer.h0);
  p.c0 = data(layer.c0);
  p.output = target(r.output);
  p.h_n = target(r.h_n);
  p.c_n = target(r.c_n);
  p.gates = target(r.gates);
  p.hidden = target(r.hidden);
  p.cells = target(r.cells);
  p.inside = layer.inside;
  p.normed = target(r.normed);
  p.rstd = target(r.rstd);
  const Kernels& k = kernels(layer.shape.dtype);
  run(layer, p, layer.shape.input_size, k.forward_workspace, k.forward);
}

void Engine::backward(const host::BackwardCall& call) {
  BackwardParams p{};
  fill(p, call);
  const Kernels& k = kernels(call.layer.shape.dtype);
  run(call.layer, p, 0, k.backward_workspace, k.backward);
}

// Rows of d_gates between two turns of the recurrence and the products: enough for either to run
// undisturbed (256 rows cost up to 8 %), no more than stay in a last-level cache.
constexpr int64_t kChunkRows = 2048;
constexpr int64_t kFewestChunkRows = 256;
constexpr int64_t kChunkBytes = int64_t{8} << 20;

Products Engine::vjp(const host::BackwardCall& call, const OptionalTensor& input, bool with_input,
                     const c10::List<bool>& wanted) {
  const Layer& layer = call.layer;
  const LayerShape& shape = layer.shape;
  const int64_t N = layer.rows(), H = shape.hidden_size, GH = layer.products() * H,
                I = shape.input_size;
  VjpParams p{};
  fill(p.backward, call);
  ProductParams& products = p.products;
  const OptionalTensor x = input ? OptionalTensor(input->contiguous()) : std::nullopt;
  products.input = data(x);
  products.hidden = data(layer.hidden);
  products.h0 = data(layer.h0);
  products.h_scale = layer.inside.h_scale;
  products.shape = shape;
  products.shape.hidden_size = GH;
  products.apart = layer.apart();
  const Tensor d_input = cpu::empty(layer, with_input ? at::DimVector{N, I} : at::DimVector{0});
  if (with_input && N > 0) products.d_input = d_input.mutable_data_ptr();
  for (int d = 0; d < shape.directions && with_input; ++d) {
    products.weights[d].w_ih = data(layer.params_of(d)[0]);
  }
  std::vector<Tensor> gradients = empty_gradients(layer, GH, wanted, products.gradients);
  if (N == 0) return {d_input, gradients};
  p.backward_threads = worthwhile_threads(layer, 0, true);
  const int64_t row_bytes = layer.columns() * H * call.result.d_h0.element_size();
  p.chunk_rows = std::clamp(kChunkBytes / row_bytes, kFewestChunkRows, kChunkRows);
  const Kernels& k = kernels(shape.dtype);
  run(layer, p, I, k.vjp_workspace, k.vjp);
  return {d_input, gradients};
}

Products Engine::products(const host::ProductsCall& call) {
  const Layer& layer = call.layer;
  const int64_t N = layer.rows(), I = layer.shape.input_size;
  ProductParams p{};
  p.shape = layer.shape;
  p.apart = call.apart;
  p.d_gates = data(call.d_gates);
  p.input = data(call.input);
  p.hidden = data(call.hidden);
  p.h0 = data(call.h0);
  p.h_scale = data(call.h_scale);
  const bool with_input = !call.w_ih.empty();
  const Tensor d_input = cpu::empty(layer, with_input ? at::DimVector{N, I} : at::DimVector{0});
  if (with_input && N > 0) p.d_input = d_input.mutable_data_ptr();
  for (size_t d = 0; d < call.w_ih.size(); ++d) p.weights[d].w_ih = data(call.w_ih[d]);
  std::vector<Tensor> gradients =
      empty_gradients(layer, layer.shape.hidden_size, call.wanted, p.gradients);
  if (N == 0) return {d_input, gradients};
  const Kernels& k = kernels(layer.shape.dtype);
  run(layer, p, I, k.products_workspace, k.products);
  return {d_input, gradients};
}

}  // namespace

std::vector<Tensor> infer(CellKind cell, const Tensor& input, const std::vector<Tensor>& states,
                          at::TensorList params, bool bidirectional) {
  host::OptionalTensors list;
  const cells::Traits& traits = cells::traits(cell);
  for (size_t i = 0; i < static_cast<size_t>(traits.states); ++i) {
    list.push_back(i < states.size() ? OptionalTensor(states[i]) : std::nullopt);
  }
  return host::layer_forward<Engine>(traits.name, input, std::nullopt, list, params, bidirectional,
                                     false, std::nullopt, false, "none", 0.0, std::nullopt,
                                     std::nullopt, std::nullopt, std::nullopt);
}

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { host::implement<Engine>(m); }

}  // namespace fastrnn::cpu
