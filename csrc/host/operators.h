// The operators of ops.cpp that every device implements: argument lists, checks and results here,
// once, the work in an Engine with
//   kName, Guard, is_ours(tensor), empty(size, options), kTakesResets, kTakesInside
//   forward(const ForwardCall&)
//   backward(const BackwardCall&), the recurrence against time
//   products(const ProductsCall&), gradients of input and weights from those of gates
//   vjp(const BackwardCall&, input, with_input, wanted), both: what `products` returns
// and kHasVjp, whether vjp does without d_gates, kHasSecondOrder, whether backward leaves what
// cells received.
#pragma once
#include <ATen/ops/mul.h>
#include <ATen/ops/tanh.h>

#include "host/saved.h"

namespace fastrnn::host {

// Undefined: what a cell does not have, or nobody saves.
struct ForwardResult {
  Tensor output, h_n, c_n, normed, rstd, gates, hidden, cells;
};

struct ForwardCall {
  const Layer& layer;
  const Tensor& input;  // any strides
  bool save;
  const ForwardResult& result;
};

// d_input, of size 0 where nobody asks, and four gradients of each direction, as many as have
// flags.
using Products = std::tuple<Tensor, std::vector<Tensor>>;

// To products a layer has one block of as many rows as each of its weights, hidden_size here.
struct ProductsCall {
  const Layer& layer;
  int64_t apart;                     // columns at the end that are the recurrent product's alone
  Tensor d_gates;                    // [D, N, hidden_size + apart]
  OptionalTensor input, hidden, h0;  // [N, I], [D, N, P], [D, B, P]
  OptionalTensor h_scale;            // [D, B, P], of h before the product
  std::vector<Tensor> w_ih;          // [hidden_size, I] of each direction; empty: no d_input
  const c10::List<bool>& wanted;
};

template <class Engine>
void check_device(const char* op, const Tensor& t, const char* name) {
  TORCH_CHECK(Engine::is_ours(t), op, ": expected ", name, " on ", Engine::kName, ", got ",
              t.device());
}

template <class Engine>
void set_resets(Layer& layer, const OptionalTensor& resets, bool reset_to_hx) {
  // On the CPU they are segments of packed data: the work that a reset saves is then saved.
  TORCH_CHECK(Engine::kTakesResets || !resets, layer.op, ": expected no resets on ", Engine::kName,
              ", where segments of packed data do it");
  layer.set_resets(resets, reset_to_hx);
}

template <class Engine>
void check_inside(const Layer& layer) {
  TORCH_CHECK(Engine::kTakesInside || !layer.has_options, layer.op,
              ": expected no options inside the recurrence on ", Engine::kName);
}

template <class Engine>
std::vector<Tensor> layer_forward(c10::string_view cell, const Tensor& input,
                                  const OptionalTensor& batch_sizes, const OptionalTensors& states,
                                  at::TensorList params, bool bidirectional, bool save,
                                  const OptionalTensor& resets, bool reset_to_hx,
                                  c10::string_view norm, double eps, OptionalDoubles rates,
                                  at::OptionalIntArrayRef counter, const OptionalTensor& seed,
                                  const OptionalTensor& h_scale) {
  const CellKind kind = cell_kind("layer_forward", cell);
  const char* op = cells::traits(kind).name;  // what a user called
  check_device<Engine>(op, input, "input");
  const typename Engine::Guard guard(input.device());
  Layer layer(op, input, kind, bidirectional ? 2 : 1);
  layer.set_input(input, batch_sizes);
  layer.set_inside({norm, eps, rates, counter, seed, h_scale});
  layer.set_params(params, true);
  layer.set_states(states);
  set_resets<Engine>(layer, resets, reset_to_hx);
  check_inside<Engine>(layer);
  const auto empty = [&](at::IntArrayRef size) { return Engine::empty(size, layer.options); };
  const int64_t H = layer.shape.hidden_size, P = layer.shape.proj_size;
  at::DimVector output_size(input.sizes());
  output_size.back() = layer.directions() * P;
  ForwardResult r;
  r.output = empty(output_size);
  r.h_n = empty(layer.h_state());
  if (layer.has_c()) r.c_n = empty(layer.c_state());
  if (save && layer.inside.parts() > 0) {
    r.normed = empty(layer.normed_rows());
    r.rstd = Engine::empty(layer.rstd_rows(), layer.compute_options());
  }
  if (save && layer.saves_gates()) r.gates = empty(layer.gate_rows());
  if (save) r.hidden = empty(layer.rows_of(P));
  if (save && layer.has_c()) r.cells = empty(layer.rows_of(H));
  if (layer.rows() > 0) Engine::forward({layer, input, save, r});
  std::vector<Tensor> results;
  results.reserve(8);
  for (Tensor* t : {&r.output, &r.h_n, &r.c_n, &r.normed, &r.rstd, &r.gates, &r.hidden, &r.cells}) {
    if (t->defined()) results.push_back(std::move(*t));
  }
  return results;
}

template <class Engine>
std::vector<Tensor> gate_gradients(c10::string_view cell, const OptionalTensors& d_results,
                                   const OptionalTensor& batch_sizes, c10::SymInt batch,
                                   const OptionalTensors& states, const OptionalTensors& saved,
                                   at::TensorList weights, bool received,
                                   const OptionalTensor& resets, bool reset_to_hx,
                                   c10::string_view norm, double eps, OptionalDoubles rates,
                                   at::OptionalIntArrayRef counter, const OptionalTensor& seed,
                                   const OptionalTensor& h_scale) {
  const char* op = "gate_gradients";
  const CellKind kind = cell_kind(op, cell);
  const Tensor last = last_saved(op, saved);
  check_device<Engine>(op, last, "saved tensors");
  TORCH_CHECK(Engine::kHasSecondOrder || !received, op, ": expected received to be False on ",
              Engine::kName, ", got True");
  const typename Engine::Guard guard(last.device());
  Layer layer = saved_layer(op, kind, batch_sizes, batch, states, saved, weights,
                            {norm, eps, rates, counter, seed, h_scale});
  set_resets<Engine>(layer, resets, reset_to_hx);
  check_inside<Engine>(layer);
  GateGradients r(layer, true, received, Engine::empty);
  r.add_inside(layer, Engine::empty);
  const BackwardCall call(layer, d_results, r);
  layer.rows() > 0 ? Engine::backward(call) : call.pass_states_on();
  return r.list();
}

template <class Engine>
Products products(const Tensor& d_gates, c10::SymInt apart, const OptionalTensor& batch_sizes,
                  c10::SymInt batch, const OptionalTensor& input, const OptionalTensor& hidden,
                  const OptionalTensor& h0, at::TensorList w_ih, const c10::List<bool>& wanted,
                  const OptionalTensor& resets, bool reset_to_hx, const OptionalTensor& h_scale) {
  const char* op = "products";
  check_device<Engine>(op, d_gates, "d_gates");
  const typename Engine::Guard guard(d_gates.device());
  Layer layer = layer_of_products(op, d_gates, apart.expect_int(), batch_sizes, batch.expect_int(),
                                  input, hidden, w_ih, wanted);
  set_resets<Engine>(layer, resets, reset_to_hx);
  TORCH_CHECK(Engine::kTakesInside || !h_scale, op, ": expected no h_scale on ", Engine::kName);
  const int64_t N = layer.rows(), I = layer.shape.input_size;
  ProductsCall call{layer,
                    apart.expect_int(),
                    d_gates.contiguous(),
                    layer.contiguous(input, "input", {N, I}),
                    layer.contiguous(hidden, "hidden", layer.rows_of(layer.shape.proj_size)),
                    layer.contiguous(h0, "h0", layer.h_state()),
                    layer.contiguous(h_scale, "h_scale", layer.h_state()),
                    {},
                    wanted};
  for (const Tensor& w : w_ih) {
    layer.check(w, "w_ih", {layer.shape.hidden_size, I});
    call.w_ih.push_back(w.contiguous());
  }
  return Engine::products(call);
}

// Which gradients somebody asks for: of input, initial states and params, in this order. Params
// without biases have no flags of them.
class Wanted {
 public:
  Wanted(const Layer& layer, const c10::List<bool>& flags)
      : kinds(layer.inside.norm, layer.cell(), false, layer.shape.projected), flags_(flags) {
    const size_t D = static_cast<size_t>(layer.directions());
    first_ = 1 + static_cast<size_t>(layer.cell().states);
    const size_t without = first_ + D * kinds.count;
    if (flags.size() != without) {
      kinds = ParamList(layer.inside.norm, layer.cell(), true, layer.shape.projected);
    }
    const size_t with = first_ + D * kinds.count;
    TORCH_CHECK(flags.size() == with, layer.op, ": expected ", without, " flags, or ", with,
                " with biases, got ", flags.size());
    TORCH_CHECK(kinds.without_biases().count == layer.kinds.count, layer.op,
                ": expected cell_bias among the weights with biases alone");
    normalises_ = layer.inside.parts() > 0;
  }

