// The CPU operators behind forward mode and second derivatives: the derivative of the forward pass,
// and that of the recurrence of the backward pass. Both take one layer's saved tensors.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "cpu/layer.h"

namespace fastrnn::cpu {
namespace {

using host::at_or_none;
using host::OptionalTensors;

void check_count(const Layer& layer, const OptionalTensors& list, const char* name, int64_t count) {
  TORCH_CHECK(static_cast<int64_t>(list.size()) == count, layer.op, ": expected ", name, " of ",
              count, " tensors or None, got ", list.size());
}

// Tangents of what is inside the recurrence, of each direction: four of gains where something is
// normalised, and one of a cell's vectors.
template <class Pointer>
void fill_inside(Weights (&t_weights)[2], const Layer& layer, const OptionalTensors& t_inside,
                 Pointer pointer) {
  using host::Param;
  const size_t gains = layer.inside.parts() > 0 ? 4 : 0;
  const size_t each = gains + (layer.cell().vectors > 0 ? 1 : 0);
  check_count(layer, t_inside, "t_inside", static_cast<int64_t>(each) * layer.directions());
  for (size_t d = 0; d < static_cast<size_t>(layer.directions()); ++d) {
    const auto tangent = [&](size_t k, Param kind) {
      return pointer(t_inside.get(each * d + k), host::name_of(kind), layer.size_of(kind));
    };
    Weights& t = t_weights[d];
    if (gains > 0) {
      t.gain_ih = tangent(0, Param::kGainIh);
      t.gain_hh = tangent(1, Param::kGainHh);
      t.cell_gain = tangent(2, Param::kCellGain);
      t.cell_bias = tangent(3, Param::kCellBias);
    }
    if (layer.cell().vectors > 0) t.w_ch = tangent(gains, Param::kWCh);
  }
}

std::vector<Tensor> layer_tangent(c10::string_view cell, const OptionalTensor& t_input,
                                  const OptionalTensors& t_states, const OptionalTensors& t_params,
                                  const OptionalTensors& t_inside, const OptionalTensors& through,
                                  const OptionalTensor& input, const OptionalTensor& batch_sizes,
                                  c10::SymInt batch, const OptionalTensors& states,
                                  const OptionalTensors& saved, at::TensorList weights, bool save,
                                  c10::string_view norm, double eps, host::OptionalDoubles rates,
                                  at::OptionalIntArrayRef counter, const OptionalTensor& seed,
                                  const OptionalTensor& h_scale) {
  const char* op = "layer_tangent";
  const at::AutoDispatchBelowADInplaceOrView below;
  const Layer layer = host::saved_layer(op, host::cell_kind(op, cell), batch_sizes, batch, states,
                                        saved, weights, {norm, eps, rates, counter, seed, h_scale});
  const int64_t D = layer.directions(), N = layer.rows(), H = layer.shape.hidden_size,
                P = layer.shape.proj_size, GH = layer.products() * H, I = layer.shape.input_size;
  check_count(layer, t_states, "t_states", layer.cell().states);
  check_count(layer, t_params, "t_params", 4 * D);
  check_count(layer, through, "through", 3);
  std::vector<OptionalTensor> keep;  // what the pointers point into
  keep.reserve(static_cast<size_t>(9 * D + 6));
  const auto pointer = [&](const OptionalTensor& t, const char* name, at::IntArrayRef size) {
    keep.push_back(layer.contiguous(t, name, size));
    return data(keep.back());
  };
  TangentParams p{};
  p.shape = layer.shape;
  fill(p.weights, layer);
  int64_t terms = 0;  // of the products with what is not recurrent
  for (int64_t d = 0; d < D; ++d) {
    const auto tangent = [&](int64_t k, const char* name, at::IntArrayRef size) {
      return pointer(t_params.get(static_cast<size_t>(4 * d + k)), name, size);
    };
    Weights& t = p.t_weights[d];
    t.w_ih = tangent(0, "t_w_ih", {GH, I});
    t.w_hh = tangent(1, "t_w_hh", {GH, P});
    t.b_ih = tangent(2, "t_b_ih", {GH});
    t.b_hh = tangent(3, "t_b_hh", {GH});
    TORCH_CHECK(input || !t.w_ih, op, ": expected input, got None");
    TORCH_CHECK(layer.hidden || !t.w_hh, op, ": expected hidden, got None");
    terms = std::max(terms, (t_input ? I : 0) + (t.w_ih ? I : 0) + (t.w_hh ? P : 0));
  }
  p.t_input = pointer(t_input, "t_input", {N, I});
  p.through_w_ih = pointer(through.get(0), "through_w_ih", layer.rows_of(GH));
  p.through_w_hh = pointer(through.get(1), "through_w_hh", layer.rows_of(GH));
  TORCH_CHECK(!layer.inside.any || (!p.through_w_ih && !p.through_w_hh), op,
              ": expected nothing through w_ih or w_hh with options inside the recurrence");
  p.through_w_hr = pointer(through.get(2), "through_w_hr", layer.rows_of(P));
  fill_inside(p.t_weights, layer, t_inside, pointer);
  p.inside = layer.inside;
  p.normed = data(layer.normed);
  p.rstd = data(layer.rstd);
  p.t_h0 = pointer(t_states.get(0), "t_h0", layer.h_state());
  if (layer.has_c()) p.t_c0 = pointer(t_states.get(1), "t_c0", layer.c_state());
  p.input = pointer(input, "input", {N, I});
  p.h0 = data(layer.h0);
  p.c0 = data(layer.c0);
  p.gates = data(layer.gates);
  p.hidden = data(layer.hidden);
  p.cells = data(layer.cells);

  std::vector<Tensor> results;
  const auto result_of = [&](const Tensor& t) {
    results.push_back(t);
    return N > 0 ? t.mutable_data_ptr() : nullptr;
  };
  const auto result = [&](at::IntArrayRef size) { return result_of(empty(layer, size)); };
  p.t_h_n = result(layer.h_state());
  if (layer.has_c()) p.t_c_n = result(layer.c_state());
  if (save && layer.normed) {
    p.t_normed = result(layer.normed_rows());
    p.t_rstd = result_of(empty(layer.rstd_rows(), layer.compute_options()));
  }
  if (save && layer.saves_gates()) p.t_gates = result(layer.gate_rows());
  p.t_hidden = result(layer.rows_of(P));
  if (save && layer.has_c()) p.t_cells = result(layer.rows_of(H));
  if (N == 0) {
    for (size_t i = 0; i < static_cast<size_t>(layer.cell().states); ++i) {
      const OptionalTensor t = t_states.get(i);
      t ? results[i].copy_(*t) : results[i].zero_();
    }
    return results;
  }
  const Kernels& k = kernels(layer.shape.dtype);
  run(layer, p, terms, k.tangent_workspace, k.tangent);
  return results;
}

std::vector<Tensor> gate_gradients_tangent(
    c10::string_view cell, const OptionalTensors& t_d_results, const OptionalTensors& t_inside,
    const OptionalTensors& through, const OptionalTensors& t_states, const OptionalTensors& t_saved,
    at::TensorList received, const OptionalTensor& batch_sizes, c10::SymInt batch,
    const OptionalTensors& states, const OptionalTensors& saved, at::TensorList weights,
    c10::string_view norm, double eps, host::OptionalDoubles rates, at::OptionalIntArrayRef counter,
    const OptionalTensor& seed, const OptionalTensor& h_scale) {
  const char* op = "gate_gradients_tangent";
  const at::AutoDispatchBelowADInplaceOrView below;
  const Layer layer = host::saved_layer(op, host::cell_kind(op, cell), batch_sizes, batch, states,
                                        saved, weights, {norm, eps, rates, counter, seed, h_scale});
  const int64_t H = layer.shape.hidden_size, count = layer.cell().states;
  check_count(layer, t_states, "t_states", count);
  check_count(layer, t_saved, "t_saved", static_cast<int64_t>(saved.size()));
  check_count(layer, through, "through", 2);
  TORCH_CHECK(static_cast<int64_t>(received.size()) == count, op, ": expected received of ", count,
              " tensors, got ", received.size());
  std::vector<OptionalTensor> keep;  // what the pointers point into
  keep.reserve(static_cast<size_t>(10 + 5 * layer.directions()));
  const auto pointer = [&](const OptionalTensor& t, const char* name, at::IntArrayRef size) {
    keep.push_back(layer.contiguous(t, name, size));
    return data(keep.back());
  };
  const auto required = [&](const OptionalTensor& t, const char* name, at::IntArrayRef size) {
    TORCH_CHECK(t, op, ": expected ", name, ", got None");
    return pointer(t, name, size);
  };
  BackwardDirection direction{};
  direction.d_cell_h = pointer(received[0], "d_cell_h", layer.rows_of(H));
  const size_t last = t_saved.size() - 1;
  if (layer.has_c()) {
    direction.d_cell_c = pointer(received[1], "d_cell_c", layer.rows_of(H));
    direction.t_cells = required(t_saved.get(last), "t_cells", layer.rows_of(H));
    direction.t_c0 = pointer(t_states.get(1), "t_c0", layer.c_state());
  } else {
    direction.t_hidden = required(t_saved.get(last), "t_hidden", layer.rows_of(H));
    direction.t_h0 = pointer(t_states.get(0), "t_h0", layer.h_state());
  }
  size_t next = 0;
  if (layer.normed) {
    direction.t_normed = required(t_saved.get(next++), "t_normed", layer.normed_rows());
    const OptionalTensor t_rstd = t_saved.get(next++);
    TORCH_CHECK(t_rstd, op, ": expected t_rstd, got None");
    keep.push_back(layer.contiguous_statistics(*t_rstd, "t_rstd"));
    direction.t_rstd = data(keep.back());
  }
  if (layer.saves_gates()) {
    direction.t_gates = required(t_saved.get(next), "t_gates", layer.gate_rows());
  }
  fill_inside(direction.t_weights, layer, t_inside, pointer);
  direction.through_w_hh =
      pointer(through.get(0), "through_w_hh", layer.rows_of(layer.shape.proj_size));
  direction.through_w_hr = pointer(through.get(1), "through_w_hr", layer.rows_of(H));
  host::GateGradients r(layer, true, false, cpu::empty);
  r.add_inside(layer, cpu::empty);
  const host::BackwardCall call(layer, t_d_results, r);
  if (layer.rows() == 0) {
    call.pass_states_on();
    return r.list();
  }
  BackwardParams p{};
  fill(p, call);
  p.direction = &direction;
  const Kernels& k = kernels(layer.shape.dtype);
  run(layer, p, 0, k.backward_workspace, k.backward);
  return r.list();
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("layer_tangent", layer_tangent);
  m.impl("gate_gradients_tangent", gate_gradients_tangent);
}

}  // namespace fastrnn::cpu
