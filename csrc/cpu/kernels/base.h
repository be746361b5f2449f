// First header of every target file, before any instruction set is selected:
// standard headers, so that no code of theirs is compiled for a newer CPU.
#pragma once
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/params.h"
#include "cpu/team.h"

#define FASTRNN_INLINE inline __attribute__((always_inline))
#define FASTRNN_NOINLINE __attribute__((noinline))
