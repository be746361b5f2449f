#include "cpu/kernels/base.h"
#include "cpu/kernels/vec_generic.h"
#include "cpu/kernels/table.h"

namespace fastrnn::cpu {
extern const Kernels kGenericFloat;
const Kernels kGenericFloat = make_kernels<float>();
}  // namespace fastrnn::cpu
