"""Weights in memory, each once: a model that several contestants share, with their LoRA adapters.

Every row of a forward pass names its adapter, or none. Nothing is switched in between, and what a
pass needs to know is its thread's own, so the turns of several visitors cannot disturb each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import linear

from hf_align.types import InputError

Rows = slice | Tensor | None


class Delta(NamedTuple):
    """What an adapter adds to a linear layer: scale · B A x (Hu et al. 2021, arXiv:2106.09685)."""

    down: Tensor
    up: Tensor
    scale: float


class Body:
    """One set of weights, and the LoRA adapters that rows may ask for.

    PEFT reads the adapters; here they are applied, by a hook on each layer that has any. PEFT's own
    batches of mixed adapters hook all modules anew for every pass, which takes longer than a small
    model's pass itself.

    Attributes:
        model: The language model, without adapters; or a `PeftModel` whose adapter is always on.
        core: The language model, or that inside the `PeftModel`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()
        self.core = model.get_base_model() if isinstance(model, PeftModel) else model
        self._deltas: dict[nn.Module, dict[str, Delta]] = {}
        self._passing = threading.local()

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights, adapters included."""
        tensors = [*self.model.parameters()]
        tensors += [t for own in self._deltas.values() for d in own.values() for t in d[:2]]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def add_adapter(self, folder: Path, name: str) -> None:
        """Reads an adapter, by whose `name` rows may then ask for it.

        Args:
            folder: Where its configuration and its safetensors are: LoRA matrices of linear layers
                and nothing else.
            name: What it is called here.
        """
        device, whole = self.core.device, dict(self.core.named_modules())
        try:
            PeftModel.from_pretrained(
                self.core, str(folder), name, use_safetensors=True, torch_device="cpu"
            )
            found = {
                path: Delta(
                    layer.lora_A[name].weight.detach().to(device),
                    layer.lora_B[name].weight.detach().to(device),
                    layer.scaling[name],
                )
                for path, layer in self.core.named_modules()
                if isinstance(layer, LoraLayer)
            }
        finally:
            # PEFT puts its layers in place of the model's, also when it fails halfway.
            for path, layer in whole.items():
                if path and self.core.get_submodule(path) is not layer:
                    self.core.set_submodule(path, layer)
            vars(self.core).pop("peft_config", None)
        _check_fit(folder, found)
        for path, delta in found.items():
            layer = self.core.get_submodule(path)
            if layer not in self._deltas:
                self._deltas[layer] = {}
                layer.register_forward_hook(self._add)
            self._deltas[layer][name] = delta

    def forward(self, adapters: Sequence[str | None], **inputs: Any) -> Any:
        """The model's output.

        Args:
            adapters: Name of each row's adapter; None for none.
            inputs: What the model takes.
        """
        own, wanted = self._passing, tuple(adapters)
        if getattr(own, "adapters", None) != wanted:
            own.adapters = wanted
            own.routes = [
                (name, _rows(wanted, name, self.core.device))
                for name in dict.fromkeys(wanted)
                if name is not None
            ]
        return self.model(**inputs)

    def _add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Adds to each row of a layer's output, (B, T, H), what its adapter has there."""
        deltas = self._deltas[layer]
        for name, rows in self._passing.routes:
            if name not in deltas:
                continue
            down, up, scale = deltas[name]
            states = inputs[0] if rows is None else inputs[0][rows]
            added = linear(linear(states.to(down.dtype), down), up) * scale
            if rows is None:
                output = (output + added).to(output.dtype)
            else:
                output[rows] = (output[rows] + added).to(output.dtype)
        return output


class Voice:
    """A contestant's weights as a model that the diagnostics call: a body with one adapter."""

    def __init__(self, body: Body, adapter: str | None = None) -> None:
        self.body, self.adapter = body, adapter

    @property
    def config(self) -> Any:
        """The model's."""
        return self.body.core.config

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.body.core.device

    def modules(self) -> Iterator[nn.Module]:
        """Those of the body."""
        return self.body.model.modules()

    def __call__(self, **inputs: Any) -> Any:
        return self.body.forward([self.adapter] * len(inputs["input_ids"]), **inputs)


def _check_fit(folder: Path, found: Mapping[str, Delta]) -> None:
    """Refuses an adapter with matrices that went nowhere, or layers that got none."""
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        given = set(file.keys())
    wanted = {f"base_model.model.{path}.lora_{which}.weight" for path in found for which in "AB"}
    odd = sorted(given ^ wanted)
    if odd:
        raise InputError(f"its adapter does not fit its base: {odd[0]} is in one of them alone")


def _rows(adapters: tuple[str | None, ...], name: str, device: torch.device) -> Rows:
    """Which rows have an adapter: None for all, a slice where they are neighbours."""
    rows = [row for row, own in enumerate(adapters) if own == name]
    if len(rows) == len(adapters):
        return None
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)
