"""Vector instructions for numba: count values against bounds, LANES at a time.

numba does not vectorise such loops by itself; written as LLVM vectors, the counters and bounds stay
in registers on any CPU that LLVM knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
COUNTERS = ir.VectorType(ir.IntType(32), LANES)


@intrinsic
def count_reaching(typing_context, data, start, count, low, high):
    """Count the values of data[start : start + count * LANES] that reach two bounds.

    Args:
        typing_context: numba's, not given by the caller.
        data: flat float array.
        start: first position.
        count: number of vectors.
        low: first bound, of the type of the data.
        high: second bound.

    Returns:
        Values of at least `low`, values of at least `high`, int32 each.
    """
    signature = types.UniTuple(types.int32, 2)(data, start, count, low, high)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0])
        limits = [_splat(builder, limit) for limit in args[3:]]
        step = ir.Constant(args[1].type, LANES)
        totals = _emit_count(builder, pointer, args[1], step, args[2], limits)
        sums = [_emit_sum(builder, total) for total in totals]
        return context.make_tuple(builder, signature.return_type, sums)

    return signature, generate


@intrinsic
def count_columns_reaching(typing_context, data, start, step, count, bounds, reached):
    """Count, lane by lane, the values of `count` vectors data[start + i * step :][:LANES].

    Args:
        typing_context: numba's, not given by the caller.
        data: flat float array.
        start: first position of the first vector.
        step: distance of the vectors.
        count: number of vectors.
        bounds: (2 * LANES,) of the type of the data: a low bound per lane, a high one per lane.
        reached: (2 * LANES,) int32, the counts of values that reach them are written here.

    Returns:
        Sum of the counts of the low bounds, int32.
    """
    signature = types.int32(data, start, step, count, bounds, reached)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, bound_pointer, output = (
            _pointer(context, builder, signature.args[i], args[i]) for i in (0, 4, 5)
        )
        halves = [ir.Constant(ir.IntType(64), half * LANES) for half in range(2)]
        limits = [_load(builder, builder.gep(bound_pointer, [half])) for half in halves]
        totals = _emit_count(builder, pointer, args[1], args[2], args[3], limits)
        for half, total in zip(halves, totals, strict=True):
            place = builder.bitcast(builder.gep(output, [half]), COUNTERS.as_pointer())
            builder.store(total, place, align=4)
        return _emit_sum(builder, totals[0])

    return signature, generate


def _pointer(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _load(builder: Any, pointer: Any) -> Any:
    element = pointer.type.pointee
    vector = ir.VectorType(element, LANES).as_pointer()
    size = 4 if isinstance(element, ir.FloatType) else 8
    return builder.load(builder.bitcast(pointer, vector), align=size)


def _splat(builder: Any, value: Any) -> Any:
    vector = ir.VectorType(value.type, LANES)
    first = builder.insert_element(
        ir.Constant(vector, ir.Undefined), value, ir.Constant(COUNTERS.element, 0)
    )
    zeros = ir.Constant(COUNTERS, None)
    return builder.shuffle_vector(first, first, zeros)


def _emit_count(
    builder: Any, pointer: Any, start: Any, step: Any, count: Any, limits: Sequence[Any]
) -> list[Any]:
    totals = [cgutils.alloca_once_value(builder, ir.Constant(COUNTERS, None)) for _ in limits]
    with cgutils.for_range(builder, count) as loop:
        position = builder.add(start, builder.mul(loop.index, step))
        values = _load(builder, builder.gep(pointer, [position]))
        for total, limit in zip(totals, limits, strict=True):
            # A true comparison is -1 in its lane.
            reached = builder.sext(builder.fcmp_ordered(">=", values, limit), COUNTERS)
            builder.store(builder.sub(builder.load(total), reached), total)
    return [builder.load(total) for total in totals]


def _emit_sum(builder: Any, counters: Any) -> Any:
    kind = ir.FunctionType(COUNTERS.element, [COUNTERS])
    name = f"llvm.vector.reduce.add.v{LANES}i32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [counters])
