// Regimes C and G's kernels, compiled for the shim.
#include "cuda/instances/team_lstm_float.cu"
#include "cuda/instances/team_lstm_tf32.cu"
