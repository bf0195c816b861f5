// Lets MegaBlocks 0.10.0's extension compile against CCCL 3 (CUDA 13 and later); make it the first include of nvcc.
// cub::DeviceScan's functions had a seventh argument, debug_synchronous, which CCCL 3 took away and MegaBlocks passes.
#pragma once
#ifdef __CUDACC__
#undef CUB_WRAPPED_NAMESPACE
// the name that MegaBlocks gives its own copy of cub
#define CUB_WRAPPED_NAMESPACE megablocks
// read cub before the macros below, which would rewrite its own declarations
#include <cub/cub.cuh>
#define InclusiveSum(storage, bytes, in, out, num, stream, debug) InclusiveSum(storage, bytes, in, out, num, stream)
#define ExclusiveSum(storage, bytes, in, out, num, stream, debug) ExclusiveSum(storage, bytes, in, out, num, stream)
#endif
