// The map: every operator of fastrnn, one schema each, and what its tensors are. csrc/host/,
// csrc/cpu/ and csrc/cuda/ implement them, fastrnn/_layer/ops.py has a fake kernel of each.
//
// Only what is sequential, and the products beside it, is an operator. One call is one layer with
// all its directions; layers, dropout and the permutation of packed sequences are Python.
//
// Letters: T seq_len, B batch, N rows of all steps together (T*B, or the sum of batch_sizes), I
// input_size, H hidden_size, P the size of h (proj_size or H), D directions; of a cell
// (csrc/cells/cell.h) G products and S columns of a unit.
//
// cell: its name in csrc/cells/list.h. batch_sizes: int64 [T] on the CPU, never increasing, of
// packed data, None of padded; batch: B. weights: of each direction w_ih [G*H, I], w_hh [G*H, P]
// and, projected, w_hr [P, H]. states: initial h [D, B, P] and, of a cell that has it, c
// [D, B, H]; None for each is zeros. (Not an empty list, which AOTInductor
// turns into None; nor None for all, for the dispatcher does not look into Tensor[]?.) w_ch
// [vectors*H], last among the weights and params: a cell's own vectors. saved: gates
// [D, N, S*H] of a cell that saves them, every step's h (hidden [D, N, P]) and c (cells [D, N, H]).
// resets: bool [T, B] of padded data (CUDA; the CPU has segments). Where it is not false a
// direction's step starts from zeros, or from states if reset_to_hx, and not from the step on the
// other side of that point in time; of the first step it says nothing. dtypes: float64, float32,
// bfloat16, float16; the last two compute in float32.
//
// The last six arguments, of a layer without w_hr (CPU), are what fastrnn.variants puts inside the
// recurrence; fastrnn/variants_reference.py has the equations. norm: none; recurrent: w_ih x and
// w_hh h are normalised, each by itself, with gain_ih and gain_hh [G*H], b_ih and b_hh following,
// and c of a cell that has it with cell_gain and, with biases, cell_bias [H] before h is made of
// it; joint: their sum is, with gain_hh and b_hh, the only bias. These stand behind the other
// params, in this order, and among the weights, all but b_ih and b_hh. rates: of zoneout of c,
// zoneout of h and recurrent dropout, with masks from seed (Philox; without a seed: what eval
// does). counter: None of a layer without options, else the stream of the first direction's
// masks, and two numbers, a and b: step t has those of step a + b*t. h_scale [D, B, H]: of h before
// the product. saved is then normed [D, N, M, G*H] (what is normalised, before its gain, M being 2
// of recurrent, 1 of joint), rstd [D, N, M], gates (of any cell; of an RNN h before zoneout),
// hidden and cells. d_gates [D, N, G*H] of joint are those of the sum, of recurrent [D, N, 2*G*H]
// those of w_ih x and then those of w_hh h.
//
// vmap puts a mapped dimension behind the rows of every tensor and calls an operator once
// (fastrnn/_layer/rows.py, batching.py).
#include <torch/library.h>

