// The map: every operator of fastrnn, one schema each. docs/design.md says what
// the tensors are; csrc/cpu/ and csrc/cuda/ implement them.
#include <torch/library.h>

// clang-format off
TORCH_LIBRARY(fastrnn, m) {
  m.set_python_module("fastrnn._ops");
  m.def("lstm_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] params, bool has_biases, bool bidirectional, bool save) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor hidden, Tensor cells)");
  m.def("lstm_backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor? d_cells, Tensor? batch_sizes, Tensor? c0, Tensor gates, Tensor cells, Tensor[] params, bool has_biases, bool bidirectional) -> (Tensor d_gates, Tensor d_h0, Tensor d_c0, Tensor d_hidden)");
  m.def("gru_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor[] params, bool has_biases, bool bidirectional, bool save) -> (Tensor output, Tensor h_n, Tensor gates, Tensor hidden)");
  m.def("gru_backward(Tensor? d_output, Tensor? d_h_n, Tensor? batch_sizes, Tensor? h0, Tensor gates, Tensor hidden, Tensor[] params, bool has_biases, bool bidirectional) -> (Tensor d_gates, Tensor d_h0)");
  m.def("rnn_forward(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor[] params, bool has_biases, bool bidirectional, str nonlinearity, bool save) -> (Tensor output, Tensor h_n, Tensor hidden)");
  m.def("rnn_backward(Tensor? d_output, Tensor? d_h_n, Tensor? batch_sizes, Tensor hidden, Tensor[] params, bool has_biases, bool bidirectional, str nonlinearity) -> (Tensor d_gates, Tensor d_h0)");
  m.def("layer_gradients(str cell, Tensor d_gates, Tensor? batch_sizes, SymInt batch, Tensor? input, Tensor? hidden, Tensor? h0, Tensor[] w_ih, bool[] weights_and_biases) -> (Tensor d_input, Tensor[] d_params)");
  m.def("sample_gradients(str cell, Tensor d_gates, int samples, Tensor? batch_sizes, SymInt batch, Tensor? input, Tensor? hidden, Tensor? h0, bool[] weights_and_biases) -> Tensor[] d_params");
  m.def("layer_tangent(str cell, Tensor? t_input, Tensor?[] t_params, Tensor? through_w_ih, Tensor? through_w_hh, Tensor? through_w_hr, Tensor? t_h0, Tensor? t_c0, Tensor? input, Tensor? batch_sizes, SymInt batch, Tensor? h0, Tensor? c0, Tensor? gates, Tensor? hidden, Tensor? cells, Tensor[] w_ih, Tensor[] w_hh, Tensor[] w_hr, bool save) -> (Tensor t_hidden, Tensor t_h_n, Tensor t_c_n, Tensor t_gates, Tensor t_cells)");
  m.def("quantized_forward(str cell, Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] params, int hidden_size, int proj_size, bool bidirectional) -> (Tensor output, Tensor h_n, Tensor c_n)");
  m.def("extended_forward(str cell, str norm, Tensor gates_x, Tensor? batch_sizes, SymInt batch, Tensor? h0, Tensor? c0, Tensor w_hh, Tensor? gain_x, Tensor? bias_x, Tensor? bias, Tensor? gain, Tensor? cell_gain, Tensor? cell_bias, Tensor? h_scale, Tensor? seed, int layer, float[] rates, float eps, bool save) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor hidden, Tensor cells, Tensor normed, Tensor rstd, Tensor moments_x)");
  m.def("extended_backward(str cell, str norm, Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor? batch_sizes, SymInt batch, Tensor? h0, Tensor? c0, Tensor? gates_x, Tensor gates, Tensor hidden, Tensor cells, Tensor normed, Tensor rstd, Tensor moments_x, Tensor w_hh, Tensor? gain_x, bool has_bias_x, bool has_bias, Tensor? gain, Tensor? cell_gain, Tensor? cell_bias, Tensor? h_scale, Tensor? seed, int layer, float[] rates, float eps) -> (Tensor d_gates, Tensor d_product, Tensor d_h0, Tensor d_c0, Tensor d_gain_x, Tensor d_bias_x, Tensor d_bias, Tensor d_gain, Tensor d_cell_gain, Tensor d_cell_bias)");
  m.def("drop_weights(Tensor weights, Tensor seed, int stream, float rate) -> Tensor");
  m.def("layer_vjp(str cell, Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor? d_cells, Tensor? input, Tensor? batch_sizes, SymInt batch, Tensor? h0, Tensor? c0, Tensor? gates, Tensor? hidden, Tensor? cells, Tensor[] w_ih, Tensor[] w_hh, Tensor[] w_hr, bool[] weights_and_biases) -> (Tensor d_input, Tensor d_h0, Tensor d_c0, Tensor d_hidden, Tensor[] d_params)");
  m.def("layer_backward(str cell, Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor? d_cells, Tensor? batch_sizes, SymInt batch, Tensor? h0, Tensor? c0, Tensor? gates, Tensor? hidden, Tensor? cells, Tensor[] w_hh, Tensor[] w_hr) -> (Tensor d_gates, Tensor d_h0, Tensor d_c0, Tensor d_hidden, Tensor d_cell_h, Tensor d_cell_c)");
  m.def("layer_backward_tangent(str cell, Tensor? t_d_output, Tensor? t_d_h_n, Tensor? t_d_c_n, Tensor? t_d_cells, Tensor? through_w_hh, Tensor? through_w_hr, Tensor? t_h0, Tensor? t_c0, Tensor? t_gates, Tensor? t_hidden, Tensor? t_cells, Tensor d_cell_h, Tensor? d_cell_c, Tensor? batch_sizes, SymInt batch, Tensor? h0, Tensor? c0, Tensor? gates, Tensor? hidden, Tensor? cells, Tensor[] w_hh, Tensor[] w_hr) -> (Tensor t_d_gates, Tensor t_d_h0, Tensor t_d_c0, Tensor t_d_hidden)");
  m.def("segments(Tensor? resets, Tensor? lengths, SymInt seq_len, SymInt batch, int directions, bool none_if_whole) -> (Tensor batch_sizes, Tensor rows, Tensor places, Tensor owners, Tensor starts, Tensor started, Tensor ends, Tensor ended)");
  m.def("gather_rows(Tensor[] inputs, Tensor[] indices) -> Tensor[]");
}
// clang-format on
