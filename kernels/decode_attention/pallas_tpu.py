"""Attention in decoding for TPU in Pallas; free slots of the cache are not read.

The formula is that of the online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867) as in
`flash_attention/pallas_tpu_forward.py`. One query has few FLOPs per key, so reading the cache
limits the speed: the memory must never wait for the computation.

The grid is (cores, key heads per core); the last index moves fastest. A grid step has the G queries
of one key head in VMEM, and loops over the filled blocks of its slots. The cache stays in HBM. The
kernel copies blocks itself into two buffers, because the blocks per head differ: while one block is
computed the next one is copied, and that is the first one of the next head after a head's last.

Shapes: a block has C slots; G query heads share a key head; L the 128 lanes of a register.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import MASKED
from kernels.tpu import (
    LANES,
    TRANSPOSED,
    broadcast_lanes,
    ceil_div,
    matmul,
    round_up,
    run_kernel,
    sum_lane_groups,
)

CORES = 2  # of a v4 or v5p; on a chip with one core the halves of the heads run one after the other
SUBLANES = 8  # rows of an fp32 register
ROWS = 32  # rows of an int8 register, the longest one: copies start at a multiple of them
# Bytes of keys per block: enough to hide the fixed cost of a block, while the last block of a
# sequence, which is read to its end, stays a small part of it.
BLOCK_BYTES = 1 << 20
LEAST_BLOCK = 4096  # slots; a short cache has at least four blocks, but none smaller than this
# Strips per block. While one strip is in its softmax, the matrix units work on another one.
STRIPS = 4


def block_slots(slots: int, head_dim: int, dtype) -> int:
    """Returns the slots of a block of a cache of `dtype`, a multiple of 128."""
    slot_bytes = round_up(head_dim, LANES) * jnp.dtype(dtype).itemsize
    most = max(LANES, min(BLOCK_BYTES // slot_bytes, max(LEAST_BLOCK, slots // 4)))
    # Blocks of equal size read least beyond the end of a full cache.
    return round_up(ceil_div(slots, ceil_div(slots, most)), LANES)


class _Blocks:
    """Copies of blocks of a head's slots from HBM into buffers in VMEM.

    Args:
      arrays: refs in HBM: keys and values (M, S, H), and their scales (M, 1, S) if these are int8.
      buffers: refs in VMEM, two blocks of each array: (2, C, H), or (2, 1, C) for scales.
      semaphores: (2, arrays), one per copy in flight.
    """

    def __init__(self, arrays, buffers, semaphores):
        self.arrays, self.buffers, self.semaphores = arrays, buffers, semaphores
        self.slots, self.size = arrays[0].shape[1], buffers[0].shape[1]

    def first_slot(self, block):
        """Returns the first slot that is copied for a block."""
        # The cache may end within its last block. That one then starts earlier, so that all copies
        # have the same size. Its first slots, which the block before it has too, are masked.
        first = jnp.minimum(block * self.size, self.slots - self.size)
        return pl.multiple_of(first, math.gcd(self.size, self.slots))

    def visible(self, block, length):
        """Returns the first and the last + 1 visible slot, counted from the block's first one."""
        first = self.first_slot(block)
        return block * self.size - first, length - first

    def _copies(self, head, block, buffer):
        window = pl.ds(self.first_slot(block), self.size)
        for number, (array, blocks) in enumerate(zip(self.arrays, self.buffers)):
            is_scale = number >= 2  # keys and values come first
            source = array.at[head, :, window] if is_scale else array.at[head, window]
            semaphore = self.semaphores.at[buffer, number]
            yield pltpu.make_async_copy(source, blocks.at[buffer], semaphore)

    def start(self, head, block, buffer):
        """Starts to copy a block into `buffer`, 0 or 1."""
        for copy in self._copies(head, block, buffer):
            copy.start()

    def wait(self, head, block, buffer):
        """Waits until the block is in its buffer, and returns the refs of its parts."""
        for copy in self._copies(head, block, buffer):
            copy.wait()
        return [blocks.at[buffer] for blocks in self.buffers]


def _logits(q_GH, k_ref, scale_refs):
    """Returns fp32 log2(e) Q K^T / sqrt(H): the hardware computes powers of 2."""
    k_CH = k_ref[...].astype(q_GH.dtype)
    logits_GC = matmul(q_GH, k_CH, TRANSPOSED) * (q_GH.shape[1] ** -0.5 * math.log2(math.e))
    # One multiplication per slot instead of H: a scale belongs to a column of the scores.
    return logits_GC * scale_refs[0][...] if scale_refs else logits_GC


def _masked(x_GC, start, visible, hidden):
    """Returns x_GC with `hidden` in the slots that are not visible; C counts from slot `start`."""
    slots_GC = lax.broadcasted_iota(jnp.int32, x_GC.shape, 1) + start
    return jnp.where((slots_GC >= visible[0]) & (slots_GC < visible[1]), x_GC, hidden)


