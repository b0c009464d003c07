# SPDX-License-Identifier: Apache-2.0
"""Golden inputs and outputs, by which an engine is verified: made by torch in float32.

`python -m g2vlm_ros.export.golden_cases --plan engines/plan.yaml --profile NAME --onnx DIR` writes
`<stage>....golden.npz` beside the ONNX files. `export.build_engines` does it by itself where torch
is installed; on a Jetson without torch copy the files there with the ONNX folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.onnx_manifest import GraphFile, Manifest
from g2vlm_ros.checkpoint.prompt_layout import Segment, SpecialTokens, TokenCursor
from g2vlm_ros.export.build_plan import BuildPlan
from g2vlm_ros.export.weight_only import WEIGHT_ONLY_STAGES, dequantised_weights
from g2vlm_ros.inference.decoding_state import first_state
from g2vlm_ros.inference.tensorrt.device_memory import from_element, to_element

VIEWS, TEXT = 2, 11
"""Small, so that the check at every start is short; two views, so that views see each other."""
ELEMENT = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}
LONG_TOKENS = 8192
"""Cached tokens of the long case, at most: kernels for long sequences are others than for short
ones, and a case of 16 384 would cost each start of the node another 0.5 GB."""
MAX_BLOCK_TOKENS = 64
"""Tokens of the long case that are written down; the others repeat them."""
UNSTEADY = ("next_ids", "next_recent")
"""Outputs that are not compared: which token is likeliest may hang on the last bit of logits."""
Arrays = dict[str, np.ndarray]


class Repeated(NamedTuple):
    """Keys or values of many tokens that are those of a few, again and again."""

    block: np.ndarray
    times: int


def golden_name(graph: GraphFile, size: tuple[int, int] | None, weights: str) -> str:
    """The file with the golden values of an engine made from a graph of a checkpoint state."""
    middle = f".{size[0]}x{size[1]}" if size and not graph.size else ""
    return f"{graph.file.removesuffix('.onnx')}{middle}.{weights[:8]}.golden.npz"


class Oracle:
    """A network in torch, float32, run through the very functions that were traced.

    weight_only: how the weights of the language stage are rounded, see `export.weight_only`.
    """

    def __init__(self, network: object, precision: str, weight_only: str | None = None):
        import torch

        from g2vlm_ros.export.stage_graphs import stage_graphs

        self._torch, self.network = torch, network
        self._graphs = stage_graphs(network.config, torch.float32, network.confidence)
        self.element = ELEMENT[precision]
        self._rounded_weights = (
            dequantised_weights(network, weight_only, self.element) if weight_only else {}
        )

    def run(self, stage: str, **inputs: np.ndarray) -> tuple[Arrays, Arrays]:
        """Inputs, rounded to the precision of the engine, and outputs in float32."""
        inputs = {name: self._rounded(array) for name, array in inputs.items()}
        graph = self._graphs[stage]
        device = next(self.network.parameters()).device
        with self._torch.inference_mode():
            arrays = of_layers(inputs) if stage == "language" else inputs
            tensors = [self._torch.tensor(arrays[name], device=device) for name in graph.inputs]
            results = self._run(stage, graph, tensors)
        outputs = (x.float().cpu().numpy() for x in results)
        return inputs, dict(zip(graph.outputs, outputs, strict=True))

    def _run(self, stage: str, graph: object, tensors: list) -> tuple:
        if stage not in WEIGHT_ONLY_STAGES or not self._rounded_weights:
            return graph.run(self.network, *tensors)
        from g2vlm_ros.export.stage_graphs import GraphModule

        weights = {f"network.{name}": value for name, value in self._rounded_weights.items()}
        module = GraphModule(self.network, graph)
        return self._torch.func.functional_call(module, weights, tuple(tensors))

    def _rounded(self, array: np.ndarray) -> np.ndarray:
        if not np.issubdtype(array.dtype, np.floating):
            return array
        return from_element(to_element(array, self.element), self.element)


def of_layers(inputs: Arrays) -> Arrays:
    """Past keys and values as buffers of each layer, all of whose places are taken."""
    past = {side: inputs[f"past_{side}"] for side in ("keys", "values")}
    layers, _, stored, _ = past["keys"].shape
    buffers = {f"past_{s}_{i}": past[s][i, None] for s in past for i in range(layers)}
    return {**inputs, **buffers, "stored": np.array([stored])}


class Chain:
    """The cases of all stages at one image size, each fed with what the one before gave."""

    def __init__(self, oracle: Oracle, plan: BuildPlan, size: tuple[int, int]):
        self.oracle, self.plan, self.size = oracle, plan, size
        self.config: ModelConfig = oracle.network.config
        self.rng = np.random.default_rng(0)
        self.walk = TokenCursor(SpecialTokens(2, 3, 0, 1, 4))
        text = self.config.text
        empty = np.empty((text.layers, text.kv_heads, 0, text.head_dim), np.float32)
        self.past = {"past_keys": empty, "past_values": empty}
        self.cases: dict[str, list[tuple[Arrays, Arrays]]] = {}

    def geometry(self) -> None:
        """A prompt, then views through encoder, trunk and heads."""
        width, height = self.size
        views = int(np.clip(VIEWS, self.plan.views[0], self.plan.views[2]))
        grid_hw = (height // PATCH_PX, width // PATCH_PX)
        self._text(min(TEXT, self.plan.text_tokens[2]))
        results = self._case("encode_geometry", images=self._images(views, width, height))
        segment = self.walk.geometry(views, grid_hw)
        results = self._append(
            "geometry",
            segment,
            features=results["features"],
            boundary_ids=segment.token_ids.reshape(views, 2),
        )
        hidden = results["hidden"].reshape(views, *grid_hw, -1)
        self._case("heads", hidden=hidden)
        if self.oracle.network.global_points:
            self._case("heads_global", hidden=hidden)

    def questions(self, size: tuple[int, int]) -> None:
        """An image for a question, then one decoding step."""
        width, height = size
        merge = PATCH_PX * self.config.vision.merge
        results = self._case("encode_semantics", image=self._images(1, width, height)[0])
        segment = self.walk.semantic((height // merge, width // merge))
        reach = np.full(segment.length, segment.length - 1)
        self._append(
            "language", segment, ids=segment.token_ids, features=results["features"], reach=reach
        )
        hidden = self._text(1)["hidden"]
        state = first_state(0, self.walk.position, self._cached)
        del state["ids"]  # what was fed is in the hidden state
        self._case("next_token", hidden=hidden, **state)

    def long_decoding(self) -> None:
        """One decoding step behind as many tokens as the plan allows (`LONG_TOKENS`)."""
        tokens = min(self._cached, MAX_BLOCK_TOKENS)
        times = min(self.plan.buckets[-1] - 1, LONG_TOKENS) // tokens
        if times < 2:  # the plan allows no more than what the other cases have
            return
        blocks = {n: Repeated(past[:, :, :tokens], times) for n, past in self.past.items()}
        long = {n: np.concatenate([block] * times, axis=2) for n, (block, _) in blocks.items()}
        segment = self.walk.text(self.rng.integers(5, self.config.text.vocab_size, 1))
        inputs, outputs = self.oracle.run(
            "language",
            ids=segment.token_ids,
            features=np.empty((0, self.config.text.hidden_size), np.float32),
            reach=np.zeros(1, np.int64),
            positions=segment.positions,
            **long,
        )
        blocks = {name: Repeated(inputs[name][:, :, :tokens], times) for name in blocks}
        self.cases["language"].append(({**inputs, **blocks}, outputs))

    @property
    def _cached(self) -> int:
        return self.past["past_keys"].shape[2]

    def _text(self, tokens: int) -> Arrays:
        ids = self.rng.integers(5, self.config.text.vocab_size, tokens)
        features = np.empty((0, self.config.text.hidden_size), np.float32)
        return self._append(
            "language",
            self.walk.text(ids),
            ids=ids,
            features=features,
            reach=np.arange(tokens),
        )

    def _append(self, stage: str, segment: Segment, **inputs: np.ndarray) -> Arrays:
        results = self._case(stage, positions=segment.positions, **inputs, **self.past)
        self.past = {
            f"past_{name}": np.concatenate((self.past[f"past_{name}"], results[name]), axis=2)
            for name in ("keys", "values")
        }
        return results

    def _case(self, stage: str, **inputs: np.ndarray) -> Arrays:
        rounded, results = self.oracle.run(stage, **inputs)
        outputs = {name: x for name, x in results.items() if name not in UNSTEADY}
        self.cases.setdefault(stage, []).append((rounded, outputs))
        return results

    def _images(self, views: int, width: int, height: int) -> np.ndarray:
        coarse = self.rng.integers(0, 256, (views, height // 14, width // 14, 3), dtype=np.uint8)
        return coarse.repeat(14, axis=1).repeat(14, axis=2)


def make_golden_cases(
    folder: Path,
    plan: BuildPlan,
    network: object,
    stages: tuple[str, ...],
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes the golden values of every engine of a plan whose file is not there yet."""
    manifest = Manifest.read(folder)
    windows = network.config.dino.windows
    graphs = {p: plan.graph(manifest, p.stage, p.size, windows) for p in plan.engines(stages)}
    names = {p: golden_name(graph, p.size, manifest.weights) for p, graph in graphs.items()}
    if all((folder / name).exists() for name in names.values()):
        return
    oracle = Oracle(network, plan.precision, plan.weight_only)
    for size in plan.sizes:
        chain = Chain(oracle, plan, size)
        chain.geometry()
        for semantic_size in plan.semantic_sizes:
            chain.questions(semantic_size)
        chain.long_decoding()
        for (stage, own_size, _), name in names.items():
            fits = own_size in (None, size, *plan.semantic_sizes)
            if fits and stage in chain.cases and not (folder / name).exists():
                cases = [c for c in chain.cases[stage] if _of_size(stage, c[0], own_size)]
                _write(folder / name, cases)
                progress(name)


def _of_size(stage: str, inputs: Arrays, size: tuple[int, int] | None) -> bool:
    if stage != "encode_semantics" or size is None:
        return True
    return inputs["image"].shape[:2] == (size[1], size[0])


def _write(path: Path, cases: list[tuple[Arrays, Arrays]]) -> None:
    arrays = {}
    for index, case in enumerate(cases):
        for kind, part in zip(("in", "out"), case, strict=True):
            for name, array in part.items():
                if isinstance(array, Repeated):
                    arrays[f"{index}/repeat/{name}"] = np.array(array.times)
                    array = array.block
                arrays[f"{index}/{kind}/{name}"] = array
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def load_network(folder: Path, windows: str | None = None) -> object:
    """The checkpoint in float32, on the GPU where torch has one."""
    import torch

    from g2vlm_ros.model.weights import load

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load(folder, device, torch.float32, windows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--onnx", metavar="DIR", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        from g2vlm_ros.checkpoint.onnx_manifest import STAGES

        plan = BuildPlan.read(options.plan, options.profile)
        network = load_network(options.onnx)
        make_golden_cases(
            options.onnx, plan, network, STAGES, lambda line: print(line, flush=True)
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
