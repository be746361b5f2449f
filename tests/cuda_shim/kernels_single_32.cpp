// The single regime's kernels in fp32 and TF32, compiled for the shim.
#include "cuda/instances/single_gru_float.cu"
#include "cuda/instances/single_gru_tf32.cu"
#include "cuda/instances/single_lstm_float.cu"
#include "cuda/instances/single_lstm_tf32.cu"
#include "cuda/instances/single_rnn_float.cu"
#include "cuda/instances/single_rnn_tf32.cu"
