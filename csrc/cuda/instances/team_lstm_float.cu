#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamLstmFloat = team_table_of<cells::Lstm, Numeric::kFloat>();

}  // namespace fastrnn::cuda
