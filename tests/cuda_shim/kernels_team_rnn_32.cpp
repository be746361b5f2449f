// The kernels of regimes cluster and grid, compiled for the shim.
#include "cuda/instances/team_rnn_float.cu"
#include "cuda/instances/team_rnn_tf32.cu"
