"""The passes of a causal model, compiled.

Layers of a model differ in their weights and in nothing else, and what torch has to compile of a whole pass grows with
their number. So for passes of a batch it is the pass of one layer that is compiled, which every layer uses: what is
around them is little, masks, embeddings, a norm. A pass over one token a row has so little to compute that calls of
compiled code would count: it is compiled whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from polopt.core.compiling import ISOLATES, compiled
from polopt.data.tokenizing import need
from polopt.policies.shapes import blocks_of

VERSIONS = 8  # of a pass for each layer, if they do differ: with and without gradients, a mask, sizes that vary


def compile_layers(model: Any, options: dict[str, Any]) -> None:
    """Lets the layers of a model of transformers run compiled in passes of a batch."""
    layers = blocks_of(model)
    limit = {"recompile_limit": VERSIONS * len(layers)} if ISOLATES else {}
    run = compiled(_pass, **limit, **options)
    for number, layer in enumerate(layers):
        layer.forward = CompiledLayer(layer, number, run)


def compiled_step(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """A pass that sees one token more at every step, as a whole."""
    run = compiled(function, **{"dynamic": True} | options)

    def step(*args: Any) -> Any:
        with _floats_fixed():
            return run(*args)

    return step


def _pass(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


@functools.cache
def _floats_fixed() -> AbstractContextManager[Any]:
    """Inside, torch takes the numbers of a module for constants where sizes are not: else it traces everything a second
    time to find out that they are."""
    from torch._dynamo import config  # takes a second, which a run without it need not wait

    return config.patch(specialize_float=True)


class CompiledLayer:
    """The pass of one layer. A copy of the model gets its own, with the weights of the copy and the same code.

    Args:
        layer: whose pass it is.
        number: its place among the layers.
        run: the function for passes of a batch. Where a cache is `writing` the layer is left as it is: it reads a
            prompt, once in as many passes as a completion has tokens, or belongs to a step that is compiled whole.
    """

    def __init__(self, layer: Any, number: int, run: Callable[..., Any]) -> None:
        self.layer, self.number, self.run = layer, number, run
        self.cache = need("transformers").Cache

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        caches = [value for value in (*args, *kwargs.values()) if isinstance(value, self.cache)]
        if any(hasattr(cache, "writing") for cache in caches):
            return _pass(self.layer, *args, **kwargs)
        args = tuple(self._own(value) for value in args)
        return self.run(self.layer, *args, **{name: self._own(value) for name, value in kwargs.items()})

    def _own(self, value: Any) -> Any:
        return LayerCache(value, self.number) if isinstance(value, self.cache) else value


class LayerCache:
    """A cache of transformers as one layer sees it, whose number is not asked for: layers that index a cache with
    different numbers would be compiled one by one."""

    def __init__(self, cache: Any, number: int) -> None:
        self.cache = cache
        self.layer = cache.layers[number]

    def update(self, keys: Any, values: Any, number: int, *args: Any, **kwargs: Any) -> Any:
        return self.layer.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)
