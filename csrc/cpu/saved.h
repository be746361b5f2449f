// A layer as its saved tensors describe it: what the operators of derivatives have in common.
#pragma once
#include "cpu/layer.h"

namespace fastrnn::cpu {
namespace {

// One layer as its saved tensors describe it, and the pointers to them.
struct Saved {
  Layer layer;
  Weights weights[2] = {};
  const void *h0 = nullptr, *c0 = nullptr, *gates = nullptr, *hidden = nullptr, *cells = nullptr;
  std::vector<Tensor> keep;  // what the pointers point into

  explicit Saved(Layer&& of) : layer(std::move(of)) {}
  bool has_c() const { return layer.has_c(); }

  const void* pointer(const OptionalTensor& t, const char* name, at::IntArrayRef size) {
    if (!t) return nullptr;
    layer.check(*t, name, size);
    keep.push_back(t->contiguous());
    return data(keep.back());
  }
  const void* required(const OptionalTensor& t, const char* name, at::IntArrayRef size) {
    TORCH_CHECK(t, layer.op, ": expected ", name, ", got None");
    return pointer(t, name, size);
  }
  // A gradient of the output, [N, D*P] or with its rows as steps and batch.
  const void* output_gradient(const OptionalTensor& t, const char* name) {
    if (!t) return nullptr;
    const int64_t size = layer.rows() * layer.directions() * layer.shape.proj_size;
    TORCH_CHECK(t->numel() == size, layer.op, ": expected ", name, " of ", size, " values, got ",
                t->sizes());
    return pointer(t, name, t->sizes());
  }
  at::DimVector rows_of(int64_t columns) const {
    return {layer.directions(), layer.rows(), columns};
  }
  at::DimVector state_of(int64_t columns) const {
    return {layer.directions(), layer.batch(), columns};
  }
  at::DimVector h_state() const { return state_of(layer.shape.proj_size); }
  at::DimVector c_state() const { return state_of(layer.shape.hidden_size); }
};

inline Saved read(const char* op, c10::string_view cell, const OptionalTensor& batch_sizes,
                  const c10::SymInt& batch, const OptionalTensor& h0, const OptionalTensor& c0,
                  const OptionalTensor& gates, const OptionalTensor& hidden,
                  const OptionalTensor& cells, at::TensorList w_hh, at::TensorList w_hr) {
  const OptionalTensor& sized = cells ? cells : hidden;
  TORCH_CHECK(sized && sized->dim() == 3, op, ": expected saved tensors of 3 dimensions");
  TORCH_CHECK(w_hh.size() == 1 || w_hh.size() == 2, op,
              ": expected w_hh of 1 or 2 directions, got ", w_hh.size());
  Saved s(Layer(op, *sized, host::cell_kind(op, cell), static_cast<int>(w_hh.size()), false));
  Layer& layer = s.layer;
  LayerShape& shape = layer.shape;
  shape.projected = !w_hr.empty();
  TORCH_CHECK(!shape.projected || (s.has_c() && w_hr.size() == w_hh.size()), op,
              ": expected w_hr of no direction or, for the lstm, of each, got ", w_hr.size());
  TORCH_CHECK(w_hh[0].dim() == 2 && w_hh[0].size(0) > 0 && w_hh[0].size(0) % layer.products() == 0,
              op, ": expected w_hh of shape (", layer.products(), "*hidden_size, h_size), got ",
              w_hh[0].sizes());
  const int64_t H = shape.hidden_size = w_hh[0].size(0) / layer.products();
  const int64_t P = shape.proj_size = w_hh[0].size(1);
  TORCH_CHECK(P > 0 && (shape.projected || P == H), op, ": expected w_hh of shape (",
              layer.products(), "*hidden_size, hidden_size), got ", w_hh[0].sizes());
  shape.input_size = 1;  // the input takes no part
  layer.set_steps(batch_sizes, sized->size(1), batch.expect_int());
  for (size_t d = 0; d < w_hh.size(); ++d) {
    s.weights[d].w_hh = s.pointer(w_hh[d], "w_hh", {layer.products() * H, P});
    if (shape.projected) s.weights[d].w_hr = s.pointer(w_hr[d], "w_hr", {P, H});
  }
  s.h0 = s.pointer(h0, "h0", s.h_state());
  s.c0 = s.has_c() ? s.pointer(c0, "c0", s.c_state()) : nullptr;
  s.gates =
      layer.saves_gates() ? s.required(gates, "gates", s.rows_of(layer.columns() * H)) : nullptr;
  s.hidden = s.has_c() ? nullptr : s.required(hidden, "hidden", s.rows_of(H));
  s.cells = s.has_c() ? s.required(cells, "cells", s.rows_of(H)) : nullptr;
  return s;
}

// What a gradient is without any step.
inline void copy_or_zero(Tensor& to, const OptionalTensor& from) {
  from ? to.copy_(*from) : to.zero_();
}

struct StateGradients {
  Tensor d_h0, d_c0, d_hidden;
};

// Fills in p all that a backward pass reads, and where it puts what has this form. Without rows
// the results are there already, and no kernel runs.
inline StateGradients fill(BackwardParams& p, Saved& s, const OptionalTensor& d_output,
                           const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
                           const OptionalTensor& d_cells) {
  const Layer& layer = s.layer;
  p.shape = layer.shape;
  std::copy(s.weights, s.weights + 2, p.weights);
  p.d_output = s.output_gradient(d_output, "d_output");
  p.d_h_n = s.pointer(d_h_n, "d_h_n", s.h_state());
  p.d_c_n = s.has_c() ? s.pointer(d_c_n, "d_c_n", s.c_state()) : nullptr;
  p.d_cells =
      s.has_c() ? s.pointer(d_cells, "d_cells", s.rows_of(layer.shape.hidden_size)) : nullptr;
  p.h0 = s.h0;
  p.c0 = s.c0;
  p.gates = s.gates;
  p.hidden = s.hidden;
  p.cells = s.cells;
  StateGradients r;
  r.d_h0 = layer.empty(s.h_state());
  r.d_c0 = layer.empty(s.has_c() ? s.c_state() : at::DimVector{0});
  r.d_hidden =
      layer.shape.projected ? layer.empty(s.rows_of(layer.shape.proj_size)) : layer.empty({0});
  if (layer.rows() == 0) {
    copy_or_zero(r.d_h0, d_h_n);
    if (s.has_c()) copy_or_zero(r.d_c0, d_c_n);
    return r;
  }
  p.d_h0 = r.d_h0.mutable_data_ptr();
  if (s.has_c()) p.d_c0 = r.d_c0.mutable_data_ptr();
  if (layer.shape.projected) p.d_hidden = r.d_hidden.mutable_data_ptr();
  return r;
}

}  // namespace
}  // namespace fastrnn::cpu
