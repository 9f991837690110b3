"""Kernels are parsed while other threads parse, deep in the stack (gh-106905 in CPython 3.11)."""

from __future__ import annotations

import ast
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed here: pip install triton")

from stc_kernels import ahead_of_time

DEPTH = 150


def test_every_kernel_is_parsed():
    kernels = {launch.kernel for launch in launches().values()}
    with a_thread_that_parses():
        for _ in range(20):
            for kernel in kernels:
                assert isinstance(deep(kernel.parse), ast.Module)
    assert gc.isenabled()


def test_a_kernel_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launch = launches()["gather_tokens_kernel"]
    with a_thread_that_parses():
        assert deep(lambda: ahead_of_time.compile_for(launch, "gfx942")).registers > 0


@pytest.mark.full
def test_the_table_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with a_thread_that_parses():
        table = deep(lambda: ahead_of_time.table((torch.float32,)))
    assert table.count("\n") > len(ahead_of_time.launches(torch.float32))


def test_collection_stays_off_where_it_was():
    kernel = next(iter(launches().values())).kernel
    gc.disable()
    try:
        kernel.parse()
        assert not gc.isenabled()
    finally:
        gc.enable()


@contextmanager
def a_thread_that_parses() -> Iterator[None]:
    """Have a thread parse, and the interpreter turn to it in each collection, as under jax."""
    ended = threading.Event()

    def parse() -> None:
        while not ended.is_set():
            try:
                ast.parse("a = b")  # short: while this thread collects, no other does
            except SystemError:
                continue  # the fault, in a parse that is not ours

    def on_collection(phase: str, info: dict[str, int]) -> None:
        time.sleep(1e-5)

    thread = threading.Thread(target=parse)
    gc.callbacks.append(on_collection)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        gc.callbacks.remove(on_collection)


def deep(call: Callable[[], Any], frames: int = DEPTH) -> Any:
    return call() if frames == 0 else deep(call, frames - 1)


def launches() -> dict[str, ahead_of_time.Launch]:
    return ahead_of_time.launches(torch.float32)
