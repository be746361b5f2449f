#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamLstmHalf = team_table_of<Lstm, Numeric::kHalf>();

}  // namespace fastrnn::cuda
