"""Generation: continue prompts token by token, the same call for every language model.

Axes: b batch, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.state import overwritten

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Generative(nn.Module):
    """Base of language models: checks, evaluation mode and caches round :meth:`_continue`, which a subclass has."""

    vocabulary: int

    def _continue(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, choose: Sampler, stop: int | None
    ) -> list[list[int]]:
        """The new tokens of one or more prompts, one token or more each; states may be overwritten."""
        raise NotImplementedError(f"{type(self).__name__} does not implement _continue")

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Continue each prompt by up to ``new_tokens`` tokens; each row goes on as if it were alone.

        Args:
            prompts: token ids, one or more each, of any lengths.
            new_tokens: the largest number of tokens to add.
            temperature: of the softmax; 0 takes the most probable token.
            top_k: sample from the k most probable tokens only.
            top_p: sample from the fewest tokens whose probabilities sum to p or more.
            stop: a row ends with this token, which is kept.
            generator: random generator of the samples; torch's own by default.

        Returns:
            The new tokens of each prompt.

        Raises:
            ArgumentError: an empty prompt, ids outside the vocabulary, settings out of range.
            StateError: more tokens than the caches hold.
        """
        _check_generation(self.vocabulary, prompts, new_tokens, temperature, top_k, top_p)
        if not prompts or new_tokens == 0:
            return [[] for _ in prompts]
        training = self.training
        self.eval()
        try:
            choose = Sampler(temperature, top_k, top_p, generator)
            with overwritten():
                rows = self._continue(prompts, new_tokens, choose, stop)
        finally:
            self.train(training)
        return rows


def _check_generation(
    vocabulary: int, prompts: Any, new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Raise :class:`ArgumentError` for an empty prompt, ids outside the vocabulary, settings out of range."""
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ArgumentError(f"generate: prompts[{index}]: found no token, expected one or more")
        wrong = [token for token in prompt if not 0 <= token < vocabulary]
        if wrong:
            raise ArgumentError(f"generate: prompts[{index}]: found the id {wrong[0]}, expected 0 to {vocabulary - 1}")
    for name, value, right in (
        ("new_tokens", new_tokens, new_tokens >= 0),
        ("temperature", temperature, temperature >= 0),
        ("top_k", top_k, top_k is None or top_k >= 1),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1),
    ):
        if not right:
            raise ArgumentError(f"generate: {name}: found {value}, which is out of range")


class Sampler:
    """Sample one token for each row of logits ``(B, V)``."""

    def __init__(
        self, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
    ) -> None:
        self.temperature, self.top_k, self.top_p, self.generator = temperature, top_k, top_p, generator

    def __call__(self, logits: Float[Tensor, "b v"]) -> Int[Tensor, "b"]:
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p is not None:
            ordered, index = logits.sort(descending=True)
            probability = ordered.softmax(-1)
            # Keep a token if more probable ones sum to less than p.
            beyond = probability.cumsum(-1) - probability >= self.top_p
            logits = logits.masked_fill(beyond.gather(-1, index.argsort(-1)), float("-inf"))
        return torch.multinomial(logits.softmax(-1), 1, generator=self.generator)[:, 0]
