"""GPUs that compute on the CPU: tensors with values, streams, events, graphs, and who may do what.

What a real GPU would run into, this one raises, each rule with its source beside it; what it would
do wrong without a word (read what another stream has not written yet, give memory away that another
stream still reads), it writes down in `FakeGpus.faults`. Time is a number a stream: of what was
launched on it. Each stream knows of every other how far it is waited for.
"""

from __future__ import annotations

import contextlib
import operator
import threading
import weakref
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
# CUDA Programming Guide, "Prohibited and Unhandled Operations" of stream capture.
NOT_WHILE_CAPTURING = "operation not permitted when stream is capturing"
VALUES_READ = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten.is_nonzero,
    aten.unique_dim,
    aten._unique2,
    aten.repeat_interleave,
}
# What torch itself asks for the device in.
CONVERSIONS = {
    Tensor.float: torch.float32,
    Tensor.double: torch.float64,
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
    Tensor.int: torch.int32,
    Tensor.long: torch.int64,
    Tensor.bool: torch.bool,
    Tensor.cpu: "cpu",
}
OPS = {Tensor.copy_: aten.copy_.default, Tensor.__invert__: aten.bitwise_not.default}
READS = {
    Tensor.tolist,
    Tensor.item,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.nonzero,
}


class Gpu(Tensor):
    """A tensor on a GPU: `inner` is where its values are."""

    @staticmethod
    def __new__(cls, inner, device):
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        made.inner = inner
        return made

    def __repr__(self):
        return f"Gpu({list(self.shape)}, {self.device})"

    def record_stream(self, stream):
        FakeGpus.active.memory(self).told.add(stream)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        gpus = FakeGpus.active
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            named = operator.getitem if function is Tensor.__getitem__ else operator.setitem
            return gpus.launch(named, args, kwargs or {})
        if function in OPS:
            return gpus.launch(OPS[function], args, kwargs or {})
        if function in READS:
            gpus.wait_for_values(function.__name__)
            return function(args[0].inner)
        if function is Tensor.data_ptr:
            return args[0].inner.data_ptr()
        if function is Tensor.contiguous:
            # Here torch itself asks for the device.
            whole = args[0].inner.is_contiguous()
            return args[0] if whole else args[0].clone(memory_format=torch.contiguous_format)
        if function in CONVERSIONS:
            return args[0].to(CONVERSIONS[function])
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return FakeGpus.active.launch(function, args, kwargs or {})


@dataclass(eq=False)
class Memory:
    """A piece of memory: the stream it was allocated on, and when which stream last used it."""

    home: Stream
    told: set = field(default_factory=set)
    used: dict = field(default_factory=dict)
    written: tuple | None = None
    permanent: bool = False
    tensors: int = 0
    freed: bool = False


class Stream:
    """A queue of a device."""

    def __init__(self, device=None, *, gpus=None):
        self.gpus = gpus or FakeGpus.active
        self.device = self.gpus.device_of(device)
        self.cuda_stream = self.gpus.new_number()
        self.now = 0
        self.known = Counter()
        self.capture = None

    def launched(self):
        self.now += 1
        self.known |= self.gpus.host
        self.known[self] = self.now
        return self.now

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        event.wait(self)

    def wait_stream(self, other):
        self.wait_event(other.record_event())

    def synchronize(self):
        self.gpus.wait_for_host("synchronize", self.device)
        self.gpus.host |= self.known

    def query(self):
        return True


class Event:
    """A point in a queue's time."""

    def __init__(self, **options):
        self.device = None
        self.point = None

    def record(self, stream=None):
        gpus = FakeGpus.active
        stream = stream or gpus.current_stream()
        # torch.cuda.Event: "only streams on the same device may record the event" after the first.
        if self.device not in (None, stream.device):
            raise RuntimeError(
                f"Event device {self.device} does not match recording stream's {stream.device}"
            )
        self.device, self.point = stream.device, stream.known.copy()
        gpus.calls.append(("record", stream))

    def wait(self, stream=None):
        gpus = FakeGpus.active
        stream = stream or gpus.current_stream()
        # torch.cuda.Event: "streams on any device can wait on the event".
        if self.point is not None:
            stream.known |= self.point
        gpus.calls.append(("wait", stream))

    def query(self):
        FakeGpus.active.wait_for_host("query", None, counts=False)
        return FakeGpus.active.done

    def synchronize(self):
        FakeGpus.active.wait_for_host("synchronize", None)


