// The single regime's kernels on 16-bit matrix instructions, compiled for the shim.
#include "cuda/instances/single_gru_bf16.cu"
#include "cuda/instances/single_gru_half.cu"
#include "cuda/instances/single_lstm_bf16.cu"
#include "cuda/instances/single_lstm_half.cu"
#include "cuda/instances/single_rnn_bf16.cu"
#include "cuda/instances/single_rnn_half.cu"