// clang-format off
TORCH_LIBRARY(fastrnn, m) {
  m.set_python_module("fastrnn._layer.ops");

  // One layer. input [T, B, I] or [N, I], of any strides; params: weights, with b_ih [G*H] and b_hh
  // [G*H] before w_hr or without both, in the order of nn.RNNBase._flat_weights. Returns output [T,
  // B, D*P] or [N, D*P], the final states (as states) and, if save, what is saved: LSTM gates i, f,
  // g, o, GRU r, z, n after their nonlinearity and W_hn h + b_hn. No result shares memory.
  m.def("layer_forward(str cell, Tensor input, Tensor? batch_sizes, Tensor?[] states, Tensor[] params, bool bidirectional, bool save, Tensor? resets=None, bool reset_to_hx=False, str norm=\"none\", float eps=0., float[]? rates=None, int[]? counter=None, Tensor? seed=None, Tensor? h_scale=None) -> Tensor[]");

  // Its backward pass: what gate_gradients and products make of each other, on the CPU a chunk of
  // at most 2048 rows at a time, without d_gates as a whole. d_results: of output, every final
  // state and, of a cell with c, every step's c [D, N, H]; None is zeros, and the list may end
  // earlier. wanted: a flag for input, every state and every param (params without biases have no
  // flags of them). Returns those gradients, in this order; that of input in its shape. input may
  // be None where nobody wants d_w_ih, hidden of an LSTM where nobody wants d_w_hh.
  m.def("layer_backward(str cell, Tensor?[] d_results, Tensor? input, Tensor? batch_sizes, SymInt batch, Tensor?[] states, Tensor?[] saved, Tensor[] weights, bool[] wanted, Tensor? resets=None, bool reset_to_hx=False, str norm=\"none\", float eps=0., float[]? rates=None, int[]? counter=None, Tensor? seed=None, Tensor? h_scale=None) -> Tensor[]");

  // The recurrence of the backward pass alone. Returns d_gates [D, N, S*H], the gradients of the
  // states, of a projected layer that of every step's h behind the projection [D, N, P], of one with
  // a norm those of each direction's b_ih, b_hh and gains (as params have them), of a cell with
  // vectors that of w_ch, and, if received
  // (CPU), those of h and c as each cell received them [D, N, H]: of h before the projection, of c
  // without what its own h brings. d_gates are of the values before activation: of
  // a GRU d_r, d_z, d_n of the input product, and d_n times r, that of the recurrent product.
  m.def("gate_gradients(str cell, Tensor?[] d_results, Tensor? batch_sizes, SymInt batch, Tensor?[] states, Tensor?[] saved, Tensor[] weights, bool received, Tensor? resets=None, bool reset_to_hx=False, str norm=\"none\", float eps=0., float[]? rates=None, int[]? counter=None, Tensor? seed=None, Tensor? h_scale=None) -> Tensor[]");

  // The two below (CPU) serve forward mode and second derivatives. t_ is the tangent of what
  // follows, in one direction of all arguments; None is zeros.
  //
  // The derivative of the forward pass. t_params: of w_ih, w_hh, b_ih, b_hh of each direction.
  // through: what a caller has made of tangents of weights: what those of w_ih and b_ih, and of
  // w_hh and b_hh, bring to the gates [D, N, G*H], as vmap does where each sample has its own, and
  // what that of w_hr brings to h [D, N, P]; the first two not with options inside. t_inside: of
  // each direction gain_ih, gain_hh, cell_gain, cell_bias of a layer with a norm, and w_ch of a cell
  // with vectors. Returns the
  // tangents of the final states and, if save, of all that is saved, else of hidden alone.
  m.def("layer_tangent(str cell, Tensor? t_input, Tensor?[] t_states, Tensor?[] t_params, Tensor?[] t_inside, Tensor?[] through, Tensor? input, Tensor? batch_sizes, SymInt batch, Tensor?[] states, Tensor?[] saved, Tensor[] weights, bool save, str norm=\"none\", float eps=0., float[]? rates=None, int[]? counter=None, Tensor? seed=None, Tensor? h_scale=None) -> Tensor[]");

  // The derivative of gate_gradients, whose d_results, received and results it takes and returns as
  // tangents. through: what t_w_hh, d_gates t_w_hh [D, N, P], and t_w_hr [D, N, H] bring.
  m.def("gate_gradients_tangent(str cell, Tensor?[] t_d_results, Tensor?[] t_inside, Tensor?[] through, Tensor?[] t_states, Tensor?[] t_saved, Tensor[] received, Tensor? batch_sizes, SymInt batch, Tensor?[] states, Tensor?[] saved, Tensor[] weights, str norm=\"none\", float eps=0., float[]? rates=None, int[]? counter=None, Tensor? seed=None, Tensor? h_scale=None) -> Tensor[]");

  // The products over all steps, of any cell: d_gates [D, N, G*H + apart], of which the last apart
  // columns are the recurrent product's alone, and as many before them the input's (GRU: H). input
  // [N, I], hidden [D, N, P], h0 [D, B, P]. d_input [N, I] where w_ih is given, and, four flags a
  // direction, the gradients of w_ih, w_hh, b_ih, b_hh; of size 0 where not asked for. One pass
  // over d_gates serves all of them. That of w_hr has the form of d_w_ih, and a product with a
  // matrix that of d_input. h_scale [D, B, P]: of h before the product.
  m.def("products(Tensor d_gates, SymInt apart, Tensor? batch_sizes, SymInt batch, Tensor? input, Tensor? hidden, Tensor? h0, Tensor[] w_ih, bool[] wanted, Tensor? resets=None, bool reset_to_hx=False, Tensor? h_scale=None) -> (Tensor d_input, Tensor[] d_params)");

  // The same of each of samples that share a call: row n of sample v is row n*samples + v of every
  // tensor, batch_sizes and batch are those of one. Results begin with the sample.
  m.def("sample_products(Tensor d_gates, SymInt apart, int samples, Tensor? batch_sizes, SymInt batch, Tensor? input, Tensor? hidden, Tensor? h0, bool[] wanted) -> Tensor[] d_params");

  // layer_forward for inference, in float32, with weights packed once in int8 or bfloat16; params:
  // csrc/cpu/quantized_params.h has their shapes. If save: gates [D, N, G*H] and cells, for
  // the caller, since there is no backward.
  m.def("quantized_forward(str cell, Tensor input, Tensor? batch_sizes, Tensor?[] states, Tensor[] params, int hidden_size, int proj_size, bool bidirectional, bool save=False) -> Tensor[]");

  // Zeroes elements of weights [R, C] with probability rate and divides the others by 1 - rate, the
  // same ones for the same seed and stream (CPU); it is its own derivative.
  m.def("drop_weights(Tensor weights, Tensor seed, int stream, float rate) -> Tensor");

  // Splits padded rows where resets [T, B] has true and where sequences end (lengths [B]): the
  // segments as packed data (CPU). Or ragged rows [R, ...], one sequence behind the other:
  // cu_seqlens [B + 1] says where each begins; resets are then [R], seq_len is R, and lengths are
  // none. int64, -1 for none: rows [1, N], the given row of each packed row, and the other way
  // places [1, T, B] or [1, R]; owners [S], the sequence of each segment. For each
  // direction starts [D, S], the sequence whose initial state a segment starts from, and the other
  // way started [D, B]; ends [D, B], the segment that a sequence's final state comes from, and the
  // other way ended [D, S]. Without any row, one that is in no place. With none_if_whole all
  // results have size 0 where there is nothing to split or to cut off; starts alone has its shape,
  // without values, where the first step has a reset.
  m.def("segments(Tensor? resets, Tensor? lengths, SymInt seq_len, SymInt batch, int directions, bool none_if_whole, Tensor? cu_seqlens=None) -> (Tensor batch_sizes, Tensor rows, Tensor places, Tensor owners, Tensor starts, Tensor started, Tensor ends, Tensor ended)");

  // Takes rows [Y, *M] (indices) of each of inputs [X, R, C], zeros for -1, group x by the row x %
  // Y of its index: [X, *M, C]; where Y is 1 also of [R, C]: [*M, C] (CPU). Where no row is taken
  // twice, its derivative is the same with the inverse.
  m.def("gather_rows(Tensor[] inputs, Tensor[] indices) -> Tensor[]");

  // layer_forward of padded rows whose sequences have lengths [B], as a node of ONNX: what the export
  // to it (fastrnn/onnx.py) finds in place of segments. Returns output and final states.
  m.def("layer_of_lengths(str cell, Tensor input, Tensor lengths, Tensor?[] states, Tensor[] params, bool bidirectional) -> Tensor[]");

  // Twins of three of the above, for where gradients are recorded (recorded.cpp); nobody else calls
  // them.
  m.def("layer_recorded(str cell, Tensor input, Tensor? batch_sizes, Tensor?[] states, Tensor[] params, bool bidirectional, bool save, Tensor? resets=None, bool reset_to_hx=False, str norm=\"none\", float eps=0., float[]? rates=None, int[]? counter=None, Tensor? seed=None, Tensor? h_scale=None) -> Tensor[]");
  m.def("rows_recorded(Tensor[] inputs, Tensor[] indices) -> Tensor[]");
  m.def("drop_recorded(Tensor weights, Tensor seed, int stream, float rate) -> Tensor");
}
// clang-format on
