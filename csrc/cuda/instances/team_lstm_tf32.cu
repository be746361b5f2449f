#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamLstmTf32 = team_table_of<cells::Lstm, Numeric::kTf32>();

}  // namespace fastrnn::cuda
