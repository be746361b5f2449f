// The CPU operator of a whole backward pass: the gradients of a layer's results to those of its
// input, states and parameters, in one call of a kernel.
#include <torch/library.h>

#include "cpu/saved.h"

namespace fastrnn::cpu {
namespace {

// Rows of d_gates between two turns of the recurrence and the products: enough for either to run
// undisturbed (256 rows cost up to 8 %), no more than stay in a last-level cache.
constexpr int64_t kChunkRows = 2048;
constexpr int64_t kFewestChunkRows = 256;
constexpr int64_t kChunkBytes = int64_t{8} << 20;

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> layer_vjp(
    c10::string_view cell, const OptionalTensor& d_output, const OptionalTensor& d_h_n,
    const OptionalTensor& d_c_n, const OptionalTensor& d_cells, const OptionalTensor& input,
    const OptionalTensor& batch_sizes, c10::SymInt batch, const OptionalTensor& h0,
    const OptionalTensor& c0, const OptionalTensor& gates, const OptionalTensor& hidden,
    const OptionalTensor& cells, at::TensorList w_ih, at::TensorList w_hh, at::TensorList w_hr,
    const c10::List<bool>& wanted) {
  const char* op = "layer_vjp";
  Saved s = read(op, cell, batch_sizes, batch, h0, c0, gates, hidden, cells, w_hh, w_hr);
  Layer& layer = s.layer;
  LayerShape& shape = layer.shape;
  const int64_t D = layer.directions(), N = layer.rows(), H = shape.hidden_size,
                P = shape.proj_size, GH = layer.products() * H;
  TORCH_CHECK(wanted.size() == static_cast<size_t>(4 * D), op, ": expected ", 4 * D, " flags, got ",
              wanted.size());
  TORCH_CHECK(w_ih.empty() || static_cast<int64_t>(w_ih.size()) == D, op, ": expected ", D,
              " w_ih, got ", w_ih.size());
  bool of_w_ih = false, of_w_hh = false;
  for (size_t d = 0; d < static_cast<size_t>(D); ++d) {
    of_w_ih = of_w_ih || wanted.get(4 * d);
    of_w_hh = of_w_hh || wanted.get(4 * d + 1);
  }
  TORCH_CHECK(input || !of_w_ih, op, ": expected input for d_w_ih, got None");
  if (input) {
    shape.input_size = input->size(-1);
  } else if (!w_ih.empty()) {
    shape.input_size = w_ih[0].size(-1);
  }
  const int64_t I = shape.input_size;

  VjpParams p{};
  StateGradients r = fill(p.backward, s, d_output, d_h_n, d_c_n, d_cells);
  ProductParams& products = p.products;
  products.h0 = s.h0;
  if (of_w_ih) products.input = s.pointer(input, "input", {N, I});
  if (of_w_hh) products.hidden = s.required(hidden, "hidden", s.rows_of(P));
  for (size_t d = 0; d < w_ih.size(); ++d) {
    products.weights[d].w_ih = s.pointer(w_ih[d], "w_ih", {GH, I});
  }

  Tensor d_input = layer.empty(w_ih.empty() ? at::DimVector{0} : at::DimVector{N, I});
  std::vector<Tensor> d_params = empty_gradients(layer, wanted, products.gradients);
  if (N == 0) return {d_input, r.d_h0, r.d_c0, r.d_hidden, d_params};
  if (!w_ih.empty()) products.d_input = d_input.mutable_data_ptr();
  products.shape = shape;
  products.shape.hidden_size = GH;
  products.apart = layer.columns() * H - GH;
  p.backward_threads = worthwhile_threads(layer, 0, true);
  const int64_t row_bytes = layer.columns() * H * static_cast<int64_t>(r.d_h0.element_size());
  p.chunk_rows = std::clamp(kChunkBytes / row_bytes, kFewestChunkRows, kChunkRows);
  const Kernels& k = kernels(shape.dtype);
  run(layer, p, I, k.vjp_workspace, k.vjp);
  return {d_input, r.d_h0, r.d_c0, r.d_hidden, d_params};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { m.impl("layer_vjp", layer_vjp); }

}  // namespace fastrnn::cpu
