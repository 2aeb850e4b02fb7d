"""A CUDA device that is a CPU underneath, to see without a card where tensors lie.

Inside `pretended_cuda()`, PyTorch seems to have one GPU. A tensor that is moved to it holds the
same numbers, says that its device is `cuda:0`, and is refused where CUDA refuses it: beside tensors
of the CPU, with a generator of the CPU, by NumPy. What waits for the device is counted in `WAITS`.
Kernels, memory, `torch.compile` and speed are the CPU's: those need a card (tests/test_cuda.py).

    python tests/pretended_cuda.py NOTEBOOK ...    run notebooks' cells, with the sizes of CI
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
WAITS: Counter[str] = Counter()
RAN: Counter[str] = Counter()  # what was computed on the device
aten = torch.ops.aten
# CUDA takes both kinds of tensors here: it copies, or looks up indices of the CPU, and waits.
_MIXED = {
    aten.copy_.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
_RealGenerator = torch.Generator
_real_group = torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype


class OnCuda(torch.Tensor):
    """A tensor that is said to lie on the device; `inner` holds its numbers.

    C++ takes it for one of the CPU, since autograd would look for a driver otherwise.
    """

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnCuda:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
        )
        tensor.inner = inner
        return tensor

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.inner!r} on cuda:0"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Compute on the CPU what all its tensors on the device are asked for."""
        kwargs = kwargs or {}
        others = [x for x in _leaves((args, kwargs)) if _is_plain(x)]
        if torch.Tag.pointwise in func.tags and not (
            func is aten.where.self and _is_plain(args[0])
        ):
            changed = args[0] if func._schema.is_mutable else None
            others = [x for x in others if x.ndim > 0 or x is changed]  # it takes single numbers
        if others and func not in _MIXED:
            shapes = ", ".join(str(tuple(x.shape)) for x in others)
            raise RuntimeError(
                f"{func}: expected all tensors on cuda:0, found some on cpu: {shapes}"
            )
        if func in _MIXED and not isinstance(args[0], OnCuda) and func is not aten.copy_.default:
            raise RuntimeError(f"{func}: indices should be on cpu, as the indexed tensor is")
        if others or func is aten._local_scalar_dense.default:
            WAITS[str(func)] += 1
        RAN[str(func)] += 1
        out = _each(_outside, func(*_each(inside, args), **_each(inside, kwargs)))
        return return_and_correct_aliasing(func, args, kwargs, out)


def inside(x):
    """Give a tensor's numbers without its device; anything else as it is."""
    return x.inner if isinstance(x, OnCuda) else x


def _outside(x):
    return OnCuda(x) if _is_plain(x) else x


def _leaves(x) -> Iterator:
    """What lists, tuples and dictionaries hold, however deep: PyTorch's own way takes long."""
    if isinstance(x, list | tuple):
        for part in x:
            yield from _leaves(part)
    elif isinstance(x, dict):
        yield from _leaves(list(x.values()))
    else:
        yield x


def _each(change, x):
    """Change what lists, tuples and dictionaries hold, and keep their form."""
    if type(x) in (list, tuple):
        return type(x)([_each(change, part) for part in x])
    if type(x) is dict:
        return {key: _each(change, part) for key, part in x.items()}
    return tree_map(change, x) if isinstance(x, list | tuple | dict) else change(x)


def _is_plain(x) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, OnCuda)


def _is_cuda(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, device):
        ctx.back = CUDA if isinstance(x, OnCuda) else CPU
        if ctx.back == CUDA:
            WAITS["to the CPU"] += 1
        numbers = inside(x).detach().clone()
        return OnCuda(numbers) if _is_cuda(device) else numbers

    @staticmethod
    def backward(ctx, gradient):
        return _move(gradient, ctx.back), None


def _move(x, device, dtype=None, copy=False):
    if isinstance(x, OnCuda) != _is_cuda(device):
        x = _Move.apply(x.as_subclass(torch.Tensor) if _is_plain(x) else x, device)
    elif copy:
        x = x.clone()
    return x if dtype is None else x.to(dtype)


