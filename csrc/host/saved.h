// A layer as its saved tensors describe it: what the operators of derivatives have in common.
// csrc/ops.cpp says what their lists hold.
#pragma once
#include "host/layer.h"

namespace fastrnn::host {

// Element i of a list, absent beyond its end.
inline OptionalTensor at_or_none(const OptionalTensors& list, size_t i) {
  return i < list.size() ? list.get(i) : OptionalTensor();
}

// The saved tensor that no derivative goes without: every step's c, or h where there is none.
inline Tensor last_saved(const char* op, const OptionalTensors& saved) {
  const OptionalTensor last = saved.empty() ? OptionalTensor() : saved.get(saved.size() - 1);
  TORCH_CHECK(last && last->dim() == 3 && (last->size(0) == 1 || last->size(0) == 2), op,
              ": expected the last saved tensor of shape (directions, rows, values)");
  return *last;
}

inline Layer saved_layer(const char* op, CellKind kind, const OptionalTensor& batch_sizes,
                         const c10::SymInt& batch, const OptionalTensors& states,
                         const OptionalTensors& saved, at::TensorList weights,
                         const InsideArguments& inside = {}) {
  const Tensor last = last_saved(op, saved);
  Layer layer(op, last, kind, static_cast<int>(last.size(0)));
  layer.set_inside(inside);
  layer.set_params(weights, false);
  layer.set_steps(batch_sizes, last.size(1), batch.expect_int());
  layer.set_states(states);
  const bool normalises = layer.inside.parts() > 0;
  const size_t count = static_cast<size_t>(layer.cell().states) + (layer.saves_gates() ? 1 : 0) +
                       (normalises ? 2 : 0);
  TORCH_CHECK(saved.size() == count, op, ": expected ", count, " saved tensors, got ",
              saved.size());
  const int64_t H = layer.shape.hidden_size;
  size_t next = 0;
  if (normalises) {
    layer.normed = layer.required(saved.get(next++), "normed", layer.normed_rows());
    const OptionalTensor rstd = saved.get(next++);
    TORCH_CHECK(rstd, op, ": expected rstd, got None");
    layer.rstd = layer.contiguous_statistics(*rstd, "rstd");
  }
  if (layer.saves_gates()) {
    layer.gates = layer.required(saved.get(next++), "gates", layer.gate_rows());
  }
  const OptionalTensor hidden = saved.get(next++);
  const at::DimVector h_rows = layer.rows_of(layer.shape.proj_size);
  // Of an LSTM only the gradient of w_hh asks for it.
  layer.hidden = layer.has_c() ? layer.contiguous(hidden, "hidden", h_rows)
                               : layer.required(hidden, "hidden", h_rows);
  if (layer.has_c()) layer.cells = layer.required(last, "cells", layer.rows_of(H));
  return layer;
}

// What a backward pass leaves of one layer, or its derivative. Undefined: what a cell does not
// have, or nobody asks for.
struct GateGradients {
  Tensor d_gates;             // [D, N, S*H]
  Tensor d_h0, d_c0;          // [D, B, P], [D, B, H]
  Tensor d_hidden;            // [D, N, P], of h behind its projection
  Tensor d_cell_h, d_cell_c;  // [D, N, H], of h and c as each cell received them
  // Of what is inside the recurrence: gains, biases where products are normalised, a cell's
  // vectors.
  Tensor of_inside[2][kParamKinds];

  GateGradients(const Layer& layer, bool of_gates, bool received,
                Tensor (*empty)(at::IntArrayRef, const at::TensorOptions&)) {
    const int64_t H = layer.shape.hidden_size;
    if (of_gates) d_gates = empty(layer.rows_of(layer.columns() * H), layer.options);
    d_h0 = empty(layer.h_state(), layer.options);
    if (layer.has_c()) d_c0 = empty(layer.c_state(), layer.options);
    if (layer.shape.projected) {
      d_hidden = empty(layer.rows_of(layer.shape.proj_size), layer.options);
    }
    if (received) d_cell_h = empty(layer.rows_of(H), layer.options);
    if (received && layer.has_c()) d_cell_c = empty(layer.rows_of(H), layer.options);
  }

  // Of one param; the others' are sums over d_gates, which products make.
  void add_inside(const Layer& layer, size_t direction, Param kind,
                  Tensor (*empty)(at::IntArrayRef, const at::TensorOptions&)) {
    Tensor& t = of_inside[direction][static_cast<int>(kind)];
    t = empty(layer.size_of(kind), layer.options);
    if (layer.rows() == 0) t.zero_();
  }
  // Of all of them; a norm's biases have gradients whether there are any or not.
  void add_inside(const Layer& layer, Tensor (*empty)(at::IntArrayRef, const at::TensorOptions&)) {
    bool cell_bias = false;
    for (size_t k = 0; k < layer.kinds.count; ++k) {
      cell_bias = cell_bias || layer.kinds.each[k] == Param::kCellBias;
    }
    const ParamList kinds(layer.inside.norm, layer.cell(), true, false);
    for (size_t d = 0; d < static_cast<size_t>(layer.directions()); ++d) {
      for (size_t k = 2; k < kinds.count; ++k) {
        const Param kind = kinds.each[k];
        const bool elsewhere = is_bias(kind) && layer.inside.parts() == 0;
        if (elsewhere || (kind == Param::kCellBias && !cell_bias)) continue;
        add_inside(layer, d, kind, empty);
      }
    }
  }

  std::vector<Tensor> list() const {
    std::vector<Tensor> present;
    const auto add = [&](const Tensor& t) {
      if (t.defined()) present.push_back(t);
    };
    for (const Tensor& t : {d_gates, d_h0, d_c0, d_hidden}) add(t);
    for (const auto& of_direction : of_inside) {
      for (const Tensor& t : of_direction) add(t);
    }
    for (const Tensor& t : {d_cell_h, d_cell_c}) add(t);
    return present;
  }
};

// One backward pass through the steps: the gradients that came, contiguous, and where its own go.
struct BackwardCall {
  const Layer& layer;
  OptionalTensor d_output;      // N rows by D*P
  OptionalTensor d_h_n, d_c_n;  // [D, B, P], [D, B, H]
  OptionalTensor d_cells;       // [D, N, H], of every step's c
  const GateGradients& result;

  // d_results: of output, every final state and, for cells with c, every step's c; may end earlier.
  BackwardCall(const Layer& of, const OptionalTensors& d_results, const GateGradients& to)
      : layer(of), result(to) {
    const size_t states = static_cast<size_t>(layer.cell().states);
    TORCH_CHECK(d_results.size() <= 2 * states, layer.op, ": expected at most ", 2 * states,
                " gradients of results, got ", d_results.size());
    d_output = layer.contiguous_d_output(at_or_none(d_results, 0));
    d_h_n = layer.contiguous(at_or_none(d_results, 1), "d_h_n", layer.h_state());
    if (!layer.has_c()) return;
    d_c_n = layer.contiguous(at_or_none(d_results, 2), "d_c_n", layer.c_state());
    d_cells = layer.contiguous(at_or_none(d_results, 3), "d_cells",
                               layer.rows_of(layer.shape.hidden_size));
  }

  // What a call without any step does: the gradients of the final states are those of the initial
  // ones.
  void pass_states_on() const {
    const auto pass_on = [](const Tensor& to, const OptionalTensor& from) {
      from ? to.copy_(*from) : to.zero_();
    };
    pass_on(result.d_h0, d_h_n);
    if (layer.has_c()) pass_on(result.d_c0, d_c_n);
  }
};

}  // namespace fastrnn::host
