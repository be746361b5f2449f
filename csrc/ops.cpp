// The map: every operator of fastrnn, one schema each. docs/design.md says what
// the tensors are; csrc/cpu/host.cpp implements them on the CPU.
#include <torch/library.h>

// clang-format off
TORCH_LIBRARY(fastrnn, m) {
  m.set_python_module("fastrnn._ops");
  m.def("lstm_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] params, bool has_biases, bool bidirectional, bool save) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor hidden, Tensor cells)");
  m.def("lstm_backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor? batch_sizes, Tensor? c0, Tensor gates, Tensor cells, Tensor[] params, bool has_biases, bool bidirectional) -> (Tensor d_gates, Tensor d_h0, Tensor d_c0, Tensor d_hidden)");
  m.def("gru_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor[] params, bool has_biases, bool bidirectional, bool save) -> (Tensor output, Tensor h_n, Tensor gates, Tensor hidden)");
  m.def("gru_backward(Tensor? d_output, Tensor? d_h_n, Tensor? batch_sizes, Tensor? h0, Tensor gates, Tensor hidden, Tensor[] params, bool has_biases, bool bidirectional) -> (Tensor d_gates, Tensor d_h0)");
  m.def("rnn_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor[] params, bool has_biases, bool bidirectional, str nonlinearity, bool save) -> (Tensor output, Tensor h_n, Tensor hidden)");
  m.def("rnn_backward(Tensor? d_output, Tensor? d_h_n, Tensor? batch_sizes, Tensor hidden, Tensor[] params, bool has_biases, bool bidirectional, str nonlinearity) -> (Tensor d_gates, Tensor d_h0)");
  m.def("layer_gradients(str cell, Tensor d_gates, Tensor? batch_sizes, SymInt batch, Tensor? input, Tensor? hidden, Tensor? h0, Tensor[] w_ih, bool[] weights_and_biases) -> (Tensor d_input, Tensor[] d_params)");
}
// clang-format on
