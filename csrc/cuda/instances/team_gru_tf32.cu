#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamGruTf32 = team_table_of<cells::Gru, Numeric::kTf32>();

}  // namespace fastrnn::cuda
