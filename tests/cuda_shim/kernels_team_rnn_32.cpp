// Regimes C and G's kernels, compiled for the shim.
#include "cuda/instances/team_rnn_float.cu"
#include "cuda/instances/team_rnn_tf32.cu"
