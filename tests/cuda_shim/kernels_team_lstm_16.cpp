// The kernels of regimes cluster and grid, compiled for the shim.
#include "cuda/instances/team_lstm_bf16.cu"
#include "cuda/instances/team_lstm_half.cu"
