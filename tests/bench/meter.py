"""Counts what a forward costs while it runs on tensors without data (the meta device)."""

import weakref
from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The host can go on from these only when the device has caught up.
WAITING = ("aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.equal", "aten.nonzero")
MATRIX_PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm")


class Meter(TorchDispatchMode):
    """A counter of floating point operations, operators, and the host's waits for the device.

    Counts the bytes of tensors alive at once that were made inside, and of weights and inputs that were read.

    Waits are numbers read by the host, and copies from one device to another. Attention counts as a fused
    kernel: two matrix products, without a matrix of all pairs in memory.
    """

    def __init__(self):
        super().__init__()
        self.flops = 0
        self.waits = 0
        self.operators: Counter[str] = Counter()
        self.bytes = self.peak_bytes = 0
        self._owners: dict[int, int] = {}  # storage: how many tensors made inside share it
        self._given: dict[int, int] = {}  # storage: its bytes

    @property
    def given_bytes(self) -> int:
        """Counts the bytes read of tensors that were made outside."""
        return sum(self._given.values())

    def __enter__(self):
        self.attention = _FusedAttention(self)
        self.attention.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self.attention.__exit__(*exception)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = str(function.overloadpacket)
        if not function.is_view:
            self.operators[name] += 1
        if name in MATRIX_PRODUCTS:
            left = [leaf for leaf in args if isinstance(leaf, Tensor)][-2]
            self.flops += 2 * out.numel() * left.shape[-1]
        elif name == "aten.convolution":
            weight = args[1]
            self.flops += 2 * out.numel() * weight[0].numel()
        self.waits += name in WAITING or _is_copy_across(name, args, out)
        storages = [
            leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        ]
        known = {storage._cdata: storage.nbytes() for storage in storages}
        if not function.is_view:
            self._given |= {key: size for key, size in known.items() if key not in self._owners}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._own(leaf, known)
        return out

    def _own(self, tensor: Tensor, known: Collection[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._owners:
            if key in known:
                return  # a view of a weight or of an input
            self._owners[key] = 0
            self.bytes += size
            self.peak_bytes = max(self.peak_bytes, self.bytes)
        self._owners[key] += 1
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._owners[key] -= 1
        if not self._owners[key]:
            del self._owners[key]
            self.bytes -= size


def _is_copy_across(name: str, args: tuple, out: object) -> bool:
    if name not in ("aten._to_copy", "aten.copy_"):
        return False
    source = args[1] if name == "aten.copy_" else args[0]
    return source.device != out.device


class _FusedAttention(TorchFunctionMode):
    """A stand-in for scaled_dot_product_attention, which on the meta device would hold the whole matrix."""

    def __init__(self, meter: Meter):
        super().__init__()
        self.meter = meter

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            q, k, v = given["query"], given["key"], given["value"]
            self.meter.flops += (
                2 * q.numel() * k.shape[-2] + 2 * q[..., 0].numel() * k.shape[-2] * v.shape[-1]
            )
            self.meter.operators["attention"] += 1
            return torch.empty_like(q[..., : v.shape[-1]], memory_format=torch.contiguous_format)
        return function(*args, **(kwargs or {}))
