#include "cpu/kernels/base.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "cpu/kernels/vec_avx2.h"
#include "cpu/kernels/dot_avx2.h"
#include "cpu/kernels/quantized.h"
#pragma GCC pop_options

namespace fastrnn::cpu {
extern const QuantizedKernels kAvx2Quantized;
const QuantizedKernels kAvx2Quantized = make_quantized_kernels();
}  // namespace fastrnn::cpu
#endif
