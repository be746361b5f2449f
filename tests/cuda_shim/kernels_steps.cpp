// The steps regime's kernels, compiled for the shim.
#include "cuda/instances/steps_bf16.cu"
#include "cuda/instances/steps_double.cu"
#include "cuda/instances/steps_float.cu"
#include "cuda/instances/steps_half.cu"
#include "cuda/instances/upload.cu"