def _add_block(q_GH, parts, state, visible=None):
    """Adds one block to the online softmax of a head.

    Args:
      q_GH: queries.
      parts: refs of the block: keys and values (C, H), and their scales (1, C) if they are int8.
      state: fp32 maximum m_GL, sum l_GL and accumulator acc_GH. They are fp32, because the sums
        run over up to 100,000 slots.
      visible: the first and the last + 1 visible slot of the block; None for a full block.

    Returns:
      The new state.
    """
    k_ref, v_ref, *scale_refs = parts
    C, H = k_ref.shape
    size = round_up(ceil_div(C, STRIPS), LANES)
    strips = [pl.ds(start, min(size, C - start)) for start in range(0, C, size)]
    # Step 1: the scores S of all strips. The matrix units run in the order of the code, so that
    # they would wait for the softmax of a strip if its values came next.
    logits = []
    for strip in strips:
        scales = [scale_ref.at[:, strip] for scale_ref in scale_refs]
        logits_GC = _logits(q_GH, k_ref.at[strip], scales)
        if visible:
            logits_GC = _masked(logits_GC, strip.start, visible, MASKED)
        logits.append(logits_GC)
    m_GL, l_GL, acc_GH = state
    for strip, logits_GC in zip(strips, logits):
        # Step 2: the online softmax, m' = max(m, row maximum of S), P = exp(S - m'),
        # l' = l exp(m - m') + row sum of P. Each lane keeps a separate partial sum.
        new_m_GL = jnp.maximum(m_GL, jnp.max(logits_GC, axis=1, keepdims=True))
        rescale_GL = jnp.exp2(m_GL - new_m_GL)
        p_GC = jnp.exp2(logits_GC - broadcast_lanes(new_m_GL, logits_GC.shape[1]))
        m_GL, l_GL = new_m_GL, l_GL * rescale_GL + sum_lane_groups(p_GC)
        # Step 3: acc' = acc exp(m - m') + P V. The scale of a free slot may be NaN.
        if scale_refs:
            p_GC = p_GC * scale_refs[1][:, strip]
            p_GC = _masked(p_GC, strip.start, visible, 0.0) if visible else p_GC
        weighted_GH = matmul(p_GC.astype(q_GH.dtype), v_ref[strip].astype(q_GH.dtype))
        acc_GH = acc_GH * broadcast_lanes(rescale_GL, H) + weighted_GH
    return m_GL, l_GL, acc_GH


def _clear(v_ref, filled):
    """Sets the values of a block to 0 from slot `filled` on.

    Free slots may hold NaN, and 0 x NaN is NaN. Writing zeros costs less than selecting from all
    values of the block, and a full block has none to write.
    """
    first, tiles = lax.div(filled, LANES), v_ref.shape[0] // LANES

    @pl.when(first < tiles)
    def _():
        rows = pl.ds(pl.multiple_of(first * LANES, LANES), LANES)
        slots_RH = lax.broadcasted_iota(jnp.int32, (LANES, v_ref.shape[1]), 0) + first * LANES
        v_ref[rows] = jnp.where(slots_RH < filled, v_ref[rows], jnp.zeros((), v_ref.dtype))

    def clear_tile(tile, _):
        rows = pl.ds(pl.multiple_of(tile * LANES, LANES), LANES)
        v_ref[rows] = jnp.zeros((LANES, v_ref.shape[1]), v_ref.dtype)

    lax.fori_loop(first + 1, tiles, clear_tile, None)


