// Attention's kernels for float16.
#include "attention_queue.h"
#include "attention_run.cuh"

namespace artent::attention {
ARTENT_INSTANTIATE_ATTENTION(__half)
}  // namespace artent::attention
