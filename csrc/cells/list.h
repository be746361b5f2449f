// The one list of cells. Kernels, checks, fakes and tests read it; a cell's number is its place.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "layer_shape.h"

namespace fastrnn::cells {

// What host code needs to know of a cell; the contract in cell.h says what each is.
struct Traits {
  const char* name;
  int products, states, columns;
  bool keeps_h;
};

template <class... Each>
struct List {
  static constexpr int kCount = sizeof...(Each);
  static constexpr Traits kTraits[] = {
      {Each::kName, Each::kProducts, Each::kStates, Each::kColumns, Each::kKeepsH}...};

  // f(Cell{}) of the cell of this kind.
  template <class F>
  static auto visit(CellKind kind, F&& f) {
    return visit_from<0, F, Each...>(static_cast<int>(kind), f);
  }

 private:
  template <int kFirst, class F, class Cell, class... Others>
  static auto visit_from(int kind, F& f) {
    if constexpr (sizeof...(Others) > 0) {
      if (kind != kFirst) return visit_from<kFirst + 1, F, Others...>(kind, f);
    }
    return f(Cell{});
  }
};

using All = List<Lstm, Gru, RnnTanh, RnnRelu>;

constexpr const Traits& traits(CellKind kind) { return All::kTraits[static_cast<int>(kind)]; }

}  // namespace fastrnn::cells
