"""What a GPU would have to be waited for, seen without one."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class NothingAsked(TorchDispatchMode):
    """Refuses operators whose result, or its shape, the CPU has to wait for."""

    ASKING = (
        aten._local_scalar_dense,
        aten.is_nonzero,
        aten.equal,
        aten.nonzero,
        aten.masked_select,
        aten._unique2,
        aten.bincount,
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        by_mask = packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        by_counts = packet is aten.repeat_interleave and kwargs.get("output_size") is None
        if packet in self.ASKING or by_mask or by_counts:
            raise AssertionError(f"{func} asks for a value")
        return func(*args, **kwargs)