class CUDAGraph:
    """What was launched between `capture_begin` and `capture_end`, to be launched again."""

    def __init__(self, keep_graph=False):
        self.launches = []
        self.stream = None

    def capture_begin(self, pool=None, capture_error_mode="global", **options):
        gpus = FakeGpus.active
        stream = gpus.current_stream()
        # docs.pytorch.org/docs/stable/notes/cuda.html, CUDA Graphs, Constraints: "Capture must
        # occur on a non-default stream."
        if stream is gpus.default_stream(stream.device):
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        # The same page: "Only one capture may be underway at any given time in a process"
        if gpus.capturing is not None:
            raise RuntimeError("another capture is underway in this process")
        self.stream, self.mode, self.thread = stream, capture_error_mode, threading.get_ident()
        self.pool, self.broken = pool, False
        stream.capture, gpus.capturing = self, self
        gpus.calls.append(("capture", stream))

    def capture_end(self):
        gpus = FakeGpus.active
        # torch/aten CUDAGraph.cpp: "Capture must end on the same stream it began on."
        if gpus.current_stream() is not self.stream:
            raise RuntimeError("Capture must end on the same stream it began on.")
        self.stream.capture, gpus.capturing = None, None
        # cudaStreamEndCapture: "If capture was invalidated, due to a violation of the rules of
        # stream capture, then a NULL graph will be returned."
        if self.broken:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self):
        gpus = FakeGpus.active
        # ATen's CUDAGraph::replay sets the device of the capture and takes its current stream.
        stream = gpus.current_stream(self.stream.device)
        gpus.calls.append(("replay", stream))
        for function, args, kwargs, outputs in self.launches:
            with _disable_current_modes():
                again = tree_flatten(function(*args, **kwargs))[0]
            given = {_place(each) for each in tree_flatten((args, kwargs))[0] if _is_real(each)}
            for before, now in zip(outputs, again, strict=True):
                if _is_real(before) and _place(before) not in given:
                    before.copy_(now)
        reads, writes = self._touched()
        gpus.use(stream, reads, writes, "a replay")

    def _touched(self):
        reads, writes = [], []
        for function, args, kwargs, outputs in self.launches:
            inputs = [each for each in tree_flatten((args, kwargs))[0] if _is_real(each)]
            reads += inputs
            writes += _written(function, args, outputs)
        return reads, writes


