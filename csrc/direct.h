// Calls from Python that go past torch's dispatcher; csrc/direct.cpp.
#pragma once
#include <Python.h>

namespace fastrnn {

// Adds them to the module fastrnn._C; false with a Python error set.
bool add_direct(PyObject* module);

}  // namespace fastrnn