class _Functions(TorchFunctionMode):
    """See a device in Python first: C++ would look for a driver."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            of = getattr(func, "__self__", None)
            if isinstance(args[0], OnCuda) and of in (torch.Tensor.device, torch.Tensor.is_cuda):
                return CUDA if of is torch.Tensor.device else True
            return func(*args, **kwargs)
        ours = any(isinstance(x, OnCuda) for x in _leaves((args, kwargs)))
        device = kwargs.get("device")
        generators = [x for x in (*args, *kwargs.values()) if isinstance(x, _RealGenerator)]
        for generator in generators:
            if getattr(generator, "on_cuda", False) != (_is_cuda(device) or ours):
                raise RuntimeError(f"{name}: expected a generator of the tensor's device")
        if name in ("cuda", "cpu"):
            return _move(args[0], name)
        if name == "to":
            return self._to(func, args, kwargs)
        if name == "numpy" and ours:
            raise TypeError("can't convert cuda:0 device type tensor to numpy: call .cpu() first")
        if name == "tolist" and ours:
            WAITS["tolist"] += 1
            return args[0].inner.tolist()
        if _is_cuda(device):
            kwargs["device"] = "cpu"
            wanted = kwargs.pop("requires_grad", False)
            out = func(*_each(inside, args), **_each(inside, kwargs))
            return _each(
                lambda x: OnCuda(x.detach()).requires_grad_(wanted) if _is_plain(x) else x, out
            )
        if device is not None and ours:
            return func(*_each(inside, args), **_each(inside, kwargs))
        return func(*args, **kwargs)

    @staticmethod
    def _to(func, args, kwargs):
        """`Tensor.to` has three forms: a device and a type, a type alone, or another tensor."""
        target = args[1] if len(args) > 1 else kwargs.get("device")
        if isinstance(target, torch.Tensor):
            device = CUDA if isinstance(target, OnCuda) else CPU
            return _move(args[0], device, target.dtype)
        if target is None or isinstance(target, torch.dtype):
            return func(*args, **kwargs)
        types = (x for x in (kwargs.get("dtype"), *args[2:]) if isinstance(x, torch.dtype))
        return _move(args[0], torch.device(target), next(types, None), kwargs.get("copy", False))


class _Generator(_RealGenerator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls)

    def __init__(self, device="cpu"):
        self.on_cuda = _is_cuda(device)

    @property
    def device(self):
        return CUDA if self.on_cuda else CPU


def _plain_load(load, *args, map_location=None, **kwargs):
    found = load(*args, map_location="cpu", **kwargs)
    return tree_map(_outside, found) if _is_cuda(map_location) else found


def _group(lists, with_indices=False):
    found = _real_group(lists, with_indices)
    return {
        (CUDA if isinstance(rows[0][0], OnCuda) else device, dtype): (rows, indices)
        for (device, dtype), (rows, indices) in found.items()
    }


def _not_compiled(model=None, **options):
    return (lambda function: function) if model is None else model


@contextlib.contextmanager
def pretended_cuda(capability: tuple[int, int] = (9, 0), memory: float = 8.0) -> Iterator[None]:
    """Let PyTorch have a GPU of this compute capability, with so many GiB of free memory."""
    size = int(memory * 2**30)
    stream = SimpleNamespace(is_capturing=lambda: False, synchronize=lambda: None)
    about = SimpleNamespace(
        total_memory=size, name="Pretended GPU", major=capability[0], minor=capability[1]
    )
    answers = {
        "torch.cuda.is_available": True,
        "torch.cuda.is_initialized": True,
        "torch.cuda.device_count": 1,
        "torch.cuda.current_device": 0,
        "torch.cuda.get_device_name": about.name,
        "torch.cuda.get_device_capability": capability,
        "torch.cuda.get_device_properties": about,
        "torch.cuda.is_bf16_supported": True,  # a T4 says so too
        "torch.cuda.mem_get_info": (size, size),
        "torch.cuda.memory_allocated": 0,
        "torch.cuda.max_memory_allocated": 2**20,
        "torch.cuda.reset_peak_memory_stats": None,
        "torch.cuda.empty_cache": None,
        "torch.cuda.synchronize": None,
        "torch.cuda.get_rng_state": torch.get_rng_state(),
        "torch.cuda.set_rng_state": None,
        "torch.cuda.current_stream": stream,
        "torch.cuda.is_current_stream_capturing": False,
        "torch.cuda._lazy_init": None,
    }
    accelerator = {"current_stream": stream, "current_device_index": 0, "set_device_index": None}
    for name, value in accelerator.items():
        if hasattr(getattr(torch, "accelerator", None), name):  # torch 2.6 has fewer
            answers[f"torch.accelerator.{name}"] = value
    autocast, save, load = torch.autocast, torch.save, torch.load
    others = {
        "torch.Generator": _Generator,
        "torch.autocast": lambda kind, *args, **kwargs: autocast("cpu", *args, **kwargs),
        "torch.save": lambda obj, *args, **kwargs: save(tree_map(inside, obj), *args, **kwargs),
        "torch.load": lambda *args, **kwargs: _plain_load(load, *args, **kwargs),
        "torch.compile": _not_compiled,
        "torch.Tensor.pin_memory": lambda self, *args: self,
        # C++ sorts them by the device that it knows.
        "torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype": _group,
        "torch.optim.optimizer._group_tensors_by_device_and_dtype": _group,
    }
    WAITS.clear()
    RAN.clear()
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, value in answers.items():
            stack.enter_context(mock.patch(name, lambda *args, _value=value, **kw: _value))
        for name, value in others.items():
            stack.enter_context(mock.patch(name, value))
        future.set_overwrite_module_params_on_conversion(True)
        stack.callback(future.set_overwrite_module_params_on_conversion, before)
        stack.enter_context(_Functions())
        yield


def run_notebook(path: Path) -> int:
    """Run the cells as a reader with Colab's T4 does; return how many failed.

    In a notebook that asks for no device, outputs are those of a CPU: one that is to be compared
    and is not the stored one is a failure, too.
    """
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import display
    from IPython.utils.capture import capture_output
    from run_as_colab import printed

    import vitmini
    from vitmini.profiles import Profile

    shell, failed = InteractiveShell.instance(), 0
    shell.colors = "NoColor"

    def show(value):  # the shell itself would print it behind an "Out"
        if value is not None and not shell.displayhook.quiet():
            display(value)

    shell.display_trap.hook = show
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    asks = any("profile.device" in cell.source for cell in cells)
    os.chdir(path.parent)
    with (
        pretended_cuda((7, 5), memory=15),
        mock.patch.object(vitmini, "choose_profile", lambda: Profile("ci", "cuda")),
    ):
        for cell in cells:
            with capture_output() as said:
                ended = shell.run_cell(cell.source)
            results = [output.data.get("text/plain", "") + "\n" for output in said.outputs]
            now, tags = said.stdout + "".join(results), cell.metadata.get("tags", [])
            print(now, said.stderr, sep="", flush=True)
            same = asks or "nbval-check-output" not in tags or now == printed(cell.outputs)
            if not same:
                print(f"stored output:\n{printed(cell.outputs)}of:\n{cell.source}", flush=True)
            failed += not (same and (ended.success or "raises-exception" in tags))
    return failed


def run_notebooks(paths: list[Path]) -> int:
    """Run each in a copy of this process, which has PyTorch loaded; return how many failed.

    What a notebook says is kept beside it, in its .log; the last line is "cells failed: N".
    """
    os.environ |= {"VITMINI_PROFILE": "ci", "MPLBACKEND": "agg"}
    import IPython  # noqa: F401
    import nbformat  # noqa: F401

    import vitmini  # noqa: F401

    torch.set_num_threads(1)
    bad = 0
    for path in paths:
        if not (child := os.fork()):
            run_in_copy(path)
        bad += os.waitpid(child, 0)[1] != 0
    return bad


def run_in_copy(path: Path) -> None:
    """In a process of its own: run a notebook and end."""
    failed = None
    signal.alarm(600)  # seconds; what hangs is ended, without a last line
    try:
        log = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for stream in (1, 2):
            os.dup2(log, stream)
        failed = run_notebook(path)
    except BaseException:
        traceback.print_exc()
    finally:
        print(f"cells failed: {failed}", flush=True)
        os._exit(failed != 0)


if __name__ == "__main__":
    sys.exit(run_notebooks([Path(name).resolve() for name in sys.argv[1:]]))