def _kernel(lengths_ref, q_ref, *refs):
    """Processes one key head.

    Args:
      lengths_ref: (M,) int32 in SMEM, filled slots of each key head's sequence.
      q_ref: (G, H) queries.
      refs: the arrays of `_Blocks`; out_ref (G, H); the buffers of `_Blocks`; buffer_ref, int32 in
        SMEM, the buffer of the head's first block; the semaphores of `_Blocks`.
    """
    *refs, buffer_ref, semaphores = refs
    count = len(refs) // 2  # as many buffers as arrays
    arrays, out_ref, buffers = refs[:count], refs[count], refs[count + 1 :]
    blocks = _Blocks(arrays, buffers, semaphores)
    (M,), (G, H) = lengths_ref.shape, q_ref.shape
    number, heads = pl.program_id(1), pl.num_programs(1)
    head = pl.program_id(0) * heads + number

    # The last core has one head less if the number of heads is odd.
    @pl.when(head < M)
    def _():
        last = jnp.maximum(pl.cdiv(lengths_ref[head], blocks.size), 1) - 1

        # Step 1: the core's first block. Every other one is copied while one before it is computed.
        @pl.when(number == 0)
        def _():
            buffer_ref[0] = 0
            blocks.start(head, 0, 0)

        first_buffer = buffer_ref[0]

        # Step 2: the full blocks, and the copy of the next one.
        def add_full_block(block, state):
            buffer = (first_buffer + block) & 1
            blocks.start(head, block + 1, 1 - buffer)
            return _add_block(q_ref[...], blocks.wait(head, block, buffer), state)

        state = (
            jnp.full((G, LANES), MASKED, jnp.float32),
            jnp.zeros((G, LANES), jnp.float32),
            jnp.zeros((G, H), jnp.float32),
        )
        state = lax.fori_loop(0, last, add_full_block, state)
        # Step 3: the last block, the only one with a mask, and the copy of the next head's first.
        buffer = (first_buffer + last) & 1
        buffer_ref[0] = 1 - buffer

        @pl.when((number + 1 < heads) & (head + 1 < M))
        def _():
            blocks.start(head + 1, 0, 1 - buffer)

        parts = blocks.wait(head, last, buffer)
        visible = blocks.visible(last, lengths_ref[head])
        if len(parts) == 2:  # int8 has no NaN
            _clear(parts[1], visible[1])
        _, l_GL, acc_GH = _add_block(q_ref[...], parts, state, visible)
        # Step 4: out = acc / l.
        out_ref[...] = (acc_GH / jnp.sum(l_GL, axis=1, keepdims=True)).astype(out_ref.dtype)


def _attend(lengths_M, q_MGH, k_MSH, v_MSH, *scales_M1S, block: int, interpret):
    """Runs the kernel with blocks of `block` slots and returns out_MGH."""
    M, G, H = q_MGH.shape
    cores = min(CORES, M)
    heads = ceil_div(M, cores)

    def queries(core, number, lengths):
        return jnp.minimum(core * heads + number, M - 1), 0, 0

    arrays = (k_MSH, v_MSH, *scales_M1S)
    q_spec = pl.BlockSpec((None, G, H), queries)
    buffers = [pltpu.VMEM((2, block, H), k_MSH.dtype)] * 2
    buffers += [pltpu.VMEM((2, 1, block), jnp.float32)] * len(scales_M1S)
    semaphores = pltpu.SemaphoreType.DMA((2, len(arrays)))
    return pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(cores, heads),
            in_specs=[q_spec, *[pl.BlockSpec(memory_space=pltpu.HBM)] * len(arrays)],
            out_specs=q_spec,
            scratch_shapes=[*buffers, pltpu.SMEM((1,), jnp.int32), semaphores],
        ),
        out_shape=jax.ShapeDtypeStruct(q_MGH.shape, q_MGH.dtype),
        compiler_params=pltpu.CompilerParams(
            # A head starts the copy of the next one's first block, so one core runs them in order.
            dimension_semantics=("parallel", "arbitrary"),
            # `_Blocks.first_slot` never leaves the cache, and the checks delay every block.
            disable_bounds_checks=True,
        ),
        interpret=interpret,
        name="decode_attention",
    )(lengths_M, q_MGH, *arrays)


def decode_attention(
    q_MGH, k_MSH, v_MSH, lengths_M, *scales_MS, block=0, interpret=None
) -> jax.Array:
    """Returns out_MGH as `api.decode_attention` does; lengths_M is per key head.

    A cache whose slots are no multiple of 32, or of 128 if it is int8 or smaller than a block, is
    padded, which copies it.

    Args:
      q_MGH, k_MSH, v_MSH: as in `api.decode_attention`.
      lengths_M: int32, filled slots of each key head's sequence. A length of 0 returns zeros.
      scales_MS: of keys and of values, if these are int8.
      block: slots per block, a multiple of 128; 0 chooses them.
      interpret: as `tpu.run_kernel` takes it.
    """
    (_, G, H), S = q_MGH.shape, k_MSH.shape[1]
    # An fp32 register has 8 rows. Padding the query heads to full registers costs no time, because
    # the matrix units would be idle for the missing rows anyway.
    padded_MGH = jnp.pad(q_MGH, ((0, 0), (0, -G % SUBLANES), (0, 0)))
    block = min(block or block_slots(S, H, k_MSH.dtype), round_up(S, LANES))
    more = -S % (LANES if scales_MS or block > S else ROWS)
    k_MSH, v_MSH = (jnp.pad(a_MSH, ((0, 0), (0, more), (0, 0))) for a_MSH in (k_MSH, v_MSH))
    # A row of scales per head: a copy takes complete tiles of the last two dims.
    scales_M1S = [jnp.pad(scale_MS, ((0, 0), (0, more)))[:, None] for scale_MS in scales_MS]
    kernel = functools.partial(_attend, block=block)
    arrays = (lengths_M.astype(jnp.int32), padded_MGH, k_MSH, v_MSH, *scales_M1S)
    return run_kernel(kernel, *arrays, interpret=interpret)[:, :G]
