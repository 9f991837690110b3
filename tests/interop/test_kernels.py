"""The package as a kernel of Hugging Face's ``kernels``: loaded from its folder, and its layers.

Each test in a process of its own, because ``get_local_kernel`` imports the package anew.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import stc_kernels

PACKAGE = Path(stc_kernels.__file__).parent

pytest.importorskip("kernels", reason="kernels is not installed")

LAYERS = """
import inspect
import sys
from pathlib import Path

import torch
from kernels import LocalLayerRepository, Mode, kernelize, use_kernel_mapping
from kernels import use_kernel_forward_from_hub

from stc_kernels import layers
import stc_kernels

torch.manual_seed(int(sys.argv[2]))
tokens, reference, past = torch.randn(3, 10, 16), torch.randn(2, 10, 16), torch.randn(3, 16)
held = torch.tensor([0, 1, 0])
index, slot = stc_kernels.select_dynamic(tokens, reference, 4, held, "l2")
weight, bias, added = torch.randn(16), torch.randn(16), torch.randn(3, 4, 16)
CASES = {
    "PruneTokens": (
        dict(k=4, strategy="gaussian", alpha=0.3),
        (tokens, past),
        stc_kernels.prune_tokens(tokens, 4, past, "gaussian", 0.3),
    ),
    "SelectDynamic": (dict(k=4, metric="l2"), (tokens, reference, held), (index, slot)),
    "MergeTokens": (
        {},
        (tokens[:, :4], reference, slot, held, tokens),
        stc_kernels.merge_tokens(tokens[:, :4], reference, slot, held, tokens),
    ),
    "LayerNormGather": (
        dict(weight=weight, bias=bias, eps=1e-3),
        (tokens, index, added),
        stc_kernels.layer_norm_gather(tokens, index, weight, bias, added, 1e-3),
    ),
}
assert sorted(CASES) == layers.__all__
for name, (attributes, arguments, expected) in CASES.items():
    ours = getattr(layers, name)

    # The model's own layer: the same signature, and a forward that must not run.
    def build(ours=ours):
        class Own(torch.nn.Module):
            pass

        def refuse(self, *args):
            raise AssertionError("the layer's own forward ran")

        refuse.__signature__ = inspect.signature(ours.forward)
        Own.forward = refuse
        return Own

    layer = use_kernel_forward_from_hub(name)(build())()
    for key, value in attributes.items():
        setattr(layer, key, value)
    repository = LocalLayerRepository(Path(sys.argv[1]), layer_name=name)
    with use_kernel_mapping({name: {"cpu": repository}}):
        kernelize(
            layer,
            mode=Mode.INFERENCE | Mode.TORCH_COMPILE,
            device="cpu",
            use_fallback=False,
        )
    for run in (layer, torch.compile(layer, fullgraph=True, backend="eager")):
        found = run(*arguments)
        found, wanted = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), name
    try:
        with use_kernel_mapping({name: {"cpu": repository}}):
            kernelize(layer, mode=Mode.TRAINING, device="cpu", use_fallback=False)
    except ValueError as error:
        assert "does not support mode" in str(error), error
    else:
        raise AssertionError("kernelized for training without a backward")
print("done")
"""

ALONE = """
import sys
from pathlib import Path

import torch
from kernels import get_local_kernel

kernel = get_local_kernel(Path(sys.argv[1]))
assert kernel.__file__.startswith(sys.argv[1]), kernel.__file__
tokens = torch.randn(2, 9, 4)
kept, index = kernel.prune_tokens(tokens, 3)
assert torch.equal(kept, tokens.take_along_dim(index[:, :, None], 1))
assert kernel.layers.PruneTokens.can_torch_compile
print("done")
"""


def python(code: str, *arguments: object, path: list[str], cwd: Path) -> None:
    """Run `code`, which must say that it is done, with `path` before the installed packages."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "done", done.stderr


def borrowed() -> list[str]:
    """Return PYTHONPATH without the source tree."""
    entries = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return [entry for entry in entries if not Path(entry, "stc_kernels").exists()]


def test_layers_replace_a_models_own(tmp_path, seed):
    python(LAYERS, PACKAGE, seed, path=[str(PACKAGE.parent), *borrowed()], cwd=tmp_path)


def test_the_package_folder_is_a_kernel(tmp_path):
    python(ALONE, PACKAGE, path=borrowed(), cwd=tmp_path)


@pytest.mark.skipif(
    not stc_kernels.build_info()["extension"], reason="installed without compiled code"
)
@pytest.mark.skipif(sys.platform != "linux", reason="the variant's name is for Linux")
def test_a_copy_is_a_build_variant_of_a_repository(tmp_path):
    variant = tmp_path / f"build/torch-stable-abi210-cpu-{platform.machine()}-linux"
    shutil.copytree(PACKAGE, variant, ignore=shutil.ignore_patterns("__pycache__"))
    code = ALONE.replace("Path(sys.argv[1])", "Path(sys.argv[1]), backend='cpu'")
    python(code, tmp_path, path=borrowed(), cwd=tmp_path)


def test_metadata_agrees_with_the_distribution():
    metadata = json.loads((PACKAGE / "metadata.json").read_text(encoding="utf-8"))
    # Under this name the package's own imports find what is beside it.
    assert metadata["id"] == stc_kernels.__name__
    assert metadata["license"] == "Apache-2.0"
