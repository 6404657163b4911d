"""What numba's language lacks: stores that bypass the caches, a fence after them, numbers at an address.

A plain store first reads the line it writes to. For weights that are written out of place that is a fifth of
all the traffic of a step of Adam; a vector store with the hint ``nontemporal`` skips it. LLVM lowers both the
wide vectors and the hint on every machine, at worst to plain stores.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LINE = 64
"""How many bytes one streaming store writes; its address must be a multiple of this."""


@intrinsic
def stream(_: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy `count` elements, a whole number of lines, from a 1-d array to one that begins at the start of a line."""
    signature = types.void(target, source, count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, of, count = arguments
        element = context.get_data_type(signature.args[0].dtype)
        width = LINE * 8 // signature.args[0].dtype.bitwidth
        vector = ir.VectorType(element, width).as_pointer()
        to = builder.bitcast(context.make_array(signature.args[0])(context, builder, to).data, vector)
        of = builder.bitcast(context.make_array(signature.args[1])(context, builder, of).data, vector)
        lines = builder.udiv(count, ir.Constant(count.type, width))
        hint = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, lines) as loop:
            value = builder.load(builder.gep(of, [loop.index]), align=LINE // width)
            store = builder.store(value, builder.gep(to, [loop.index]), align=LINE)
            store.set_metadata("nontemporal", hint)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def fence(_: Any) -> Any:
    """Order all stores before it, streaming ones too, before all that follows."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def element_at(_: Any, address: Any, index: Any, like: Any) -> Any:
    """Return element `index` of the array at an address, whose dtype is that of `like`. Checks nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = context.get_data_type(signature.args[2].dtype)
        base = builder.inttoptr(arguments[0], element.as_pointer())
        return builder.load(builder.gep(base, [arguments[1]]), align=signature.args[2].dtype.bitwidth // 8)

    return like.dtype(address, index, like), generate
