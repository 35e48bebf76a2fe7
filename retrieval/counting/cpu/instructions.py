"""Vector instructions for numba: count values against bounds, multiply integers.

numba does not vectorise such loops by itself; written as LLVM vectors, counters, bounds and sums
stay in registers. Values are counted on any CPU that LLVM knows, LANES at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

LANES = 16
COUNTERS = ir.VectorType(ir.IntType(32), LANES)
ROWS_AT_ONCE = 4  # rows that `multiply_panels` multiplies


class PairProduct(NamedTuple):
    """An instruction that multiplies int16 lane by lane and adds the products in pairs."""

    # that LLVM knows it by. Where the CPU can add the sums to others as well (VNNI), LLVM makes one
    # instruction of it and the addition that follows
    name: str
    lanes: int  # int32 sums that it gives
    panels: int  # vectors of columns that, with ROWS_AT_ONCE rows, make best use of the registers


PAIR_PRODUCTS = {
    "avx512bw": PairProduct("llvm.x86.avx512.pmaddw.d.512", 16, 4),
    "avx2": PairProduct("llvm.x86.avx2.pmadd.wd", 8, 2),
}


def find_pair_product(features: str) -> PairProduct | None:
    """Return the widest such instruction of a CPU with these features, such as "+avx2,-sse4a"."""
    found = [p for name, p in PAIR_PRODUCTS.items() if f"+{name}" in features.split(",")]
    return found[0] if found else None


# Of the CPU that numba compiles for: this one, unless its environment variables say otherwise.
PAIR_PRODUCT = find_pair_product(cpu_target.target_context.codegen().magic_tuple()[2])


@intrinsic
def count_reaching(typing_context, data, start, count, low, high):
    """Count the values of data[start : start + count * LANES] that reach two bounds, int32 each.

    The bounds are of the type of `data`, a flat float array. numba gives the typing context.
    """
    signature = types.UniTuple(types.int32, 2)(data, start, count, low, high)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments[0])
        limits = [_splat(builder, limit, LANES) for limit in arguments[3:]]
        step = ir.Constant(arguments[1].type, LANES)
        totals = _emit_count(builder, pointer, arguments[1], step, arguments[2], limits)
        sums = [_emit_sum(builder, total) for total in totals]
        return context.make_tuple(builder, signature.return_type, sums)

    return signature, generate


@intrinsic
def count_columns_reaching(typing_context, data, start, step, count, bounds, reached):
    """Count, lane by lane, the values of `count` vectors data[start + i * step :][:LANES].

    `bounds` (2 * LANES,), of the type of the data, are a low one per lane, then a high one per
    lane; the counts that reach them are written to `reached` (2 * LANES,) int32.

    Returns:
        Sum of the counts of the low bounds, int32.
    """
    signature = types.int32(data, start, step, count, bounds, reached)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, bound_pointer, output = (
            _pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 4, 5)
        )
        halves = [ir.Constant(ir.IntType(64), half * LANES) for half in range(2)]
        limits = [_load(builder, builder.gep(bound_pointer, [half]), LANES) for half in halves]
        totals = _emit_count(builder, pointer, arguments[1], arguments[2], arguments[3], limits)
        for half, total in zip(halves, totals, strict=True):
            place = builder.bitcast(builder.gep(output, [half]), COUNTERS.as_pointer())
            builder.store(total, place, align=4)
        return _emit_sum(builder, totals[0])

    return signature, generate


@intrinsic
def multiply_panels(
    typing_context, rows, columns, panel, pairs, row_units, column_units, out, stride
):
    """Write the cosines of ROWS_AT_ONCE rows with the columns of PAIR_PRODUCT.panels panels.

    A panel, of size `panel`, holds, pair after pair, that pair of int16 of as many vectors as
    PAIR_PRODUCT has lanes. All arrays are flat and start where the work does: rows and columns
    int32, the units of their integers and the cosines `out`, its rows `stride` apart, float32.
    """
    signature = types.void(rows, columns, panel, pairs, row_units, column_units, out, stride)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        assert PAIR_PRODUCT is not None
        lanes = PAIR_PRODUCT.lanes
        row, column, row_units, column_units, out = (
            _pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 4, 5, 6)
        )

        steps = [_number(i * lanes) for i in range(PAIR_PRODUCT.panels)]
        panels = [
            builder.gep(column, [builder.mul(arguments[2], _number(i))]) for i in range(len(steps))
        ]
        sums = _emit_sums(builder, [(row, panels)], arguments[3])

        units = [_load(builder, builder.gep(column_units, [step]), lanes) for step in steps]
        for i, of_row in enumerate(sums):
            row_unit = builder.load(builder.gep(row_units, [_number(i)]))
            start = builder.gep(out, [builder.mul(arguments[7], _number(i))])
            for step, unit, total in zip(steps, units, of_row, strict=True):
                scaled = builder.fmul(builder.sitofp(total, unit.type), unit)
                cosines = builder.fmul(scaled, _splat(builder, row_unit, lanes))
                _store(builder, cosines, builder.gep(start, [step]))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def reach_panels(typing_context, rows, columns, panel, pairs, bound, reached):
    """Say whether products of ROWS_AT_ONCE rows with PAIR_PRODUCT.panels panels reach a bound.

    Rows, columns, `panel` and `pairs` are as in `multiply_panels`; the products are integers. Where
    one reaches it, `reached`, flat uint16, gets for each row and panel a bit for each lane.

    Returns:
        Whether one does.
    """
    signature = types.boolean(rows, columns, panel, pairs, types.int32, reached)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        assert PAIR_PRODUCT is not None
        lanes = PAIR_PRODUCT.lanes
        row, column, reached = (
            _pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 5)
        )
        panels = [
            builder.gep(column, [builder.mul(arguments[2], _number(i))])
            for i in range(PAIR_PRODUCT.panels)
        ]
        sums = sum(_emit_sums(builder, [(row, panels)], arguments[3]), [])
        bounds = _splat(builder, arguments[4], lanes)

        def bits(values: Any) -> Any:
            return builder.bitcast(builder.icmp_signed(">=", values, bounds), ir.IntType(lanes))

        greatest = sums[0]
        for values in sums[1:]:
            is_greater = builder.icmp_signed(">", values, greatest)
            greatest = builder.select(is_greater, values, greatest)
        is_reached = builder.icmp_unsigned("!=", bits(greatest), ir.Constant(ir.IntType(lanes), 0))
        with builder.if_then(is_reached, likely=False):
            for i, values in enumerate(sums):
                word = bits(values)
                word = word if lanes == 16 else builder.zext(word, ir.IntType(16))
                builder.store(word, builder.gep(reached, [_number(i)]))
        return is_reached

    return signature, generate


@intrinsic
def add_sliced_panels(
    typing_context, rows, columns, panel, low, pairs, row_units, column_units, ratio, out, stride
):
    """Add cosines to `out`, as `multiply_panels` writes them, of vectors that are two slices each.

    A vector is its high integers + its low ones / ratio; those lie `low` behind the high ones. What
    two low ones give is left out. Units, ratio, and `out` are float64.
    """
    arguments = rows, columns, panel, low, pairs, row_units, column_units, ratio, out, stride
    signature = types.void(*arguments)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        assert PAIR_PRODUCT is not None
        lanes = PAIR_PRODUCT.lanes
        row, column, row_units, column_units, out = (
            _pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 5, 6, 8)
        )
        panel, low, pairs, ratio, stride = (arguments[i] for i in (2, 3, 4, 7, 9))

        steps = [_number(i * lanes) for i in range(PAIR_PRODUCT.panels)]
        panels = [builder.gep(column, [builder.mul(panel, _number(i))]) for i in range(len(steps))]
        low_row, low_panels = builder.gep(row, [low]), [builder.gep(p, [low]) for p in panels]
        crossed = _emit_sums(builder, [(row, low_panels), (low_row, panels)], pairs)
        sums = _emit_sums(builder, [(row, panels)], pairs)

        units = [_load(builder, builder.gep(column_units, [step]), lanes) for step in steps]
        scale = _splat(builder, builder.fdiv(ir.Constant(ratio.type, 1), ratio), lanes)
        for i, (of_row, of_slices) in enumerate(zip(sums, crossed, strict=True)):
            row_unit = _splat(builder, builder.load(builder.gep(row_units, [_number(i)])), lanes)
            start = builder.gep(out, [builder.mul(stride, _number(i))])
            for step, unit, high, cross in zip(steps, units, of_row, of_slices, strict=True):
                high, cross = (builder.sitofp(total, unit.type) for total in (high, cross))
                total = builder.fadd(high, builder.fmul(cross, scale))
                cosines = builder.fmul(total, builder.fmul(unit, row_unit))
                place = builder.gep(start, [step])
                _store(builder, builder.fadd(_load(builder, place, lanes), cosines), place)
        return context.get_dummy_value()

    return signature, generate


def _pointer(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _load(builder: Any, pointer: Any, lanes: int) -> Any:
    return builder.load(_vectors_at(builder, pointer, lanes), align=_size(pointer.type.pointee))


def _store(builder: Any, values: Any, pointer: Any) -> None:
    place = _vectors_at(builder, pointer, values.type.count)
    builder.store(values, place, align=_size(pointer.type.pointee))


def _vectors_at(builder: Any, pointer: Any, lanes: int) -> Any:
    return builder.bitcast(pointer, ir.VectorType(pointer.type.pointee, lanes).as_pointer())


def _size(element: Any) -> int:
    return 8 if isinstance(element, ir.DoubleType) else 4


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    vector = ir.VectorType(value.type, lanes)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
    first = builder.insert_element(
        ir.Constant(vector, ir.Undefined), value, ir.Constant(zeros.type.element, 0)
    )
    return builder.shuffle_vector(first, first, zeros)


def _emit_count(
    builder: Any, pointer: Any, start: Any, step: Any, count: Any, limits: Sequence[Any]
) -> list[Any]:
    totals = [cgutils.alloca_once_value(builder, ir.Constant(COUNTERS, None)) for _ in limits]
    with cgutils.for_range(builder, count) as loop:
        position = builder.add(start, builder.mul(loop.index, step))
        values = _load(builder, builder.gep(pointer, [position]), LANES)
        for total, limit in zip(totals, limits, strict=True):
            # A true comparison is -1 in its lane.
            reached = builder.sext(builder.fcmp_ordered(">=", values, limit), COUNTERS)
            builder.store(builder.sub(builder.load(total), reached), total)
    return [builder.load(total) for total in totals]


def _emit_sum(builder: Any, counters: Any) -> Any:
    kind = ir.FunctionType(COUNTERS.element, [COUNTERS])
    name = f"llvm.vector.reduce.add.v{LANES}i32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [counters])


def _number(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


def _emit_sums(
    builder: Any, factors: Sequence[tuple[Any, Sequence[Any]]], pairs: Any
) -> list[list[Any]]:
    """Emit the sums of products over all pairs, vectors of int32, of each row with each panel.

    The factors are some rows and as many panels; the sums of all of them are added.
    """
    assert PAIR_PRODUCT is not None
    lanes = PAIR_PRODUCT.lanes
    sums = ir.VectorType(ir.IntType(32), lanes)
    shorts = ir.VectorType(ir.IntType(16), 2 * lanes)
    kind = ir.FunctionType(sums, [shorts, shorts])
    multiply = cgutils.get_or_insert_function(builder.module, kind, PAIR_PRODUCT.name)
    totals = [
        [cgutils.alloca_once_value(builder, ir.Constant(sums, None)) for _ in factors[0][1]]
        for _ in range(ROWS_AT_ONCE)
    ]

    for row, panels in factors:
        with cgutils.for_range(builder, pairs) as loop:
            position = builder.mul(loop.index, _number(lanes))
            columns = [
                builder.bitcast(_load(builder, builder.gep(panel, [position]), lanes), shorts)
                for panel in panels
            ]
            for i, of_row in enumerate(totals):
                pair = builder.load(builder.gep(row, [builder.add(position, _number(i))]))
                pairs_of_row = builder.bitcast(_splat(builder, pair, lanes), shorts)
                for total, column in zip(of_row, columns, strict=True):
                    products = builder.call(multiply, [pairs_of_row, column])
                    builder.store(builder.add(builder.load(total), products), total)

    return [[builder.load(total) for total in of_row] for of_row in totals]
