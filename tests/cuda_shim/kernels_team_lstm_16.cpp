// Regimes C and G's kernels, compiled for the shim.
#include "cuda/instances/team_lstm_bf16.cu"
#include "cuda/instances/team_lstm_half.cu"
