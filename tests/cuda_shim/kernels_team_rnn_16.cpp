// Regimes C and G's kernels, compiled for the shim.
#include "cuda/instances/team_rnn_bf16.cu"
#include "cuda/instances/team_rnn_half.cu"
