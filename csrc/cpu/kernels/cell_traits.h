// What the recurrences need to know of a cell beyond its equations.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/kernels/config.h"

namespace fastrnn::cpu {
namespace {

struct Lstm {
  static constexpr int kGates = 4;        // products per unit
  static constexpr int kSaved = 4;        // saved values per unit besides h and c
  static constexpr int kUnitVectors = 1;  // vectors of units in a panel block
  static constexpr int kRows = kLstmRows;
  static constexpr bool kIsLstm = true, kIsGru = false;
};

struct Gru {
  static constexpr int kGates = 3;
  static constexpr int kSaved = 4;
  static constexpr int kUnitVectors = 1;
  static constexpr int kRows = kGruRows;
  static constexpr bool kIsLstm = false, kIsGru = true;
};

struct Rnn {
  static constexpr int kGates = 1;
  static constexpr int kSaved = 0;
  static constexpr int kUnitVectors = kRnnUnitVectors;
  static constexpr int kRows = kRnnRows;
  static constexpr bool kIsLstm = false, kIsGru = false;
};

}  // namespace
}  // namespace fastrnn::cpu
