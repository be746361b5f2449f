// The CPU operators behind forward mode and second derivatives: the derivative of
// the forward pass, the backward pass with what its cells received, and the
// derivative of the backward pass. All take one layer's saved tensors.
#include <torch/library.h>

#include "cpu/saved.h"

namespace fastrnn::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_tangent(
    c10::string_view cell, const OptionalTensor& t_input,
    const c10::List<std::optional<Tensor>>& t_params, const OptionalTensor& through_w_ih,
    const OptionalTensor& through_w_hh, const OptionalTensor& through_w_hr,
    const OptionalTensor& t_h0, const OptionalTensor& t_c0, const OptionalTensor& input,
    const OptionalTensor& batch_sizes, c10::SymInt batch, const OptionalTensor& h0,
    const OptionalTensor& c0, const OptionalTensor& gates, const OptionalTensor& hidden,
    const OptionalTensor& cells, at::TensorList w_ih, at::TensorList w_hh, at::TensorList w_hr,
    bool save) {
  const char* op = "layer_tangent";
  Saved s = read(op, cell, batch_sizes, batch, h0, c0, gates, hidden, cells, w_hh, w_hr);
  Layer& layer = s.layer;
  const int64_t D = layer.directions(), N = layer.rows(), H = layer.shape.hidden_size,
                P = layer.shape.proj_size, GH = layer.products() * H;
  TORCH_CHECK(static_cast<int64_t>(w_ih.size()) == D && w_ih[0].dim() == 2, op,
              ": expected w_ih of ", D, " directions, got ", w_ih.size());
  TORCH_CHECK(static_cast<int64_t>(t_params.size()) == 4 * D, op, ": expected t_params of ", 4 * D,
              " tensors or None, got ", t_params.size());
  const int64_t I = layer.shape.input_size = w_ih[0].size(1);
  TangentParams p{};
  p.shape = layer.shape;
  std::copy(s.weights, s.weights + 2, p.weights);
  int64_t terms = 0;  // of the products with what is not recurrent
  for (int64_t d = 0; d < D; ++d) {
    const auto tangent = [&](int64_t k, const char* name, at::IntArrayRef size) {
      return s.pointer(t_params.get(static_cast<size_t>(4 * d + k)), name, size);
    };
    Weights& t = p.t_weights[d];
    t = {tangent(0, "t_w_ih", {GH, I}), tangent(1, "t_w_hh", {GH, P}), tangent(2, "t_b_ih", {GH}),
         tangent(3, "t_b_hh", {GH}), nullptr};
    if (t_input) p.weights[d].w_ih = s.pointer(w_ih[d], "w_ih", {GH, I});
    if (t.w_ih) p.input = s.required(input, "input", {N, I});
    if (t.w_hh) p.hidden = s.required(hidden, "hidden", s.rows_of(P));
    terms = std::max(terms, (t_input ? I : 0) + (t.w_ih ? I : 0) + (t.w_hh ? P : 0));
  }
  p.t_input = s.pointer(t_input, "t_input", {N, I});
  p.through_w_ih = s.pointer(through_w_ih, "through_w_ih", s.rows_of(GH));
  p.through_w_hh = s.pointer(through_w_hh, "through_w_hh", s.rows_of(GH));
  p.through_w_hr = s.pointer(through_w_hr, "through_w_hr", s.rows_of(P));
  p.t_h0 = s.pointer(t_h0, "t_h0", s.h_state());
  p.t_c0 = s.has_c() ? s.pointer(t_c0, "t_c0", s.c_state()) : nullptr;
  p.h0 = s.h0;
  p.c0 = s.c0;
  p.gates = s.gates;
  if (s.hidden) p.hidden = s.hidden;
  p.cells = s.cells;

  Tensor t_hidden = layer.empty(s.rows_of(P)), t_h_n = layer.empty(s.h_state());
  Tensor t_c_n = s.has_c() ? layer.empty(s.c_state()) : layer.empty({0});
  Tensor t_gates = save && s.gates ? layer.empty(s.rows_of(layer.columns() * H)) : layer.empty({0});
  Tensor t_cells = save && s.has_c() ? layer.empty(s.rows_of(H)) : layer.empty({0});
  if (layer.rows() == 0) {
    copy_or_zero(t_h_n, t_h0);
    if (s.has_c()) copy_or_zero(t_c_n, t_c0);
    return {t_hidden, t_h_n, t_c_n, t_gates, t_cells};
  }
  p.t_hidden = t_hidden.mutable_data_ptr();
  p.t_h_n = t_h_n.mutable_data_ptr();
  if (save && s.gates) p.t_gates = t_gates.mutable_data_ptr();
  if (save && s.has_c()) p.t_cells = t_cells.mutable_data_ptr();
  if (s.has_c()) p.t_c_n = t_c_n.mutable_data_ptr();
  const Kernels& k = kernels(layer.shape.dtype);
  run(layer, p, terms, k.tangent_workspace, k.tangent);
  return {t_hidden, t_h_n, t_c_n, t_gates, t_cells};
}

