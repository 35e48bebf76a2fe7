"""A pretended device: its tensors compute on the CPU, but what they hold is not to be asked.

What would make the host of a GPU wait is noted, with the line of the project that did it: numbers
and shapes that follow from values (`item`, `nonzero`, indices by masks). Copies to the host are
not, as long as nobody looks into them.
"""

import contextlib
import traceback
from pathlib import Path

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import return_and_correct_aliasing

ROOT = Path(__file__).resolve().parent.parent
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.equal.default,
    aten.repeat_interleave.Tensor,
}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}

_waits: list[str] = []


class OnDevice(torch.Tensor):
    """A tensor of the pretended device; `inner` is what it holds."""

    @staticmethod
    def __new__(cls, inner):
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
        )
        out.inner = inner
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in WAITING or (func in INDEXING and any(map(_asks, args[1]))):
            _waits.append(f"{func} at {_place()}")

        inner_args, inner_kwargs = pytree.tree_map(_inner, (args, kwargs))
        out = func(*inner_args, **inner_kwargs)
        if func is aten.copy_.default and not isinstance(args[0], OnDevice):
            return args[0]  # to the host
        if func._schema.name.endswith("_") and isinstance(args[0], list):
            return None if out is None else args[0]  # of _foreach_ and _fused_, in place
        out = pytree.tree_map(lambda x: OnDevice(x) if _is_plain(x) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out)


def _asks(index):
    """Whether an index is a mask, whose number of entries has to be counted."""
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _inner(value):
    return value.inner if isinstance(value, OnDevice) else value


def _is_plain(value):
    return isinstance(value, torch.Tensor) and not isinstance(value, OnDevice)


def _place():
    node = torch._C._current_autograd_node()
    if node is not None:
        return f"the backward pass of {node.name()}"
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT))]
    frames = [f for f in frames if "/tests/" not in f.filename and "/.venv/" not in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "a test"


def put_on_device(module):
    """Replace the weights and buffers of a module; those that it keeps on the host stay."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(OnDevice(parameter.detach()))
    module._apply(lambda tensor: tensor if isinstance(tensor, OnDevice) else OnDevice(tensor))
    return module


@contextlib.contextmanager
def counted_waits():
    """Yield a list of the waits in the body."""
    _waits.clear()
    yield _waits
