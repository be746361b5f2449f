// The kernels of regimes cluster and grid, compiled for the shim.
#include "cuda/instances/team_lstm_float.cu"
#include "cuda/instances/team_lstm_tf32.cu"
