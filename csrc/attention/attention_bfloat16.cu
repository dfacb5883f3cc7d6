// Attention's kernels for bfloat16.
#include "attention_queue.h"
#include "attention_run.cuh"

namespace artent::attention {
ARTENT_INSTANTIATE_ATTENTION(__nv_bfloat16)
}  // namespace artent::attention
