// The operators of ops.cpp as every device implements them: argument lists here,
// once, the work in an Engine with three functions,
//   ForwardResult forward(op, cell, input, batch_sizes, h0, c0, params, has_biases,
//                         bidirectional, save, resets)
//   BackwardResult backward(op, cell, d_output, d_h_n, d_c_n, d_cells, batch_sizes, h0, c0, gates,
//                           saved, params, has_biases, bidirectional, resets)
//   products, as the operator
// where `saved` is hidden, or for the LSTM cells. docs/design.md has the shapes; what a cell does
// not have is left undefined.
#pragma once
#include "host/layer.h"

namespace fastrnn::host {

struct ForwardResult {
  Tensor output, h_n, c_n, gates, hidden, cells;
};

struct BackwardResult {
  Tensor d_gates, d_h0, d_c0, d_hidden;
};

template <class Engine>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(
    const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
    const OptionalTensor& c0, at::TensorList params, bool has_biases, bool bidirectional, bool save,
    const OptionalTensor& resets, bool reset_to_hx) {
  auto r = Engine::forward("lstm_forward", cells::kKind<cells::Lstm>, input, batch_sizes, h0, c0,
                           params, has_biases, bidirectional, save, {resets, reset_to_hx});
  return {r.output, r.h_n, r.c_n, r.gates, r.hidden, r.cells};
}

template <class Engine>
std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_backward(
    const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
    const OptionalTensor& d_cells, const OptionalTensor& batch_sizes, const OptionalTensor& c0,
    const Tensor& gates, const Tensor& cells, at::TensorList params, bool has_biases,
    bool bidirectional, const OptionalTensor& resets, bool reset_to_hx) {
  auto r = Engine::backward("lstm_backward", cells::kKind<cells::Lstm>, d_output, d_h_n, d_c_n,
                            d_cells, batch_sizes, std::nullopt, c0, gates, cells, params,
                            has_biases, bidirectional, {resets, reset_to_hx});
  return {r.d_gates, r.d_h0, r.d_c0, r.d_hidden};
}

template <class Engine>
std::tuple<Tensor, Tensor, Tensor, Tensor> gru_forward(
    const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
    at::TensorList params, bool has_biases, bool bidirectional, bool save,
    const OptionalTensor& resets, bool reset_to_hx) {
  auto r =
      Engine::forward("gru_forward", cells::kKind<cells::Gru>, input, batch_sizes, h0, std::nullopt,
                      params, has_biases, bidirectional, save, {resets, reset_to_hx});
  return {r.output, r.h_n, r.gates, r.hidden};
}

template <class Engine>
std::tuple<Tensor, Tensor> gru_backward(const OptionalTensor& d_output, const OptionalTensor& d_h_n,
                                        const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                                        const Tensor& gates, const Tensor& hidden,
                                        at::TensorList params, bool has_biases, bool bidirectional,
                                        const OptionalTensor& resets, bool reset_to_hx) {
  auto r = Engine::backward("gru_backward", cells::kKind<cells::Gru>, d_output, d_h_n, std::nullopt,
                            std::nullopt, batch_sizes, h0, std::nullopt, gates, hidden, params,
                            has_biases, bidirectional, {resets, reset_to_hx});
  return {r.d_gates, r.d_h0};
}

inline CellKind rnn_kind(const char* op, c10::string_view cell) {
  const CellKind kind = cell_kind(op, cell);
  TORCH_CHECK(kind == cells::kKind<cells::RnnTanh> || kind == cells::kKind<cells::RnnRelu>, op,
              ": expected cell rnn_tanh or rnn_relu, got ", cell);
  return kind;
}

template <class Engine>
std::tuple<Tensor, Tensor, Tensor> rnn_forward(const Tensor& input,
                                               const OptionalTensor& batch_sizes,
                                               const OptionalTensor& h0, at::TensorList params,
                                               bool has_biases, bool bidirectional,
                                               c10::string_view cell, bool save,
                                               const OptionalTensor& resets, bool reset_to_hx) {
  const CellKind kind = rnn_kind("rnn_forward", cell);
  auto r = Engine::forward("rnn_forward", kind, input, batch_sizes, h0, std::nullopt, params,
                           has_biases, bidirectional, save, {resets, reset_to_hx});
  return {r.output, r.h_n, r.hidden};
}

template <class Engine>
std::tuple<Tensor, Tensor> rnn_backward(const OptionalTensor& d_output, const OptionalTensor& d_h_n,
                                        const OptionalTensor& batch_sizes, const Tensor& hidden,
                                        at::TensorList params, bool has_biases, bool bidirectional,
                                        c10::string_view cell, const OptionalTensor& resets,
                                        bool reset_to_hx) {
  const CellKind kind = rnn_kind("rnn_backward", cell);
  auto r = Engine::backward("rnn_backward", kind, d_output, d_h_n, std::nullopt, std::nullopt,
                            batch_sizes, std::nullopt, std::nullopt, std::nullopt, hidden, params,
                            has_biases, bidirectional, {resets, reset_to_hx});
  return {r.d_gates, r.d_h0};
}

template <class Engine>
void implement(torch::Library& m) {
  m.impl("lstm_forward", lstm_forward<Engine>);
  m.impl("lstm_backward", lstm_backward<Engine>);
  m.impl("gru_forward", gru_forward<Engine>);
  m.impl("gru_backward", gru_backward<Engine>);
  m.impl("rnn_forward", rnn_forward<Engine>);
  m.impl("rnn_backward", rnn_backward<Engine>);
  m.impl("products", +Engine::products);
}

}  // namespace fastrnn::host
