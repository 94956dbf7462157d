"""Cards that there are not: tensors in main memory that say which card they are on, and operations that mind it as a driver would.

Kernels run in Triton's interpreter. What torch or a driver would refuse fails: tensors of two cards in one operation, a kernel
launched on another card than the current one, bytes of a card read as main memory.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from triton.runtime.interpreter import GridExecutor

from qtransformers.kernels.triton import device as devices

MOVES = {torch.Tensor.copy_, torch.Tensor.to}
IN_MAIN_MEMORY = {torch.Tensor.numpy, torch.Tensor.pin_memory, torch.Tensor.is_pinned}


def card_of(x):
    """The card of a tensor; None: main memory."""
    return getattr(x, "card", None)


class Cards(TorchFunctionMode):
    """While it is entered, devices `cuda:N` are there; `crossed` counts copies by (from, to), `launched` kernels by card."""

    def __init__(self):
        super().__init__()
        self.crossed, self.launched = {}, {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") == "__get__" and args:
            if func.__self__ is torch.Tensor.device and card_of(args[0]):
                return card_of(args[0])
            if func.__self__ is torch.Tensor.is_cuda:
                return card_of(args[0]) is not None
        tensors = [x for x in flat((args, kwargs)) if isinstance(x, torch.Tensor)]
        cards = {card_of(x) for x in tensors if x.dim()}  # numbers may come from main memory
        kwargs.pop("pin_memory", None)
        if func is torch.Tensor.pin_memory:
            return args[0].clone()
        if func in IN_MAIN_MEMORY and cards - {None}:
            raise TypeError(f"{func.__name__} of a tensor on {cards}; copy it to main memory first")
        if func is torch.Tensor.cpu:
            return self._copy(args[0], None)
        if func is torch.Tensor.to:
            return self._to(args, kwargs)
        if func is torch.Tensor.copy_:
            self._cross(card_of(args[1]), card_of(args[0]))
        elif len(cards) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {cards} in {func}")
        asked = kwargs.get("device")
        if asked is not None:
            asked = torch.device(asked)
            kwargs["device"] = torch.device("cpu") if asked.type == "cuda" else asked
            home = asked if asked.type == "cuda" else None
        else:
            home = card_of(args[0]) if func is torch.Tensor.copy_ else next(iter(cards), None)
        found = func(*args, **kwargs)
        for x in flat((found,)):
            if isinstance(x, torch.Tensor):
                x.card = home
        return found

    def _to(self, args, kwargs):
        x, *rest = args
        kwargs.pop("non_blocking", None)
        asked = next(
            (torch.device(a) for a in (*rest, kwargs.pop("device", None)) if isinstance(a, (torch.device, str))), None
        )
        rest = [a for a in rest if not isinstance(a, (torch.device, str))]
        home = card_of(x)
        if asked is not None:
            home = asked if asked.type == "cuda" else None
            if home != card_of(x):
                x = self._copy(x, home)
        if rest or kwargs:
            x = x.to(*rest, **kwargs)
            x.card = home
        return x

    def _copy(self, x, home):
        self._cross(card_of(x), home)
        y = x.detach().clone()
        y.card = home
        return y

    def _cross(self, source, target):
        if source != target:
            self.crossed[source, target] = self.crossed.get((source, target), 0) + 1


def flat(x):
    """What is in tuples, lists and dictionaries."""
    if isinstance(x, dict):
        x = list(x.values())
    return [part for item in x for part in flat(item)] if isinstance(x, (tuple, list)) else [x]


@contextmanager
def cards(monkeypatch):
    """Cards as `Cards`, with all that asks for them going there."""
    mode, at = Cards(), [torch.device("cuda:0")]

    @contextmanager
    def current(device):
        at.append(torch.device(device))
        try:
            yield
        finally:
            at.pop()

    launch = GridExecutor.__call__

    def checked(self, *args, **kwargs):
        homes = {card_of(x) for x in flat((args, kwargs)) if isinstance(x, torch.Tensor)}
        assert homes == {at[-1]}, f"{self.fn.__name__} is launched on {at[-1]} with tensors on {homes}"
        mode.launched[at[-1]] = mode.launched.get(at[-1], 0) + 1
        with torch._C.DisableTorchFunction():
            return launch(self, *args, **kwargs)

    stream = SimpleNamespace(synchronize=lambda: None)
    event = SimpleNamespace(record=lambda *stream: None, synchronize=lambda: None)
    for name, value in {"Event": lambda: event, "current_stream": lambda *device: stream, "device": current}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(devices, "torch_device", torch.device)
    monkeypatch.setattr(GridExecutor, "__call__", checked)
    with mode:
        yield mode
