// What every cell file needs. A cell is equations on a value type V: a CPU
// vector, a CUDA float, anything with + - * and the functions sigmoid(V),
// tanh(V), which argument-dependent lookup finds beside V.
#pragma once

#if defined(__CUDACC__)
#define FASTRNN_CELL __host__ __device__ __forceinline__
#else
#define FASTRNN_CELL inline __attribute__((always_inline))
#endif
