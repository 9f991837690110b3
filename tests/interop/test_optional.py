"""Without its framework a module of `stc_kernels.interop` says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("module", "missing"), [("jax", "jax"), ("onnx", "onnxscript")])
def test_a_framework_that_is_not_there_is_named(module, missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import stc_kernels.interop.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: stc_kernels.interop.{module} needs {missing}, which is not installed: "
        f"pip install {missing}"
    )