struct SweepResult : StateGradients {
  Tensor d_gates;
};

// The backward kernel on what Saved and the caller put into p.
SweepResult sweep(Saved& s, BackwardParams& p, const OptionalTensor& d_output,
                  const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
                  const OptionalTensor& d_cells) {
  const Layer& layer = s.layer;
  SweepResult r{fill(p, s, d_output, d_h_n, d_c_n, d_cells),
                layer.empty(s.rows_of(layer.columns() * layer.shape.hidden_size))};
  if (layer.rows() == 0) return r;
  p.d_gates = r.d_gates.mutable_data_ptr();
  const Kernels& k = kernels(layer.shape.dtype);
  run(layer, p, 0, k.backward_workspace, k.backward);
  return r;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_backward(
    c10::string_view cell, const OptionalTensor& d_output, const OptionalTensor& d_h_n,
    const OptionalTensor& d_c_n, const OptionalTensor& d_cells, const OptionalTensor& batch_sizes,
    c10::SymInt batch, const OptionalTensor& h0, const OptionalTensor& c0,
    const OptionalTensor& gates, const OptionalTensor& hidden, const OptionalTensor& cells,
    at::TensorList w_hh, at::TensorList w_hr) {
  Saved s =
      read("layer_backward", cell, batch_sizes, batch, h0, c0, gates, hidden, cells, w_hh, w_hr);
  const int64_t H = s.layer.shape.hidden_size;
  Tensor d_cell_h = s.layer.empty(s.rows_of(H));
  Tensor d_cell_c = s.has_c() ? s.layer.empty(s.rows_of(H)) : s.layer.empty({0});
  BackwardParams p{};
  if (s.layer.rows() > 0) {
    p.d_cell_h = d_cell_h.mutable_data_ptr();
    if (s.has_c()) p.d_cell_c = d_cell_c.mutable_data_ptr();
  }
  SweepResult r = sweep(s, p, d_output, d_h_n, d_c_n, d_cells);
  return {r.d_gates, r.d_h0, r.d_c0, r.d_hidden, d_cell_h, d_cell_c};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_backward_tangent(
    c10::string_view cell, const OptionalTensor& t_d_output, const OptionalTensor& t_d_h_n,
    const OptionalTensor& t_d_c_n, const OptionalTensor& t_d_cells,
    const OptionalTensor& through_w_hh, const OptionalTensor& through_w_hr,
    const OptionalTensor& t_h0, const OptionalTensor& t_c0, const OptionalTensor& t_gates,
    const OptionalTensor& t_hidden, const OptionalTensor& t_cells, const Tensor& d_cell_h,
    const OptionalTensor& d_cell_c, const OptionalTensor& batch_sizes, c10::SymInt batch,
    const OptionalTensor& h0, const OptionalTensor& c0, const OptionalTensor& gates,
    const OptionalTensor& hidden, const OptionalTensor& cells, at::TensorList w_hh,
    at::TensorList w_hr) {
  Saved s = read("layer_backward_tangent", cell, batch_sizes, batch, h0, c0, gates, hidden, cells,
                 w_hh, w_hr);
  const int64_t H = s.layer.shape.hidden_size;
  BackwardDirection direction{};
  direction.d_cell_h = s.pointer(d_cell_h, "d_cell_h", s.rows_of(H));
  if (s.has_c()) {
    direction.d_cell_c = s.required(d_cell_c, "d_cell_c", s.rows_of(H));
    direction.t_cells = s.required(t_cells, "t_cells", s.rows_of(H));
    direction.t_c0 = s.pointer(t_c0, "t_c0", s.c_state());
  } else {
    direction.t_hidden = s.required(t_hidden, "t_hidden", s.rows_of(H));
    direction.t_h0 = s.pointer(t_h0, "t_h0", s.h_state());
  }
  if (s.gates) direction.t_gates = s.required(t_gates, "t_gates", s.rows_of(s.layer.columns() * H));
  direction.through_w_hh =
      s.pointer(through_w_hh, "through_w_hh", s.rows_of(s.layer.shape.proj_size));
  direction.through_w_hr = s.pointer(through_w_hr, "through_w_hr", s.rows_of(H));
  BackwardParams p{};
  p.direction = &direction;
  SweepResult r = sweep(s, p, t_d_output, t_d_h_n, t_d_c_n, t_d_cells);
  return {r.d_gates, r.d_h0, r.d_c0, r.d_hidden};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("layer_tangent", layer_tangent);
  m.impl("layer_backward", layer_backward);
  m.impl("layer_backward_tangent", layer_backward_tangent);
}

}  // namespace fastrnn::cpu