  ParamList kinds;  // that flags are of, of one direction

  bool input() const { return flags_.get(0); }
  bool state(size_t i) const { return flags_.get(1 + i); }
  bool param(size_t d, size_t k) const { return flags_.get(first_ + d * kinds.count + k); }
  // Whether a sum over d_gates is its gradient.
  bool is_product(Param kind) const {
    return kind == Param::kWIh || kind == Param::kWHh || (is_bias(kind) && !normalises_);
  }
  c10::List<bool> of_products(size_t directions) const {
    c10::List<bool> list;
    for (size_t i = 0; i < 4 * directions; ++i) list.push_back(false);
    each(directions, [&](size_t d, Param kind) {
      if (is_product(kind)) list.set(4 * d + static_cast<size_t>(kind), true);
    });
    return list;
  }
  // f(direction, kind) of every param that is wanted.
  template <class F>
  void each(size_t directions, F f) const {
    for (size_t d = 0; d < directions; ++d) {
      for (size_t k = 0; k < kinds.count; ++k) {
        if (param(d, k)) f(d, kinds.each[k]);
      }
    }
  }

 private:
  const c10::List<bool>& flags_;
  size_t first_;
  bool normalises_;
};

// d_hidden^T times every step's h before its projection, o * tanh(c), of one direction. The output
// gate is the last column of a cell that has a c.
template <class Engine>
Tensor projection_gradient(const Layer& layer, const Tensor& d_hidden, int64_t d) {
  const int64_t H = layer.shape.hidden_size;
  const Tensor o = layer.gates->select(0, d).narrow(1, (layer.columns() - 1) * H, H);
  const Tensor h = at::mul(o, at::tanh(layer.cells->select(0, d)));
  const auto [_, gradients] = products<Engine>(
      d_hidden.narrow(0, d, 1), 0, std::nullopt, layer.rows(), h, std::nullopt, std::nullopt, {},
      c10::List<bool>({true, false, false, false}), std::nullopt, false, std::nullopt);
  return gradients[0];
}

template <class Engine>
std::vector<Tensor> layer_backward(c10::string_view cell, const OptionalTensors& d_results,
                                   const OptionalTensor& input, const OptionalTensor& batch_sizes,
                                   c10::SymInt batch, const OptionalTensors& states,
                                   const OptionalTensors& saved, at::TensorList weights,
                                   const c10::List<bool>& wanted_flags,
                                   const OptionalTensor& resets, bool reset_to_hx,
                                   c10::string_view norm, double eps, OptionalDoubles rates,
                                   at::OptionalIntArrayRef counter, const OptionalTensor& seed,
                                   const OptionalTensor& h_scale) {
  const char* op = "layer_backward";
  const CellKind kind = cell_kind(op, cell);
  const Tensor last = last_saved(op, saved);
  check_device<Engine>(op, last, "saved tensors");
  const typename Engine::Guard guard(last.device());
  Layer layer = saved_layer(op, kind, batch_sizes, batch, states, saved, weights,
                            {norm, eps, rates, counter, seed, h_scale});
  set_resets<Engine>(layer, resets, reset_to_hx);
  check_inside<Engine>(layer);
  const Wanted wanted(layer, wanted_flags);
  const size_t D = static_cast<size_t>(layer.directions());
  const c10::List<bool> of_products = wanted.of_products(D);
  for (size_t d = 0; d < D; ++d) {
    TORCH_CHECK(input || !of_products.get(4 * d), op, ": expected input for d_w_ih, got None");
    TORCH_CHECK(layer.hidden || !of_products.get(4 * d + 1), op,
                ": expected hidden for d_w_hh, got None");
  }
  const int64_t N = layer.rows(), I = layer.shape.input_size;
  OptionalTensor rows;  // [N, I]
  if (input) {
    TORCH_CHECK(input->dim() >= 2 && input->size(-1) == I && input->numel() == N * I, op,
                ": expected input of ", N, " rows by ", I, ", got ", input->sizes());
    layer.check(*input, "input", input->sizes());
    rows = input->reshape({N, I});
  }
  GateGradients r(layer, !Engine::kHasVjp, false, Engine::empty);
  wanted.each(D, [&](size_t d, Param kind) {
    if (!wanted.is_product(kind) && kind != Param::kWHr)
      r.add_inside(layer, d, kind, Engine::empty);
  });
  const BackwardCall call(layer, d_results, r);
  if (layer.rows() == 0) call.pass_states_on();
  const auto [d_input, gradients] = Engine::vjp(call, rows, wanted.input(), of_products);

  std::vector<Tensor> results;
  results.reserve(wanted_flags.size());
  if (wanted.input()) results.push_back(input ? d_input.view(input->sizes()) : d_input);
  if (wanted.state(0)) results.push_back(r.d_h0);
  if (layer.has_c() && wanted.state(1)) results.push_back(r.d_c0);
  wanted.each(D, [&](size_t d, Param kind) {
    if (wanted.is_product(kind)) {
      results.push_back(gradients[4 * d + static_cast<size_t>(kind)]);
    } else if (kind == Param::kWHr) {
      results.push_back(projection_gradient<Engine>(layer, r.d_hidden, static_cast<int64_t>(d)));
    } else {
      results.push_back(r.of_inside[d][static_cast<int>(kind)]);
    }
  });
  return results;
}

template <class Engine>
void implement(torch::Library& m) {
  m.impl("layer_forward", layer_forward<Engine>);
  m.impl("layer_backward", layer_backward<Engine>);
  m.impl("gate_gradients", gate_gradients<Engine>);
  m.impl("products", products<Engine>);
}

}  // namespace fastrnn::host
