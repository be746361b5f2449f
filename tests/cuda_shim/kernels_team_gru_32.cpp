// The kernels of regimes cluster and grid, compiled for the shim.
#include "cuda/instances/team_gru_float.cu"
#include "cuda/instances/team_gru_tf32.cu"
