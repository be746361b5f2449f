// The CUDA operators under their dispatch key. A file of its own: the tests
// register the same operators for the CPU, over a shim of the device.
#include "cuda/host.h"

TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) { fastrnn::host::implement<fastrnn::cuda::Engine>(m); }
