#include "cpu/kernels/base.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#include "cpu/kernels/vec_avx512.h"
#include "cpu/kernels/dot_avx512_plain.h"
#include "cpu/kernels/quantized.h"
#pragma GCC pop_options

namespace fastrnn::cpu {
extern const QuantizedKernels kAvx512Quantized;
const QuantizedKernels kAvx512Quantized = make_quantized_kernels();
}  // namespace fastrnn::cpu
#endif
