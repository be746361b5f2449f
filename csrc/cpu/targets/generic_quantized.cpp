#include "cpu/kernels/base.h"
#include "cpu/kernels/vec_generic.h"
#include "cpu/kernels/dot_generic.h"
#include "cpu/kernels/quantized.h"

namespace fastrnn::cpu {
extern const QuantizedKernels kGenericQuantized;
const QuantizedKernels kGenericQuantized = make_quantized_kernels();
}  // namespace fastrnn::cpu