class FakeGpus(TorchDispatchMode):
    """Two GPUs, `cuda:0` and `cuda:1`, while entered; in each thread that uses them.

    Attributes:
        faults: what a real one would do wrong without a word.
        calls: (what, stream) of each capture, replay, record and wait.
        launches: number of kernels launched, by operator.
        waits: what the host waited for, in order, and what had been launched by then.
        done: whether events count as reached.
    """

    active = None
    NAMES = ("Stream", "Event", "CUDAGraph")

    def __init__(self, monkeypatch):
        super().__init__()
        self.faults, self.calls, self.waits = [], [], []
        self.launches = Counter()
        self.host = Counter()
        self.done = True
        self.capturing = None
        self._numbers = iter(range(1, 1 << 30))
        self._memory = {}
        self._pinned = set()
        self._lock = threading.RLock()
        self._local = threading.local()
        self._fakes = threading.local()
        FakeGpus.active = self
        self._default = {n: Stream(torch.device("cuda", n), gpus=self) for n in (0, 1)}
        for name in self.NAMES:
            monkeypatch.setattr(torch.cuda, name, globals()[name])
        for name in (
            "current_stream",
            "default_stream",
            "stream",
            "device",
            "synchronize",
            "current_device",
            "graph_pool_handle",
            "is_current_stream_capturing",
            "empty_cache",
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        # The context manager itself is torch's own.
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)

    def __enter__(self):
        # Lets torch take a device that isn't there.
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        fake.__enter__()
        self._fakes.stack = [*getattr(self._fakes, "stack", []), fake]
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._fakes.stack.pop().__exit__(*error)

    # torch.cuda

    def new_number(self):
        return next(self._numbers)

    def device_of(self, device):
        if device is None:
            return torch.device("cuda", self.current_device())
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        return torch.device("cuda", self.current_device()) if device.index is None else device

    def current_device(self):
        return getattr(self._local, "device", 0)

    def default_stream(self, device=None):
        return self._default[self.device_of(device).index]

    def current_stream(self, device=None):
        chosen = getattr(self._local, "streams", {})
        device = self.device_of(device)
        return chosen.get(device.index, self._default[device.index])

    @contextlib.contextmanager
    def device(self, device):
        before = self.current_device()
        self._local.device = self.device_of(device).index
        try:
            yield
        finally:
            self._local.device = before

    @contextlib.contextmanager
    def stream(self, stream):
        # torch.cuda.StreamContext: the device is the stream's inside; streams are per device.
        before, chosen = self.current_device(), dict(getattr(self._local, "streams", {}))
        self._local.device = stream.device.index
        self._local.streams = {**chosen, stream.device.index: stream}
        try:
            yield
        finally:
            self._local.device, self._local.streams = before, chosen

    def synchronize(self, device=None):
        device = self.device_of(device)
        self.wait_for_host("synchronize", device)
        # CUDA Programming Guide, stream capture: "It is also invalid to query the execution status
        # of or synchronize a broader handle which encompasses an active stream capture, such as a
        # device or context handle when any associated stream is in capture mode."
        if self.capturing is not None and self.capturing.stream.device == device:
            self.capturing.broken = True
            raise RuntimeError(NOT_WHILE_CAPTURING)

    def graph_pool_handle(self):
        return (0, self.new_number())

    def is_current_stream_capturing(self):
        return self.current_stream().capture is not None

    def empty_cache(self):
        pass

    # What the host waits for

    def wait_for_values(self, name):
        self.wait_for_host(name, None)
        self.host |= self.current_stream().known

    def wait_for_host(self, name, device, counts=True):
        if counts:
            self.waits.append((name, self.launches.copy()))
        capture = self.capturing
        if capture is None:
            return
        # torch.cuda.graph: ""global" will error on actions in other threads, "thread_local" will
        # only error for actions in the current thread".
        if capture.mode == "global" or capture.thread == threading.get_ident():
            capture.broken = True
            raise RuntimeError(NOT_WHILE_CAPTURING)

    # Launches

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.launch(function, args, kwargs or {})

    def launch(self, function, args, kwargs):
        with self._lock:
            return self._launch(function, args, kwargs)

    def _launch(self, function, args, kwargs):
        name = getattr(function, "overloadpacket", function)
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        on_gpu = [each for each in given if isinstance(each, Gpu)]
        kwargs = dict(kwargs)
        pinned = kwargs.pop("pin_memory", False)
        target = kwargs.get("device")
        device = on_gpu[0].device if on_gpu else None
        if target is not None:
            target = torch.device(target)
            device = self.device_of(target) if target.type == "cuda" else None
            kwargs["device"] = torch.device("cpu")
        if name in (aten._pin_memory, aten.pin_memory):
            with _disable_current_modes():
                copied = args[0].clone()
            self._pinned.add(_place(copied))
            return copied
        if name is aten.is_pinned:
            return _place(args[0]) in self._pinned
        if name is aten._fused_sdp_choice:
            return 0
        devices = {each.device for each in on_gpu if each.dim() or name is not aten.copy_}
        moves = name in (aten._to_copy, aten.copy_)
        if len(devices) > 1 and not moves:
            raise RuntimeError(f"{name}: tensors on {devices}")
        self._wait_if_read(name, args, kwargs, given, on_gpu, device)
        inner_args, inner_kwargs = tree_map_only(Gpu, lambda x: x.inner, (args, kwargs))
        with _disable_current_modes():
            result = function(*inner_args, **inner_kwargs)
        if device is None and not on_gpu:
            if pinned:
                self._pinned.add(_place(result))
            return result
        outputs = tree_flatten(result)[0]
        stream = self.current_stream(device or on_gpu[0].device)
        if not _is_view(function):
            self.launches[str(name)] += 1
            values = tree_flatten((inner_args, inner_kwargs))[0]
            given_places = {_place(each) for each in values if _is_real(each)}
            for each in outputs:
                if _is_real(each) and _place(each) not in given_places:
                    self._allocated(each, stream)
            reads = [each.inner for each in on_gpu]
            self.use(stream, reads, _written(function, inner_args, outputs), str(name))
        if stream.capture is not None:
            stream.capture.launches.append((function, inner_args, inner_kwargs, outputs))
        if device is None:
            return result
        same = {id(each.inner): each for each in on_gpu}
        return tree_map_only(Tensor, lambda x: self._wrapped(x, same, device), result)

    def _wait_if_read(self, name, args, kwargs, given, on_gpu, device):
        if name in VALUES_READ and on_gpu:
            self.wait_for_values(str(name))
        masks = (operator.getitem, operator.setitem, aten.index, aten.index_put_)
        if name in masks and any(
            each.dtype in (torch.bool, torch.uint8)
            for each in tree_flatten(args[1])[0]
            if isinstance(each, Gpu)
        ):
            self.wait_for_values(f"{name} by a mask")
        crosses = name in (aten._to_copy, aten.copy_) and (
            (device is None) != (not on_gpu) or len(on_gpu) < len(given)
        )
        if crosses and on_gpu + [device] != [None]:
            host = [each for each in given if not isinstance(each, Gpu)]
            late = kwargs.get("non_blocking") or (name is aten.copy_ and args[2:] == (True,))
            # torch.Tensor.to: "non_blocking … only when the host memory is pinned".
            if not late or not all(_place(each) in self._pinned for each in host):
                self.wait_for_values(f"{name} between host and device")

    def memory(self, tensor):
        return self._memory[_place(tensor.inner)]

    def use(self, stream, reads, writes, what):
        """Note that a stream uses memory, and whether it does so too early."""
        if stream.capture is not None:
            return
        now = stream.launched()
        for tensor in (*reads, *writes):
            memory = self._memory.get(_place(tensor))
            if memory is None:
                continue
            if memory.freed and not memory.permanent:
                self.faults.append(f"{what} uses memory that was given back")
            writer, then = memory.written or (stream, 0)
            if stream.known[writer] < then:
                self.faults.append(f"{what} reads what {writer.device} may not have written yet")
            memory.used[stream] = now
        for tensor in writes:
            memory = self._memory.get(_place(tensor))
            if memory is None:
                continue
            for other, then in memory.used.items():
                if stream.known[other] < then:
                    self.faults.append(f"{what} writes what another stream may still read")
            memory.written = (stream, now)

    def _allocated(self, inner, stream, permanent=False):
        # What a capture allocates is the graphs' alone.
        permanent = permanent or stream.capture is not None
        self._memory[_place(inner)] = Memory(stream, permanent=permanent)

    def put(self, tensor, device):
        """Return a tensor of the host's on a device, there from the start."""
        inner = tensor.detach().clone()
        self._allocated(inner, self.default_stream(device), permanent=True)
        return self._wrapped(inner, {}, torch.device(device))

    def _wrapped(self, inner, same, device):
        if id(inner) in same:
            return same[id(inner)]
        made = Gpu(inner, device)
        place = _place(inner)
        memory = self._memory.setdefault(place, Memory(self.current_stream(device)))
        memory.tensors += 1
        weakref.finalize(made, self._let_go, place, memory)
        return made

    def _let_go(self, place, memory):
        memory.tensors -= 1
        if memory.tensors or memory.permanent:
            return
        memory.freed = True
        # torch.Tensor.record_stream: "if a tensor is used on a stream different from the stream of
        # origin, the allocator might reuse the memory unexpectedly".
        home = memory.home
        known = home.known | self.host
        # It "ensures the memory is not reused until all work queued on stream is complete".
        for stream in memory.told:
            known = known | stream.known
        for stream, then in memory.used.items():
            if stream is not home and known[stream] < then:
                self.faults.append(f"memory is given back while {stream.device} still uses it")
        if self._memory.get(place) is memory:
            del self._memory[place]


def on_gpu(module, gpus, device):
    """Put a module's weights on a device, and return it."""
    for each in module.modules():
        for held in (each._parameters, each._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = gpus.put(tensor, device)
    return module


def _place(inner):
    return inner.untyped_storage()._cdata


def _is_real(value):
    return isinstance(value, Tensor)


def _is_view(function):
    if function is operator.getitem:
        return True
    return getattr(function, "is_view", False)


def _written(function, args, outputs):
    if function is operator.setitem:
        return [args[0]]
    schema = getattr(function, "_schema", None)
    changed = (
        []
        if schema is None
        else [
            value
            for argument, value in zip(schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write and _is_real(value)
        ]
    )
    return [*changed, *(each for each in outputs if _is_real(each))]
